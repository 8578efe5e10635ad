"""Split: guidance and the prior's flow in turn, so that multistep solvers see the flow alone (Wizadwongsa 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import inner, rows
from invsolve.numerics.ode import solvers
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._inversion import origin


@dataclass(frozen=True)
class Split(Strategy):
    """Lie-Trotter or Strang splitting around a high-order solver (Wizadwongsa 2023).

    Lie-Trotter or Strang splitting of dx/dsigma = (x - D) / sigma - sigma grad log p(y | x).

    Wizadwongsa and Suwajanakorn, ICLR 2023, Algorithms 1 and 2 (LTSP, STSP). The solver's history holds D without guidance, which
    is what keeps high orders stable. The guidance is that of Song et al. (PiGDM, ICLR 2023, eq. 7) with the prior's
    measured error V: grad log p(y | x) = J' A'(A V A' + sigma_y^2)^-1 (y - A D), J the Jacobian of D; it never moves D past the
    best fit in its direction, which keeps early steps stable and the posterior's mean in place.

    Known bias: V stands for white errors, and it takes p(x0 | x) for a Gaussian.

    Args:
        steps: noise levels.
        solver: of the prior's flow, see `invsolve.solvers.SOLVERS`; the paper's is "plms".
        splitting: "lie", guidance, then flow, three evaluations a step; "strang", half of the guidance, flow, the other
            half, five.
        inverted: part of the start's variance that is the linear reconstruction, brought back to noise by BDIA; 0: noise alone.
    """

    name = "split"
    paper: ClassVar[Paper | None] = Paper(
        "Accelerating Guided Diffusion Sampling with Splitting Numerical Methods",
        ("Suttisak Wizadwongsa", "Supasorn Suwajanakorn"),
        2023,
        "arXiv:2301.11558",
    )
    builds_on: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "Pseudoinverse-Guided Diffusion Models for Inverse Problems",
            ("Jiaming Song", "Arash Vahdat", "Morteza Mardani", "Jan Kautz"),
            2023,
            "openreview:9_gsMA8MRKQ",
        ),
        Paper(
            "Exact Diffusion Inversion via Bi-directional Integration Approximation",
            ("Guoqiang Zhang", "J. P. Lewis", "W. Bastiaan Kleijn"),
            2023,
            "arXiv:2307.10829",
        ),
    )
    cost: ClassVar[str] = "forward + backward"

    steps: int = 60
    solver: str = "dpmpp-2m"
    splitting: Literal["lie", "strang"] = "lie"
    inverted: float = 0.0

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.3
    std_ratio: ClassVar[tuple[float, float]] = (0.9, 1.05)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.55, 1.1)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"steps": 33},)

    def __post_init__(self) -> None:
        solvers.solver(self.solver)

    def at_cost(self, evaluations: int) -> Self:
        guidance = 2 if self.splitting == "lie" else 4
        chosen, steps = solvers.solver(self.solver), 2
        while chosen.calls(steps + 1) + guidance * (steps + 1) <= evaluations:
            steps += 1
        return replace(self, steps=steps)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.edm(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": origin(problem, self.schedule(problem).tolist(), self.inverted, rng)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        # Nothing is left to guide at level 0: there the first half takes all.
        halves = self.splitting == "strang" and sigma_next > 0
        # The guidance pulls like 1 / sigma^2: its share of the way is taken in log sigma, which no step is too long for.
        share = 1 - (sigma_next / sigma) ** (0.5 if halves else 1.0)
        shift, residual = self.guidance(problem, state["x"], sigma)
        x = state["x"] + share * shift
        chosen = solvers.solver(self.solver).over(self.steps)
        x, memory = chosen.step(problem.denoise, x, state, sigma, sigma_next, rng)
        if halves:
            shift, _ = self.guidance(problem, x, sigma_next)
            x = x + share * shift
        return {"x": x, **memory, "residual": problem.misfit(residual)}

    def guidance(self, problem: Problem, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """sigma^2 grad log p(y | x), by which the data move D; and the residual y - A D."""
        operator, variance = problem.linear, problem.prior.error(sigma)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            estimate = problem.denoise(x, sigma)
            residual = problem.residual(estimate.detach())
            pull = problem.tikhonov(residual, variance, CG(1e-3, 30)).detach()
            (product,) = torch.autograd.grad(estimate, x, pull / variance)
        # Where errors are not white, V is too small for some: never move D past the best fit in its direction.
        shift = sigma**2 * product
        seen = operator(shift)
        fit = inner(residual, seen) / inner(seen, seen).clamp_min(torch.finfo(x.dtype).tiny)
        return rows(fit.clamp(0, 1), shift) * shift, residual
