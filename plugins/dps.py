"""DPS: diffusion posterior sampling (Chung 2023), for any differentiable operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve import hookimpl
from invsolve.contracts import schedules
from invsolve.contracts.problem import Problem
from invsolve.contracts.random import ChainRandom
from invsolve.contracts.strategy import State, Strategy


@dataclass(frozen=True)
class DPS(Strategy):
    """Ancestral sampling, each step followed by a gradient step on |y - A(D)| through the network.

    Chung et al., ICLR 2023, Algorithm 1, in variance-exploding coordinates. Known bias: the step length does not know the
    noise level, so the posterior's width is only roughly right. The norm is taken per sample, and the gradient is divided
    by the operator's norm, so that one `zeta` serves inpainting (norm 1) and tomography (norm in the hundreds). For
    Poisson noise entries are weighted by their precision (section 3.2).

    Args:
        steps: network calls, forward and backward; the reference takes 1000.
        zeta: guidance strength, 0.1 to 1 in the paper.
        clip: clamp D to [-1, 1] inside the gradient, as the reference does.
    """

    steps: int = 1000
    zeta: float = 1.0
    clip: bool = False

    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "operator-gradient")
    data_strength: ClassVar[Mapping[str, int]] = {"zeta": 1}
    mean_error: ClassVar[float] = 1.0
    std_ratio: ClassVar[tuple[float, float]] = (0.5, 2.0)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        with torch.enable_grad():
            x = state["x"].requires_grad_()
            estimate = problem.denoise(x, sigma)
            if self.clip:
                estimate = estimate.clamp(-1, 1)
            residual = problem.residual(estimate)
            misfit = problem.misfit(residual * problem.precision())
            (gradient,) = torch.autograd.grad(misfit.sum(), x)
        x, estimate = x.detach(), estimate.detach()
        ratio = (sigma_next / sigma) ** 2
        ancestral = estimate + ratio * (x - estimate) + sigma_next * math.sqrt(1 - ratio) * rng.normal(x)
        # The paper's step is taken in variance-preserving coordinates; this factor carries it over.
        kappa = math.sqrt((1 + sigma**2) * (1 + sigma_next**2))
        x = ancestral - self.zeta * kappa / problem.sensitivity() * gradient
        return {"x": x, "residual": problem.misfit(residual.detach())}


@hookimpl
def invsolve_strategies() -> Mapping[str, type]:
    return {"dps": DPS}
