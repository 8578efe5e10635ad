"""MCG: manifold-constrained gradient (Chung 2022): the gradient step of DPS, then a projection onto the noisy data."""

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
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._proximal import correction
from invsolve.plugins.strategies._stride import longest


@dataclass(frozen=True)
class MCG(Strategy):
    """`dps` with a projection onto the noised data (Chung 2022); low noise.

    Ancestral sampling, a gradient step on |y - A(D)|, then x + K (y + sigma' A n - A x): data noised to the next level.

    Chung et al., NeurIPS 2022, Algorithm 1 (per-sample norms, the operator's norm divided out, as `dps`). K is the
    pseudo-inverse for noise-free data, as in the paper; for noisy data (A'A + sigma_y^2 / sigma'^2)^-1 A', which trusts
    the data where the chain is noisier than they are: the paper's projection would copy their noise into the image. Known
    bias: the gradient's length does not know the noise level, and the projection narrows the samples.

    Args:
        steps: network calls, forward and backward.
        zeta: guidance strength, 0.1 to 1 in the paper.
        iterations: of the inner solver, at most, where the operator has no closed form.
    """

    name = "mcg"
    paper: ClassVar[Paper | None] = Paper(
        "Improving Diffusion Models for Inverse Problems using Manifold Constraints",
        ("Hyungjin Chung", "Byeongsu Sim", "Dohoon Ryu", "Jong Chul Ye"),
        2022,
        "arXiv:2206.00941",
    )
    cost: ClassVar[str] = "forward + backward"

    steps: int = 100
    zeta: float = 0.5
    iterations: int = 20

    data_strength: ClassVar[Mapping[str, int]] = {"zeta": 0, "steps": 1}
    inner_limit: ClassVar[str] = "iterations"
    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "linear", "gaussian", "low-noise")
    mean_error: ClassVar[float] = 0.75
    std_ratio: ClassVar[tuple[float, float]] = (0.1, 0.75)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.1, 1.15)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        with torch.enable_grad():
            x = state["x"].requires_grad_()
            estimate = problem.denoise(x, sigma)
            residual = problem.residual(estimate)
            (gradient,) = torch.autograd.grad(problem.misfit(residual).sum(), x)
        x, estimate, residual = x.detach(), estimate.detach(), residual.detach()
        ratio = (sigma_next / sigma) ** 2
        x = estimate + ratio * (x - estimate) + sigma_next * math.sqrt(1 - ratio) * rng.normal(x)
        kappa = math.sqrt((1 + sigma**2) * (1 + sigma_next**2))
        push = self.zeta * kappa / problem.operator_norm() * gradient
        x = x - push
        noised = problem.residual(x - sigma_next * rng.normal(x))
        # Not zero at the end: noise-free data, and only they, are then still projected onto.
        variance = max(sigma_next, 1e-3 * sigma) ** 2
        x = x + correction(problem, noised, variance, None, sigma_next, self.iterations)
        misfit = problem.misfit(residual)
        return {"x": x, "residual": misfit, "stride": longest(state, push, gradient, misfit)}
