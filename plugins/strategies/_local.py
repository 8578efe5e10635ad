"""The likelihood near an image as a linear measurement with Gaussian noise: what `mmps` solves with, whatever the physics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import Linearised, LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import rows

#: What is solved here only suggests directions, or stands for what a few products left over.
COARSE = CG(1e-2, 30)


@dataclass(frozen=True)
class Local:
    """residual(x) = noise with covariance diag(variance), A, or what the noise makes of it on average, replaced by its tangent.

    Attributes:
        residual: image (B, C, *spatial) -> y - A(point) - A'(point) (image - point), like y.
        forward: direction of the image -> direction of y, the tangent's.
        adjoint: its transpose.
        white: r, v -> v A' (diag(variance) + v A A')^-1 r, roughly: the image's mean given y = r, were its covariance v I;
            v is a number.
        direction: r, v -> p and A'p, where p = (diag(variance) + v A A')^-1 r up to a factor, roughly.
        variance: of the noise, broadcasts against y.
    """

    residual: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    white: Callable[[Tensor, float], Tensor]
    direction: Callable[[Tensor, float], tuple[Tensor, Tensor]]
    variance: Tensor

    def relative_precision(self) -> tuple[Tensor, Tensor]:
        """The precision of each entry of y over its mean in the row, broadcasts against y; and one over that mean, (B,) or (1,).

        All 1 where the noise of a row is white, free of noise or not.
        """
        if self.variance.ndim == 0 or self.variance[0].numel() == 1:
            return torch.ones_like(self.variance), self.variance.flatten()
        level = 1 / (1 / self.variance).flatten(1).mean(1)
        return rows(level, self.variance) / self.variance, level


def local(problem: Problem, point: Tensor) -> Local:
    """The likelihood near `point` (B, C, *spatial); exact, and the same everywhere, for linear operator and Gaussian noise."""
    if isinstance(problem.operator, LinearOperator) and isinstance(problem.noise, Gaussian):
        return _given(problem, problem.operator)
    return _tangent(problem, point)


def _given(problem: Problem, operator: LinearOperator) -> Local:
    def white(r: Tensor, v: float) -> Tensor:
        return problem.tikhonov(r, v, COARSE)

    def direction(r: Tensor, v: float) -> tuple[Tensor, Tensor]:
        rho = problem.rho(v)
        closed = problem.closed_tikhonov(r, rho)
        if closed is None:
            p = r - operator(white(r, v))
            return p, operator.adjoint(p)
        # (A'A + rho) closed = A'r, which spares an adjoint.
        return r - operator(closed), rho * closed

    variance = torch.as_tensor(problem.sigma, device=problem.y.device, dtype=problem.y.real.dtype) ** 2
    return Local(problem.residual, operator, operator.adjoint, white, direction, variance)


def _tangent(problem: Problem, point: Tensor) -> Local:
    tangent, here = problem.operator.linearise(point), point.detach()
    predicted, noise = tangent.value if isinstance(tangent, Linearised) else tangent(here), problem.noise
    std = noise.std(predicted).expand(predicted.shape)
    gain, expected = noise.slope(predicted), noise.mean(predicted)
    # A bin that expects nothing would otherwise count as exact, as would noise-free data.
    least = 0.05 * std.flatten(1).mean(1) + 1e-5 * problem.misfit(problem.y) / problem.dof() ** 0.5
    variance = std.maximum(rows(least, std)) ** 2

    def forward(x: Tensor) -> Tensor:
        return gain * tangent(x)

    def adjoint(v: Tensor) -> Tensor:
        return tangent.adjoint(gain * v)

    def white(r: Tensor, v: float) -> Tensor:
        def normal(x: Tensor) -> Tensor:
            return adjoint(forward(x) / variance) + x / v

        return problem.watched(COARSE).solve(normal, adjoint(r / variance)).x

    def direction(r: Tensor, v: float) -> tuple[Tensor, Tensor]:
        p = (r - forward(white(r, v))) / variance
        return p, adjoint(p)

    def residual(x: Tensor) -> Tensor:
        return problem.y - expected - forward(x - here)

    return Local(residual, forward, adjoint, white, direction, variance)
