"""What a denoiser leaves wrong at each noise level, measured on held-out images: the prior's error curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from invsolve.contracts.prior import Prior, per_row
from invsolve.errors import Interrupted
from invsolve.numerics.random import ChainRandom

LEVELS = 16
#: Held-out images that are measured, at most.
MEASURED = 128
_NOISE = 5


class Denoiser(Protocol):
    """What has an error at each noise level: a prior, or a closed form."""

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x], as `Prior.denoise`."""


def log_spaced(low: float, high: float, count: int = LEVELS) -> list[float]:
    """Rising noise levels, equally spaced in their logarithm, ends included."""
    ramp = torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64)
    return ramp.exp().clamp(low, high).tolist()


@torch.no_grad()
def mean_squared_error(
    prior: Denoiser,
    images: Tensor,
    sigmas: Sequence[float],
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    should_stop: Callable[[], bool] | None = None,
) -> list[float]:
    """The mean squared error of D(x + sigma n, sigma) against x, per pixel, for each sigma.

    Args:
        prior: on `device`.
        images: (N, C, *spatial), network units, on the CPU.
        sigmas: noise levels; image i meets the same noise at each, whatever the batch size.
        batch_size: images at once.
        device: where to compute.
        should_stop: asked between batches.

    Raises:
        Interrupted: when that says so.
    """
    total = [0.0] * len(sigmas)
    for first in range(0, len(images), batch_size):
        clean = images[first : first + batch_size]
        noise = ChainRandom(_NOISE, [(first + i, 0) for i in range(len(clean))]).normal(clean).to(device)
        clean = clean.to(device)
        for k, sigma in enumerate(sigmas):
            if should_stop is not None and should_stop():
                raise Interrupted("stopped")
            level = torch.full((len(clean),), sigma, device=device)
            error = prior.denoise(clean + per_row(level, clean) * noise, level) - clean
            total[k] += float(error.square().mean()) * len(clean)
    return [value / len(images) for value in total]


def error_curve(
    prior: Prior,
    images: Tensor,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, list[float]]:
    """The curve that `Prior.error_curve` holds: 16 levels from `sigma_min` to `sigma_max`. Arguments as above."""
    sigmas = log_spaced(prior.sigma_min, prior.sigma_max)
    mse = mean_squared_error(prior, images, sigmas, batch_size, device, should_stop)
    return {"sigma": sigmas, "mse": mse}
