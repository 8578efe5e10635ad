"""Noise schedules: pure functions from a step count to descending sigmas that end at 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def edm(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Karras 2022, eq. 5: `steps` levels from sigma_max to sigma_min, then 0; (steps + 1,) float64."""
    ramp = torch.linspace(1, 0, steps, dtype=torch.float64)
    levels = (sigma_min ** (1 / rho) + ramp * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def geometric(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """`steps` levels from sigma_max to sigma_min, each the same part of the one before, then 0; (steps + 1,) float64."""
    levels = torch.logspace(math.log10(sigma_max), math.log10(sigma_min), steps, dtype=torch.float64)
    return torch.cat([levels, levels.new_zeros(1)])


def straight(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """`steps` levels equally spaced in a rectified flow's time t = sigma / (1 + sigma), then 0; (steps + 1,) float64."""
    high, low = (sigma / (1 + sigma) for sigma in (sigma_max, sigma_min))
    time = torch.linspace(high, low, steps, dtype=torch.float64)
    return torch.cat([time / (1 - time), time.new_zeros(1)])


def ddpm_quadratic(steps: int, sigma_min: float = 0.0, sigma_max: float = math.inf) -> Tensor:
    """The DDPM schedule thinned to `steps` times whose squares are equally spaced, more of them at low noise; (steps + 1,).

    DiffPIR's grid (Zhu 2023): of the 1000 levels, falling, those at floor(sqrt(linspace(0, 1000^2, steps))), the last at 999.
    """
    levels = _ddpm_levels(sigma_min, sigma_max)
    index = torch.linspace(0, len(levels) ** 2, steps, dtype=torch.float64).sqrt().floor().long()
    return torch.cat([levels[index.clamp(max=len(levels) - 1)], levels.new_zeros(1)])


def ddpm_linear(steps: int, sigma_min: float = 0.0, sigma_max: float = math.inf) -> Tensor:
    """The DDPM schedule (Ho 2020: beta from 1e-4 to 0.02 in 1000), thinned to `steps` equally spaced times; (steps + 1,).

    Levels are sigma = sqrt((1 - alpha_bar) / alpha_bar), 157 down to 0.01, restricted to [sigma_min, sigma_max] before
    thinning so that no step is spent where the prior was not trained.
    """
    levels = _ddpm_levels(sigma_min, sigma_max)
    times = torch.linspace(0, len(levels) - 1, steps, dtype=torch.float64)
    below = times.floor().long().clamp(max=len(levels) - 2)
    log = levels.log()
    thinned = torch.lerp(log[below], log[below + 1], times - below).exp()
    return torch.cat([thinned, levels.new_zeros(1)])


def _ddpm_levels(sigma_min: float, sigma_max: float) -> Tensor:
    """All levels of the DDPM schedule within [sigma_min, sigma_max], falling."""
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    levels = ((1 - alpha_bar) / alpha_bar).sqrt().flip(0)
    return levels[(levels >= sigma_min) & (levels <= sigma_max)]


def cosine_rates(steps: int, low: float = 0.02, high: float = 0.95) -> Tensor:
    """Diffusion angle between signal rates `low` and `high` (Nichol 2021, as ADS uses it); (steps + 1,), not ending at 0."""
    angle = torch.linspace(math.acos(low), math.acos(high), steps + 1, dtype=torch.float64)
    return angle.tan()
