"""SIRT: simultaneous iterations weighted by the sums of the operator's rows and columns (Gilbert 1972)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._classical import going, met, nothing, over, unfinished


@dataclass(frozen=True)
class SIRT(Strategy):
    """Simultaneous iterations over all rays, as CT software has them; no prior.

    x' = x + relaxation C A' R (y - A x), R and C one over the sums of A's rows and columns.

    Gilbert 1972, in the form with both sums that tomography packages use; it goes to the weighted least squares for relaxation
    below 2 and operators of weights >= 0, such as line integrals and blur with a positive kernel. It begins at an image of
    physical zero, and is regularised by stopping: each image goes on until |y - Ax| is what the noise explains, or `steps`
    are done. Known bias: smooth images, as fine details come last; what the operator does not see stays zero; no uncertainty.

    Args:
        steps: iterations at most, one forward and one adjoint operator call each; where they end before the data are met,
            the diagnostic `at_ceiling` says so.
        relaxation: factor of each step, between 0 and 2.
        discrepancy: stop where the residual is so many times its expected norm; 0 to take all steps.
    """

    name = "sirt"
    paper: ClassVar[Paper | None] = Paper(
        "Iterative methods for the three-dimensional reconstruction of an object from projections",
        ("Peter Gilbert",),
        1972,
        "doi:10.1016/0022-5193(72)90180-4",
    )
    cost: ClassVar[str] = "none"

    steps: int = 200
    relaxation: float = 1.0
    discrepancy: float = 1.0

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1, "discrepancy": -1}
    needs: ClassVar[tuple[str, ...]] = ("linear", "gaussian")
    draws: ClassVar[bool] = False
    mean_error: ClassVar[float] = 1.22

    def __post_init__(self) -> None:
        if not 0 < self.relaxation < 2:
            raise UserError(f"strategy 'sirt': relaxation must be between 0 and 2, got {self.relaxation}")

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(self.steps)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = nothing(problem)
        seen, back = problem.operator(torch.ones_like(x)), problem.linear.adjoint(torch.ones_like(problem.y))
        if seen.is_complex() or bool((seen < 0).any()) or bool((back < 0).any()):
            raise UserError(
                "strategy 'sirt' needs an operator of real weights >= 0, such as line integrals; take strategy 'cgls'"
            )
        converged = met(problem, {"converged": unfinished(problem)}, problem.residual(x), self.discrepancy)
        return {"x": x, "row": over(seen), "column": over(back), "converged": converged}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, residual = state["x"], problem.residual(state["x"])
        converged = met(problem, state, residual, self.discrepancy)
        change = state["column"] * problem.linear.adjoint(state["row"] * residual)
        x = x + going(converged, x) * self.relaxation * change
        return state | {"x": x, "converged": converged, "residual": problem.misfit(residual)}
