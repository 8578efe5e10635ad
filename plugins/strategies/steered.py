"""Steered: the denoised image is moved onto the data before each step of any solver (Nair 2023), for linear operators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.krylov import CG
from invsolve.numerics.ode import solvers
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class Steered(Strategy):
    """A pseudo-inverse correction of each denoised image (Nair 2023).

    Sample with D_y = D + V A'(A V A' + sigma_y^2)^-1 (y - A D), V the prior's measured error at this noise level.

    Nair et al., ICCV 2023, section 3.2, linear case: D + A^+ (y - A D), which this is at sigma_y = 0. With noise the
    pseudo-inverse would carry it into the image; the proximal solve weighs it against what the prior leaves unknown. Their
    sampler is ancestral; their inner repetitions are left out.

    Known bias: without the Jacobian of D, hidden parts of the image hear of the data only through later steps: their mean
    lags, and they are too wide.

    Args:
        steps: noise levels.
        solver: what takes the steps, see `invsolve.solvers.SOLVERS`; the paper's is "ancestral".
    """

    name = "steered"
    paper: ClassVar[Paper | None] = Paper(
        "Steered Diffusion: A Generalized Framework for Plug-and-Play Conditional Image Synthesis",
        (
            "Nithin Gopalakrishnan Nair",
            "Anoop Cherian",
            "Suhas Lohit",
            "Ye Wang",
            "Toshiaki Koike-Akino",
            "Vishal M. Patel",
            "Tim K. Marks",
        ),
        2023,
        "arXiv:2310.00224",
    )

    steps: int = 100
    solver: str = "dpmpp-2m-sde"

    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.4
    std_ratio: ClassVar[tuple[float, float]] = (1.0, 1.3)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.95, 1.6)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"steps": 50},)

    def __post_init__(self) -> None:
        solvers.solver(self.solver)

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=solvers.solver(self.solver).steps_within(evaluations))

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.edm(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        def steered(x: Tensor, level: float) -> Tensor:
            estimate, rho = problem.denoise(x, level), problem.rho(problem.prior.error(level))
            return problem.prox(estimate, problem.y, rho, CG(1e-3, 30))

        chosen = solvers.solver(self.solver).over(self.steps)
        x, memory = chosen.step(steered, state["x"], state, sigma, sigma_next, rng)
        return {"x": x, **memory}
