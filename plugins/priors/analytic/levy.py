"""Lévy process: an analytic prior of random walks with Gaussian, Laplace or sparse jumps, denoised exactly."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor

from invsolve.contracts.operator import matching
from invsolve.contracts.paper import Paper
from invsolve.contracts.prior import Prior, per_row
from invsolve.errors import UserError
from invsolve.numerics.modes import Modes
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.priors.analytic._chain import Lattice
from invsolve.plugins.priors.analytic._drawing import measured_error


class LevyProcess(Prior):
    """Random walks with Gaussian, Laplace or sparse jumps; analytic, for tests and for proof.

    Signals whose increments are independent: x_k = x_(k-1) + u_k, x_0 = u_0, white noise summed up.

    The test signals of Bohra et al. (IEEE OJSP 2023) and Zach et al. (ICLR 2026). Denoising is the posterior mean: a matrix for
    Gaussian increments; otherwise message passing on a lattice (`_chain.py`), deterministic, within 1e-3 sigma and 0.4 % of the
    root mean square error that is left anyway. Vector-Jacobian products are central differences; the Jacobian is symmetric.
    `error` is measured once, by Monte Carlo with a fixed seed.

    Args:
        length: L, numbers in a signal.
        increments: law of u: gaussian; laplace; bernoulli-laplace, which is zero or, with probability `jumps`, Laplace.
        std: standard deviation of an increment; a signal's grows from it to sqrt(L) times it.
        jumps: share of increments that are not zero, of bernoulli-laplace.

    Raises:
        UserError: a length, std or share that is not positive, or a share above one.
    """

    name = "levy"
    paper = Paper(
        "A Statistical Benchmark for Diffusion Posterior Sampling Algorithms",
        ("Martin Zach", "Youssef Haouchat", "Michael Unser"),
        2025,
        "arXiv:2509.12821",
    )

    basis: Tensor
    spectrum: Tensor
    examples = (
        {"length": 16, "std": 0.1},
        {"length": 12, "increments": "gaussian", "std": 0.2},
        {"length": 12, "increments": "bernoulli-laplace", "std": 0.1, "jumps": 0.2},
    )

    def __init__(
        self,
        length: int = 64,
        increments: Literal["gaussian", "laplace", "bernoulli-laplace"] = "laplace",
        std: float = 0.1,
        jumps: float = 0.1,
    ) -> None:
        super().__init__()
        if length < 1 or not std > 0 or not 0 < jumps <= 1:
            raise UserError(
                f"prior 'levy': length and std must be positive and jumps in (0, 1], got length {length}, std {std}, "
                f"jumps {jumps}"
            )
        self.increments, self.std = increments, std
        self.jumps = jumps if increments == "bernoulli-laplace" else 1.0
        self.event_shape = (1, length)
        index = torch.arange(1, length + 1, dtype=torch.float64)
        self.spectrum, self.basis = torch.linalg.eigh(std**2 * torch.minimum(index[:, None], index))
        self.sigma_max = max(self.sigma_max, 5 * std * length)
        self.sigma_min = min(self.sigma_min, std / 20)
        self.source = f"analytic random walk, {increments} increments"

    @property
    def scale(self) -> float:
        """b of the Laplace law of a jump."""
        return self.std / math.sqrt(2 * self.jumps)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.increments == "gaussian":
            basis = matching(self.basis, x)
            gain = matching(self.spectrum, x) / (matching(self.spectrum, x) + per_row(sigma, x) ** 2)
            return ((x @ basis) * gain) @ basis.T
        result = _Denoise.apply(x.flatten(1), sigma, self)
        assert isinstance(result, Tensor)
        return result.view(x.shape)

    def lattices(self, sigma: Tensor) -> list[tuple[Lattice, Any]]:
        """The lattice of each noise level, with the rows that have it."""
        if sigma.ndim == 0:
            return [(Lattice(float(sigma), self.scale, self.jumps), slice(None))]
        return [
            (Lattice(level, self.scale, self.jumps), (sigma == level).nonzero()[:, 0])
            for level in sigma.unique().tolist()
        ]

    def error(self, sigma: float) -> float:
        if self.increments == "gaussian":
            return float((self.spectrum * sigma**2 / (self.spectrum + sigma**2)).mean())
        if self.error_curve is None:
            self.error_curve = measured_error(self, self.spectrum)
        return super().error(sigma)

    def modes(self, like: Tensor) -> Modes:
        # Whatever the law of the increments: independent ones of one variance have this covariance.
        basis = self.basis.to(like)
        return Modes(self.spectrum.to(like), lambda x: x @ basis, lambda c: c @ basis.T)

    def sample(self, rng: ChainRandom, like: Tensor) -> Tensor:
        """Draw signals (B, 1, L) of the dtype and device of `like`."""
        blank = like.new_zeros(len(rng.chains), 4, self.event_shape[1] or 1)
        first, second, third, coin = rng.normal(blank).unbind(1)
        # A normal number times the root of an exponential one is Laplace; half a sum of two squares is exponential.
        laplace = self.scale * third * (first**2 + second**2).sqrt()
        increments = self.std * first if self.increments == "gaussian" else laplace
        if self.jumps < 1:
            increments = increments * (coin < NormalDist().inv_cdf(self.jumps))
        return increments.cumsum(1)[:, None]


class _Denoise(torch.autograd.Function):
    """D of a lattice with its vector-Jacobian product; the Jacobian is symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sigma: Tensor, prior: LevyProcess) -> Tensor:
        out, centres = torch.empty_like(x), torch.empty_like(x, dtype=torch.float64)
        for lattice, rows in prior.lattices(sigma):
            means, centres[rows] = lattice.denoise(x[rows].double())
            out[rows] = means.to(x.dtype)
        ctx.save_for_backward(x, sigma, centres)
        ctx.prior = prior
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, sigma, centres = ctx.saved_tensors
        out = torch.empty_like(x)
        for lattice, rows in ctx.prior.lattices(sigma):
            product = lattice.product(x[rows].double(), centres[rows], gradient[rows].double())
            out[rows] = product.to(x.dtype)
        return out, None, None
