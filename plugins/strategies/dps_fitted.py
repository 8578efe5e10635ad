"""DPS with a fitted step: the gradient of diffusion posterior sampling, as long as the noise and the prior's spread call for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.linalg import inner, rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._local import Local, local
from invsolve.plugins.strategies._stride import longest


@dataclass(frozen=True)
class FittedDPS(Strategy):
    """`dps` with a step length fitted to the noise; any differentiable operator, noise without heavy tails.

    Ancestral sampling with D_y = D + a sigma^2 J' A' W (y - A D), J the Jacobian of D, W the precision of y, and the best a.

    The gradient is that of Chung et al., ICLR 2023, whose length is set by hand and suits one noise level and one number of
    steps. Here a makes the image most probable along that line under the likelihood and the prior's covariance sigma^2 J
    (Tweedie's second-order formula). An operator that is not linear is replaced by its tangent at D, noise that is not Gaussian
    by Gaussian noise of the variance expected there: for counts that gradient is that of their likelihood.

    Known bias: one gradient a step does not reach what the operator hardly passes on.

    Args:
        steps: network calls, forward and backward.
        zeta: factor of the fitted length.
    """

    name = "dps-fitted"
    builds_on: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "Diffusion Posterior Sampling for General Noisy Inverse Problems",
            ("Hyungjin Chung", "Jeongsol Kim", "Michael T. Mccann", "Marc L. Klasky", "Jong Chul Ye"),
            2023,
            "arXiv:2209.14687",
        ),
    )
    cost: ClassVar[str] = "forward + backward"
    preference: ClassVar[int | None] = 1

    steps: int = 300
    zeta: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "linearisation", "gaussian-like")
    data_strength: ClassVar[Mapping[str, int]] = {"zeta": 0, "steps": 1}
    mean_error: ClassVar[float] = 0.4
    std_ratio: ClassVar[tuple[float, float]] = (0.95, 1.1)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.95, 1.75)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.edm(self.steps, problem.prior.sigma_min, min(20.0, problem.prior.sigma_max))

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        with torch.enable_grad():
            x = state["x"].requires_grad_()
            denoised = problem.denoise(x, sigma)
        estimate = denoised.detach()
        near = local(problem, estimate)
        residual = near.residual(estimate)
        precision, variance = near.relative_precision()
        (product,) = torch.autograd.grad(denoised, x, near.adjoint(precision * residual))
        x, change = x.detach(), sigma**2 * product
        length = best_length(near, precision * residual, precision, variance, change)
        step = self.zeta * rows(length, x) * change
        estimate = estimate + step
        # The slope of |r| in the weighted norm, along which it falls by the slope's norm times the length.
        weighted = inner(residual, precision * residual).sqrt()
        slope = product / rows(weighted.clamp_min(torch.finfo(weighted.dtype).tiny), x)
        ratio = (sigma_next / sigma) ** 2
        new = estimate + ratio * (x - estimate) + sigma_next * math.sqrt(1 - ratio) * rng.normal(x)
        return {"x": new, "residual": problem.misfit(residual), "stride": longest(state, step, slope, weighted)}


def best_length(near: Local, weighted: Tensor, precision: Tensor, variance: Tensor, change: Tensor) -> Tensor:
    """How much of c = sigma^2 J' A' W r to take, (B,): least (r - a A c)' W (r - a A c) / variance + a^2 c' (sigma^2 J)^-1 c.

    Args:
        near: the likelihood near D.
        weighted: W r.
        precision, variance: W, relative, and the variance to which it belongs, (B,).
        change: c.
    """
    seen = near.forward(change)
    # c' (sigma^2 J)^-1 c = <A' W r, c> = <W r, A c>.
    slope = inner(weighted, seen).clamp_min(0)
    curvature = inner(seen, precision * seen) + variance * slope
    return slope / curvature.clamp_min(torch.finfo(slope.dtype).tiny)
