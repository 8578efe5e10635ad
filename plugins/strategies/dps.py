"""DPS: diffusion posterior sampling (Chung 2023) as published, for any differentiable operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.noise import Gaussian
from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._stride import longest

#: The paper's zeta for Poisson noise over that for Gaussian noise (FFHQ, all linear operators).
COUNTS = 0.3


@dataclass(frozen=True)
class DPS(Strategy):
    """Ancestral sampling with a gradient step through the network, as published (Chung 2023); low noise.

    Ancestral sampling, each step with a gradient step of set length on |y - A(D)| through the network.

    Chung et al., ICLR 2023, Algorithm 1, in variance-exploding coordinates. y and A are divided by the operator's norm, so
    that one `zeta` serves inpainting (norm 1) and tomography (norm in the hundreds); noise that is not Gaussian has its
    entries weighted by their precision (section 3.2). Norms are taken per sample.

    Known bias: the step's length knows the noise only through the residual, so the data are fitted more closely than the
    noise allows and samples are too narrow, the more so the smaller the image; where the noise is not far below the
    prior's spread it refuses. `dps-fitted` finds the length from the noise.

    Args:
        steps: network calls, forward and backward.
        zeta: guidance strength, 0.1 to 1 in the paper; for noise that is not Gaussian 0.3 of it is taken, as in the paper.
        clip: clamp D to the prior's range, -1 to 1, inside the gradient, as the reference does; a prior of no known range is
            left alone.
    """

    name = "dps"
    paper: ClassVar[Paper | None] = Paper(
        "Diffusion Posterior Sampling for General Noisy Inverse Problems",
        ("Hyungjin Chung", "Jeongsol Kim", "Michael T. Mccann", "Marc L. Klasky", "Jong Chul Ye"),
        2023,
        "arXiv:2209.14687",
    )
    cost: ClassVar[str] = "forward + backward"

    steps: int = 1000
    zeta: float = 1.0
    clip: bool = True

    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "operator-gradient", "low-noise", "gaussian-like")
    data_strength: ClassVar[Mapping[str, int]] = {"zeta": 0, "steps": 1}
    mean_error: ClassVar[float] = 0.85
    std_ratio: ClassVar[tuple[float, float]] = (0.05, 1.35)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.05, 2.75)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        with torch.enable_grad():
            x = state["x"].requires_grad_()
            estimate = problem.denoise(x, sigma)
            if self.clip and problem.prior.data_range is not None:
                estimate = estimate.clamp(-1, 1)
            residual = problem.residual(estimate)
            weighted = problem.misfit(residual * problem.precision())
            (gradient,) = torch.autograd.grad(weighted.sum(), x)
        x, estimate = x.detach(), estimate.detach()
        ratio = (sigma_next / sigma) ** 2
        new = estimate + ratio * (x - estimate) + sigma_next * math.sqrt(1 - ratio) * rng.normal(x)
        # The paper's step is taken in variance-preserving coordinates; kappa carries it over.
        kappa = math.sqrt((1 + sigma**2) * (1 + sigma_next**2))
        step = self.strength(problem) * kappa / problem.linear_norm() * gradient
        # Along its own gradient |r| falls by the gradient's norm times the length.
        stride = longest(state, step, gradient, weighted.detach())
        return {"x": new - step, "residual": problem.misfit(residual.detach()), "stride": stride}

    def strength(self, problem: Problem) -> float:
        """zeta, for this noise."""
        return self.zeta if isinstance(problem.noise, Gaussian) else COUNTS * self.zeta
