"""One step in the singular basis (Kawar 2022): noise of the data and noise of the level are matched mode by mode."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.numerics.spectrum import safe_reciprocal


def noise_in_basis(problem: Problem, coefficients: Tensor) -> float | Tensor:
    """sigma_y, a number, or one a row, shaped to broadcast against coefficients (B, *basis)."""
    sigma = problem.sigma
    if not isinstance(sigma, Tensor):
        return sigma
    return sigma.to(coefficients.device, coefficients.dtype).reshape(-1, *[1] * (coefficients.ndim - 1))


def in_range(problem: Problem, residual: Tensor) -> Tensor:
    """A^+ residual, (B, C, *spatial)."""
    system = problem.svd()
    return system.from_basis(system.measurement_to_basis(residual) * safe_reciprocal(system.values))


def told(s: Tensor, sigma_y: float | Tensor) -> Tensor:
    """Whether a mode has data worth the name: its noise sigma_y / s is below 1, half the range of network images.

    The paper takes every s > 0. In a mode that the operator all but removes U'y is then noise, the same in every step and
    sample, and following it shifts the mean, the more so the more steps.
    """
    return s > sigma_y


def start_from_data(problem: Problem, noise: Tensor, sigma: float) -> Tensor:
    """z at the first level: pure noise, but around U'y / s in modes whose data noise sigma_y / s is below the level.

    Args:
        noise: standard normal images (B, C, *spatial).
    """
    system = problem.svd()
    white = system.to_basis(noise)
    sigma_y, inverse = noise_in_basis(problem, white), safe_reciprocal(system.values)
    seen = (system.values * sigma > sigma_y) & told(system.values, sigma_y)
    data = system.measurement_to_basis(problem.y) * inverse
    rest = (sigma**2 - (sigma_y * inverse) ** 2).clamp_min(0).sqrt()
    return sigma * noise + system.from_basis(torch.where(seen, data + (rest - sigma) * white, 0.0))


def step_in_basis(
    problem: Problem,
    x: Tensor,
    estimate: Tensor,
    noise: Tensor,
    sigma: float,
    sigma_next: float,
    eta: float,
    eta_b: float,
) -> Tensor:
    """z' from z = x and D = estimate, equations 7 and 8 of DDRM, in variance-exploding coordinates.

    Modes without data (see `told`): D + sigma' (sqrt(1 - eta^2) eps + eta n). Modes noisier than the level, s sigma' < sigma_y:
    d + sigma' (sqrt(1 - eta^2) (U'y - s d) / sigma_y + eta n). The others: (1 - eta_b) d + eta_b U'y / s, with noise that
    makes the variance sigma'^2.
    """
    system = problem.svd()
    keep = math.sqrt(1 - eta**2)
    free = estimate + sigma_next * (keep * (x - estimate) / sigma + eta * noise)
    d, white, moved = system.to_basis(estimate), system.to_basis(noise), system.to_basis(free - estimate)
    s, sigma_y, data = system.values, noise_in_basis(problem, d), problem.data_in_basis()
    inverse = safe_reciprocal(s)
    over = safe_reciprocal(sigma_y) if isinstance(sigma_y, Tensor) else 1 / sigma_y if sigma_y > 0 else 0.0
    # Both as what is added to d.
    noisy = sigma_next * (keep * (data - s * d) * over + eta * white)
    rest = (sigma_next**2 - (eta_b * sigma_y * inverse) ** 2).clamp_min(0).sqrt()
    clear = eta_b * (data * inverse - d) + rest * white
    seen = torch.where(s * sigma_next < sigma_y, noisy, clear)
    return free + system.from_basis(torch.where(told(s, sigma_y), seen - moved, 0.0))
