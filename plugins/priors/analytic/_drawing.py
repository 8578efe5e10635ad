"""What the analytic priors share: measuring how much their denoiser leaves unknown."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from invsolve.numerics.random import ChainRandom


class Analytic(Protocol):
    """A prior that can be sampled."""

    sigma_min: float
    sigma_max: float

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor: ...

    def sample(self, rng: ChainRandom, like: Tensor) -> Tensor: ...


def measured_error(prior: Analytic, like: Tensor, levels: int = 32, draws: int = 128) -> dict[str, list[float]]:
    """Mean squared error of D over the prior's own samples, as `Prior.error_curve` wants it; always the same draws.

    Args:
        like: gives the device; the error is measured in float64.
        levels: noise levels, equally spaced in log sigma over the prior's range.
        draws: samples a level.
    """
    rng = ChainRandom(0, [(0, s) for s in range(draws)])
    clean = prior.sample(rng, like.double())
    sigmas = torch.logspace(math.log10(prior.sigma_min), math.log10(prior.sigma_max), levels).tolist()
    errors = []
    with torch.no_grad():
        for step, sigma in enumerate(sigmas, start=1):
            level = torch.tensor(sigma, dtype=clean.dtype, device=clean.device)
            estimate = prior.denoise(clean + level * rng.at(step).normal(clean), level)
            errors.append(float((estimate - clean).square().mean()))
    return {"sigma": sigmas, "mse": errors}
