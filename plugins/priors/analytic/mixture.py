"""Gaussian mixture: an analytic prior with several modes, exact at every noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.contracts.operator import matching
from invsolve.contracts.prior import Prior, per_row
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.priors.analytic._drawing import measured_error


class GaussianMixture(Prior):
    """Several modes; analytic, for tests and for proof.

    sum_k w_k N(m_k, std^2 I), with D = sum_k r_k(x) (m_k + std^2 / (std^2 + sigma^2) (x - m_k)).

    `sigma_max` is at least ten times the distance from the mixture's mean to its furthest component, so that noise of that
    level hides the modes; `sigma_min` at most std / 20. `error` is measured once, by Monte Carlo with a fixed seed.

    Args:
        means: component means (K, C, *spatial).
        weights: (K,), positive; equal when absent; need not sum to one.
        std: standard deviation of every component in every direction.

    Raises:
        UserError: shapes that disagree, or weights or std that are not positive.
    """

    name = "gaussian-mixture"

    means: Tensor
    log_weights: Tensor
    examples = (
        {"means": torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), "weights": [1.0, 2.0, 3.0]},
        {"means": torch.randn(4, 1, 7, 9, generator=torch.Generator().manual_seed(1)), "std": 0.3},
    )

    def __init__(self, means: Tensor, weights: Tensor | None = None, std: float = 1.0) -> None:
        super().__init__()
        weight = torch.ones(len(means)) if weights is None else weights
        if means.ndim < 3 or weight.shape != (len(means),) or not bool((weight > 0).all()) or not std > 0:
            raise UserError(
                f"prior 'gaussian-mixture': means must be (K, C, *spatial) with K positive weights and std > 0, got means "
                f"{tuple(means.shape)}, weights {tuple(weight.shape)}, std {std}"
            )
        self.means = means.double()
        self.log_weights = (weight.double() / weight.double().sum()).log()
        self.std = std
        self.event_shape = tuple(means.shape[1:])
        centre = torch.tensordot(self.log_weights.exp(), self.means, 1)
        reach = float((self.means - centre).flatten(1).norm(dim=1).max())
        # At ten times the reach the modes differ by a tenth of the noise: starting from white noise costs nothing.
        self.sigma_max = max(self.sigma_max, 10 * (reach + std))
        self.source = "analytic Gaussian mixture"
        self.sigma_min = min(self.sigma_min, std / 20)

    def _log_joint(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; m_k, v) up to a constant, (B, K), and v = std^2 + sigma^2 as a scalar or (B,)."""
        means = matching(self.means, x)
        variance = self.std**2 + sigma**2
        squared = torch.stack([((x - m) ** 2).flatten(1).sum(1) for m in means], 1)
        column = variance.view(-1, 1)
        size = math.prod(x.shape[1:])
        log = matching(self.log_weights, x) - squared / (2 * column) - size / 2 * column.log()
        return log, variance

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        log, variance = self._log_joint(x, sigma)
        centre = torch.tensordot(log.softmax(1), matching(self.means, x), 1)
        return centre + per_row(self.std**2 / variance, x) * (x - centre)

    def error(self, sigma: float) -> float:
        if self.error_curve is None:
            self.error_curve = measured_error(self, self.means[:1])
        return super().error(sigma)

    def bounds(self) -> tuple[float, float]:
        return float(self.means.min()) - 4 * self.std, float(self.means.max()) + 4 * self.std

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log density, up to a constant, of x = x0 + sigma n, (B,)."""
        return self._log_joint(x, sigma)[0].logsumexp(1)

    def sample(self, rng: ChainRandom, like: Tensor) -> Tensor:
        """Draw images (B, C, *spatial) of the dtype and device of `like`."""
        edges = self.log_weights.exp().cumsum(0).cpu()
        which = torch.searchsorted(edges, rng.uniform()).clamp(max=len(edges) - 1)
        means = self.means[which.to(self.means.device)].to(like)
        return means + self.std * rng.normal(means)
