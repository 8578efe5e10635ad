"""CGLS: conjugate gradients on the normal equations (Hestenes & Stiefel 1952), stopped when the data are met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.numerics.linalg import inner, rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._classical import going, met, nothing, unfinished


@dataclass(frozen=True)
class CGLS(Strategy):
    """Conjugate gradients on |y - Ax|^2, stopped at the noise; no prior.

    x_k, least |y - A x|^2 over the first k Krylov directions of A'A, from an image of physical zero.

    Hestenes and Stiefel 1952, section 10, in the form of Bjorck (CGLS). It is regularised by stopping: each image goes on
    until |y - Ax| is what the noise explains (Morozov's discrepancy principle), or `steps` are done. Known bias: what the
    operator hardly passes on stays zero, what it does not see at all is zero; no image is preferred to another beyond that,
    and there is no uncertainty.

    Args:
        steps: iterations at most, one forward and one adjoint operator call each; where they end before the data are met,
            the diagnostic `at_ceiling` says so.
        discrepancy: stop where the residual is so many times its expected norm; 0 to take all steps.
    """

    name = "cgls"
    paper: ClassVar[Paper | None] = Paper(
        "Methods of Conjugate Gradients for Solving Linear Systems",
        ("Magnus R. Hestenes", "Eduard Stiefel"),
        1952,
        "doi:10.6028/jres.049.044",
    )
    cost: ClassVar[str] = "none"

    steps: int = 100
    discrepancy: float = 1.0

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1, "discrepancy": -1}
    needs: ClassVar[tuple[str, ...]] = ("linear", "gaussian")
    draws: ClassVar[bool] = False
    mean_error: ClassVar[float] = 1.22

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(self.steps)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = nothing(problem)
        residual = problem.residual(x)
        slope = problem.linear.adjoint(residual)
        state = {"x": x, "rest": residual, "direction": slope, "square": inner(slope, slope)}
        return state | {"converged": met(problem, {"converged": unfinished(problem)}, residual, self.discrepancy)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        direction, square = state["direction"], state["square"]
        tiny = torch.finfo(square.dtype).tiny
        seen = problem.operator(direction)
        # Rows that are done take steps of no length, whatever else is in the batch.
        length = going(state["converged"], direction) * rows(square / inner(seen, seen).clamp_min(tiny), direction)
        x = state["x"] + length * direction
        rest = state["rest"] - rows(length.flatten(), seen) * seen
        slope = problem.linear.adjoint(rest)
        new = inner(slope, slope)
        direction = slope + rows(new / square.clamp_min(tiny), slope) * direction
        converged = met(problem, state, rest, self.discrepancy)
        misfit = problem.misfit(rest)
        return {
            "x": x,
            "rest": rest,
            "direction": direction,
            "square": new,
            "converged": converged,
            "residual": misfit,
        }
