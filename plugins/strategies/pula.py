"""pULA (Blumenthal 2025): preconditioned Langevin steps on prior and exact likelihood while the noise falls."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class PULA(Strategy):
    """Preconditioned Langevin steps on prior and exact likelihood (Blumenthal 2025).

    z' = z + g M grad log pi + sqrt(2 g) M^(1/2) n with pi = p_sigma(z) p(y | A z) and M = (A'A / sigma_y^2 + 1 / sigma^2)^-1.

    Blumenthal, Holliber, Tamir and Uecker (BART's `sample`): the likelihood is exact at every level and never annealed; M
    takes long steps where the data say little. The root of M is drawn by perturbing both terms, so that a step is one solve.
    The defaults are the paper's; ours is that the solve has no iterations where the operator has a closed form.

    Known bias: p_sigma times the likelihood is not the noised posterior, only the last level's is right. A step of finite
    length makes what prior and data determine alike up to 1 / (1 - g / 2) too wide in variance, and hidden parts move by
    g sigma^2 / w^2 a step, w their width: their spread is decided at high noise.

    Args:
        steps: noise levels, from `start` to a thousandth of it, or the prior's limits.
        inner: Langevin steps a level, one network call each.
        gamma: length of a step, g, between 0 and 2.
        start: noise level to start from, network units; at most the prior's largest.
        iterations: of the inner solver, at most, where the operator has no closed form.
    """

    name = "pula"
    paper: ClassVar[Paper | None] = Paper(
        "Fast and Robust Diffusion Posterior Sampling for MR Image Reconstruction Using the Preconditioned Unadjusted "
        "Langevin Algorithm",
        ("Moritz Blumenthal", "Tina Holliber", "Jonathan I. Tamir", "Martin Uecker"),
        2025,
        "arXiv:2512.05791",
    )

    steps: int = 100
    inner: int = 1
    gamma: float = 0.5
    start: float = 10.0
    iterations: int = 10

    inner_limit: ClassVar[str] = "iterations"
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.2
    std_ratio: ClassVar[tuple[float, float]] = (1.0, 1.15)
    eigen_ratio: ClassVar[tuple[float, float]] = (1.0, 1.2)

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 2:
            raise UserError(
                f"strategy 'pula': gamma must be between 0 and 2, beyond which it diverges; got {self.gamma}"
            )

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // self.inner, 2))

    def schedule(self, problem: Problem) -> Tensor:
        high = min(self.start, problem.prior.sigma_max)
        low = max(1e-3 * self.start, problem.prior.sigma_min)
        return torch.logspace(math.log10(high), math.log10(low), self.steps + 1, dtype=torch.float64)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        sigma = self.schedule(problem)[0].item()
        x = self.solve(problem, sigma * rng.normal(problem.zeros()), problem.y + self.noise(problem, rng), sigma)
        return {"x": x}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, g = state["x"], self.gamma
        for _ in range(self.inner):
            estimate, residual = problem.denoise(x, sigma_next), problem.residual(x)
            around = g * (estimate - x) + math.sqrt(2 * g) * sigma_next * rng.normal(x)
            x = x + self.solve(problem, around, g * residual + math.sqrt(2 * g) * self.noise(problem, rng), sigma_next)
        return {"x": x, "residual": problem.misfit(residual)}

    def noise(self, problem: Problem, rng: ChainRandom) -> Tensor:
        """sigma_y n, shaped like y."""
        level = torch.as_tensor(problem.sigma, dtype=problem.y.real.dtype, device=problem.y.device)
        return level * rng.normal(problem.y)

    def solve(self, problem: Problem, around: Tensor, data: Tensor, sigma: float) -> Tensor:
        """M (A' data / sigma_y^2 + around / sigma^2), iterations beginning at `around`, as the paper's."""
        return problem.prox(around, data, problem.rho(sigma**2), CG(1e-4, self.iterations))
