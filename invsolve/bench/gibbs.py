"""Gibbs sampling of random walks with Laplace or sparse jumps given linear measurements: the gold standard of family "levy"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class JumpPosterior:
    """p(u | y) for y = M u + sigma n, with independent jumps u_k that are zero or Laplace; the signal is their sum.

    A Laplace number is Gaussian with an exponential variance w (Andrews and Mallows 1974), so given w and the indicators v of
    the jumps that are not zero, u is Gaussian, and given u, 1 / w is inverse Gaussian (Park and Casella 2008). Indicators are
    flipped one by one with u integrated out, which a rank-one update of the covariance of y makes cheap; then u is drawn at
    once, then w. That is a blocked Gibbs sampler of (v, u, w).

    Attributes:
        matrix: M (m, L), float64, of the jumps (the operator after the cumulative sum).
        y: (m,) one measurement for all chains, or (chains, m) one for each.
        sigma: noise standard deviation.
        scale: b, the Laplace density is exp(-|u| / b) / 2b.
        jumps: probability that a jump is not zero.
    """

    matrix: Tensor
    y: Tensor
    sigma: float
    scale: float
    jumps: float = 1.0

    def draw(self, chains: int, burn_in: int, keep: int, thin: int, seed: int) -> Tensor:
        """Jumps (keep, chains, L): of each chain, after `burn_in` sweeps, every `thin`-th state."""
        generator = torch.Generator().manual_seed(seed)
        length = self.matrix.shape[1]
        state = _State(
            y=self.y.double().expand(chains, -1),
            on=torch.ones(chains, length, dtype=torch.bool),
            variance=2 * self.scale**2 * _exponential(chains, length, generator=generator),
            generator=generator,
        )
        kept = []
        for sweep in range(burn_in + keep * thin):
            if self.jumps < 1:
                self._flip(state)
            u = self._jumps(state)
            self._variances(state, u)
            if sweep >= burn_in and (sweep - burn_in) % thin == 0:
                kept.append(u)
        return torch.stack(kept)

    def _flip(self, state: _State) -> None:
        """Draw each indicator given the others, y and w, with u integrated out."""
        count = self.y.shape[-1]
        weight = torch.where(state.on, state.variance, 0.0)
        noisy = self.sigma**2 * torch.eye(count, dtype=torch.float64)
        inverse = torch.linalg.inv(noisy + (self.matrix * weight[:, None]) @ self.matrix.T)
        coins = torch.rand(state.on.shape, generator=state.generator, dtype=torch.float64)
        odds = torch.log(coins) - torch.log1p(-coins)
        prior = torch.tensor(self.jumps, dtype=torch.float64).logit()
        for k, column in enumerate(self.matrix.T):
            image = inverse @ column
            # What column k would add to the covariance of y is taken off first, so that both states are seen alike.
            power, match = image @ column, (image * state.y).sum(1)
            now, w = state.on[:, k], state.variance[:, k]
            off = torch.where(now, 1 - w * power, 1.0)
            power, match = power / off, match / off
            gain = prior - torch.log1p(w * power) / 2 + w * match**2 / (2 * (1 + w * power))
            on = odds[:, k] < gain
            change = torch.where(on, w, 0.0) - torch.where(now, w, 0.0)
            factor = change / (1 + change * (image @ column))
            inverse.baddbmm_((-factor[:, None] * image)[:, :, None], image[:, None])
            state.on[:, k] = on

    def _jumps(self, state: _State) -> Tensor:
        """Draw u given v and w: Gaussian, in the coordinates u = sqrt(v w) z, in which nothing is singular."""
        root = torch.where(state.on, state.variance, 0.0).sqrt()
        seen = self.matrix * root[:, None] / self.sigma
        precision = seen.transpose(1, 2) @ seen + torch.eye(root.shape[1], dtype=torch.float64)
        lower = torch.linalg.cholesky(precision)
        right = (seen.transpose(1, 2) @ (state.y / self.sigma)[:, :, None])[:, :, 0]
        mean = torch.cholesky_solve(right[:, :, None], lower)
        white = torch.randn(root.shape, generator=state.generator, dtype=torch.float64)
        noise = torch.linalg.solve_triangular(lower.transpose(1, 2), white[:, :, None], upper=True)
        return root * (mean + noise)[:, :, 0]

    def _variances(self, state: _State, u: Tensor) -> None:
        """Draw w: from its posterior given the jump, from its prior where there is none."""
        given = inverse_gaussian_variance(u, self.scale, state.generator)
        fresh = 2 * self.scale**2 * _exponential(*u.shape, generator=state.generator)
        state.variance = torch.where(state.on, given, fresh)


@dataclass
class _State:
    y: Tensor
    on: Tensor
    variance: Tensor
    generator: torch.Generator


def _exponential(*shape: int, generator: torch.Generator) -> Tensor:
    return -torch.log1p(-torch.rand(shape, generator=generator, dtype=torch.float64))


def inverse_gaussian_variance(u: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Draw w given a Laplace number u ~ N(0, w), w exponential of mean 2 b^2: 1 / w is inverse Gaussian (1 / b|u|, 1 / b^2).

    Michael, Schucany and Haas (1976), with the smaller root written as a quotient, so that small u lose no digits.
    """
    size = u.abs().clamp_min(1e-30)
    squared = torch.randn(u.shape, generator=generator, dtype=torch.float64) ** 2
    half = scale * squared / (2 * size)
    root = 1 + half + (half * (half + 2)).sqrt()
    smaller = torch.rand(u.shape, generator=generator, dtype=torch.float64) * (1 + root) < root
    return scale * size * torch.where(smaller, root, 1 / root)
