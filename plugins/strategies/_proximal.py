"""What the linear strategies share: the proximal data step with a tolerance tied to sigma, and the renoising step."""

from __future__ import annotations

import math

from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.numerics.krylov import CG


def correction(
    problem: Problem, residual: Tensor, variance: float, start: Tensor | None, sigma_next: float, iterations: int
) -> Tensor:
    """(A'A + sigma_y^2 / variance)^-1 A' residual: what the data add to an estimate of that mean squared error.

    Closed form where the operator has one, else conjugate gradients from the previous step's correction. They stop when
    the gradient has fallen to a part of its size that shrinks with the noise which the next step adds anyway.

    Args:
        residual: y - A(estimate).
        start: the previous correction, (B, C, *spatial).
        sigma_next: level to which the result is renoised.
        iterations: of conjugate gradients, at most.
    """
    tolerance = min(max(0.1 * sigma_next, 1e-3), 0.05)
    return problem.tikhonov(residual, variance, CG(tolerance, iterations, start))


def renoise(estimate: Tensor, direction: Tensor, noise: Tensor, sigma_next: float, fresh: float) -> Tensor:
    """estimate + sigma' (sqrt(1 - fresh^2) direction + fresh noise)."""
    return estimate + sigma_next * (math.sqrt(1 - fresh**2) * direction + fresh * noise)
