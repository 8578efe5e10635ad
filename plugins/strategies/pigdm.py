"""PiGDM: pseudoinverse-guided diffusion (Song 2023), the likelihood with an isotropic variance of the denoised image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.linalg import inner, rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._proximal import correction


@dataclass(frozen=True)
class PiGDM(Strategy):
    """The likelihood with the prior's measured error as its variance (Song 2023).

    DDIM with D_y = D + (sigma^2 / r^2) J' (A'A + sigma_y^2 / r^2)^-1 A' (y - A D), J the Jacobian of D.

    Song et al., ICLR 2023, equations 7 and 8: x0 given z is taken for N(D, r^2). By default r^2 = v(sigma), the prior's
    measured mean squared error, and D_y is exactly E[x0 | z, y] for a white Gaussian prior. With variance "paper" r^2 =
    sigma^2 / (1 + sigma^2) and the guidance is added to the DDIM step with the paper's weight 1 (Algorithm 1). Where the
    prior varies more than v along some directions the change would overshoot, so it is cut to the length that suits the
    likelihood and the prior's covariance sigma^2 J best. Known bias: the error of D is taken for white.

    Args:
        steps: network calls, forward and backward.
        variance: r^2: the prior's measured error, or the paper's.
        eta: 1 for ancestral sampling, 0 for the deterministic DDIM.
        weight: of the guidance, with variance "paper".
        start: noise level to start from, network units; at most the prior's largest.
        iterations: of the inner solver, at most, where the operator has no closed form.
    """

    name = "pigdm"
    paper: ClassVar[Paper | None] = Paper(
        "Pseudoinverse-Guided Diffusion Models for Inverse Problems",
        ("Jiaming Song", "Arash Vahdat", "Morteza Mardani", "Jan Kautz"),
        2023,
        "openreview:9_gsMA8MRKQ",
    )
    cost: ClassVar[str] = "forward + backward"

    steps: int = 100
    variance: Literal["measured", "paper"] = "measured"
    eta: float = 1.0
    weight: float = 1.0
    start: float = 20.0
    iterations: int = 20

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    inner_limit: ClassVar[str] = "iterations"
    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.25
    std_ratio: ClassVar[tuple[float, float]] = (0.9, 1.0)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.9, 1.0)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.edm(self.steps, problem.prior.sigma_min, min(self.start, problem.prior.sigma_max))

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        return {"x": x, "shift": torch.zeros_like(x)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        measured = self.variance == "measured"
        variance = problem.prior.error(sigma) if measured else sigma**2 / (1 + sigma**2)
        with torch.enable_grad():
            x = state["x"].detach().requires_grad_()
            denoised = problem.denoise(x, sigma)
        estimate = denoised.detach()
        residual = problem.residual(estimate)
        shift = correction(problem, residual, variance, state["shift"], sigma_next, self.iterations)
        (guidance,) = torch.autograd.grad(denoised, x, shift)
        x = x.detach()
        if measured:
            change = sigma**2 / variance * guidance
            estimate = estimate + rows(self.length(problem, residual, change, shift, variance), x) * change
        s = self.eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        new = estimate + math.sqrt(sigma_next**2 - s**2) * (x - estimate) / sigma + s * rng.normal(x)
        if not measured:
            new = new + self.weight * guidance
        return {"x": new, "shift": shift, "residual": problem.misfit(residual)}

    def length(self, problem: Problem, residual: Tensor, change: Tensor, shift: Tensor, variance: float) -> Tensor:
        """How much of the change to take, (B,): the minimiser of the negative log posterior along it, at most 1."""
        seen = problem.operator(change)
        curvature = inner(seen, seen) + inner(shift, problem.rho(variance) * change)
        return (inner(residual, seen) / curvature.clamp_min(torch.finfo(seen.real.dtype).tiny)).clamp(0, 1)
