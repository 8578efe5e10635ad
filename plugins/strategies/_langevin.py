"""The length of a Langevin step at a noise level, by its signal-to-noise ratio, the same for all samples."""

from __future__ import annotations

from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.numerics.linalg import norm

#: The least part of the noise that a prior is taken to tell from the image. Where less is claimed, as an unmeasured error
#: curve may at low levels, a step would be longer than half the level's variance and widen the finest details.
_LEAST_SHARE = 0.1


def langevin_length(problem: Problem, snr: float, sigma: float) -> float:
    """2 (snr |n| / |score|)^2 of Song et al., ICLR 2021, Algorithm 4, with the norms that are expected at this level.

    The published norms are means over a batch. Those of a single sample would make its step long where the score happens to
    be small, which in few dimensions is near the modes: samples come out too wide. Over d pixels |n|^2 is d, and |score|^2
    is d (sigma^2 - V) / sigma^4, V the mean squared error of D: |x - x0|^2 is |x - D|^2 + |D - x0|^2 on average.

    Args:
        snr: signal-to-noise ratio.
        sigma: noise level, network units.
    """
    share = 1 - problem.prior.error(sigma) / sigma**2
    return 2 * (snr * sigma) ** 2 / max(share, _LEAST_SHARE)


def length_of_norms(snr: float, noise: Tensor, score: Tensor) -> Tensor:
    """2 (snr |n| / |score|)^2 of each row, (B,): Algorithm 4 with the norms of this noise and score."""
    return 2 * (snr * norm(noise) / norm(score)) ** 2
