"""DPS: diffusion posterior sampling (Chung 2023), for any differentiable operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.linalg import inner, rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._stride import longest


@dataclass(frozen=True)
class DPS(Strategy):
    """Ancestral sampling with a gradient step through the network (Chung 2023); any noise.

    Ancestral sampling, each step with a gradient step on |y - A(D)| through the network.

    Chung et al., ICLR 2023, Algorithm 1, in variance-exploding coordinates. The paper's step length is set by hand, and
    suits one number of steps. By default it is fitted instead: D_y = D + a sigma^2 J' A' (y - A D), J the Jacobian of D, with
    the a that makes the image most probable along that line under the likelihood and the prior's covariance sigma^2 J
    (Tweedie's second-order formula). That needs a linear operator and Gaussian noise; elsewhere the paper's step is taken,
    divided by the operator's norm, so that one `zeta` serves inpainting (norm 1) and tomography (norm in the hundreds), and
    for Poisson noise with entries weighted by their precision (section 3.2). Norms are taken per sample. Known bias: one
    gradient does not reach what the operator hardly passes on; with the paper's length the posterior's width is only
    roughly right.

    Args:
        steps: network calls, forward and backward; the reference takes 1000.
        length: of the gradient step: fitted, on Karras' noise levels, or the paper's, on DDPM's.
        zeta: guidance strength: a factor of the fitted length, 0.1 to 1 for the paper's.
        clip: clamp D to [-1, 1] inside the gradient, as the reference does.
    """

    name = "dps"
    cost: ClassVar[str] = "forward + backward"

    steps: int = 1000
    length: Literal["fitted", "paper"] = "fitted"
    zeta: float = 1.0
    clip: bool = False

    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "operator-gradient")
    data_strength: ClassVar[Mapping[str, int]] = {"zeta": 0, "steps": 1}
    mean_error: ClassVar[float] = 0.4
    std_ratio: ClassVar[tuple[float, float]] = (0.95, 1.1)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.95, 1.55)

    def fits(self, problem: Problem) -> bool:
        """Whether the step length is fitted."""
        linear = isinstance(problem.operator, LinearOperator) and isinstance(problem.noise, Gaussian)
        return self.length == "fitted" and linear

    def schedule(self, problem: Problem) -> Tensor:
        low, high = problem.prior.sigma_min, problem.prior.sigma_max
        if self.fits(problem):
            return schedules.edm(self.steps, low, min(20.0, high))
        return schedules.ddpm_linear(self.steps, low, high)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        with torch.enable_grad():
            x = state["x"].requires_grad_()
            estimate = problem.denoise(x, sigma)
            if self.clip:
                estimate = estimate.clamp(-1, 1)
            residual = problem.residual(estimate)
            weighted = problem.misfit(residual * problem.precision())
            (gradient,) = torch.autograd.grad(weighted.sum(), x)
        x, estimate = x.detach(), estimate.detach()
        residual, misfit = residual.detach(), problem.misfit(residual.detach())
        fitted = self.fits(problem)
        if fitted:
            # The gradient of |r|^2 / 2 is that of |r| times |r|.
            change = -(sigma**2) * rows(misfit, x) * gradient
            length = self.zeta * rows(self.best(problem, residual, change), x)
            estimate, length = estimate + length * change, length * sigma**2 * rows(misfit, x)
        ratio = (sigma_next / sigma) ** 2
        new = estimate + ratio * (x - estimate) + sigma_next * math.sqrt(1 - ratio) * rng.normal(x)
        if not fitted:
            # The paper's step is taken in variance-preserving coordinates; this factor carries it over.
            kappa = math.sqrt((1 + sigma**2) * (1 + sigma_next**2))
            length = torch.as_tensor(self.zeta * kappa / problem.linear_norm()).to(x)
            new = new - length * gradient
        # Along its own gradient |r| falls by the gradient's norm times the length.
        return {"x": new, "residual": misfit, "stride": longest(state, length * gradient, gradient, weighted.detach())}

    def best(self, problem: Problem, residual: Tensor, change: Tensor) -> Tensor:
        """How much of change = sigma^2 J' A' r to take, (B,): least |r - a A c|^2 / sigma_y^2 + a^2 c' (sigma^2 J)^-1 c."""
        seen = problem.operator(change)
        # c' (sigma^2 J)^-1 c = <A' r, c> = <r, A c>.
        slope = inner(residual, seen).clamp_min(0)
        variance = torch.as_tensor(problem.sigma).flatten().to(slope) ** 2
        return slope / (inner(seen, seen) + variance * slope).clamp_min(torch.finfo(slope.dtype).tiny)
