"""Richardson-Lucy deconvolution (Richardson 1972, Lucy 1974): the multiplicative iterations for counts, for any A >= 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.contracts.views import InPhysicalUnits
from invsolve.errors import UserError
from invsolve.numerics.linalg import rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._classical import going, met, nothing, over, unfinished


@dataclass(frozen=True)
class RichardsonLucy(Strategy):
    """Multiplicative deconvolution of counts, as microscopes have it (Richardson 1972); no prior.

    u' = u / (A'1) A'(y / (A u)), from a flat image: the expectation-maximisation steps to the likeliest u >= 0 for counts.

    Richardson 1972, Lucy 1974; with A'1, which is 1 inside of an image that is blurred, for operators in general (MLEM, Shepp
    and Vardi 1982). u is the image above `floor`; data below what `floor` explains count as zero. It works for Gaussian noise
    as it does for counts, and is regularised by stopping: each image goes on until |y - Au| is what the noise explains, or
    `steps` are done. Known bias: noise is amplified the more the longer it runs, what is not seen stays flat, nothing lies
    below the floor; no uncertainty.

    Args:
        steps: iterations at most, one forward and one adjoint operator call each; where they end before the data are met,
            the diagnostic `at_ceiling` says so.
        discrepancy: stop where the residual is so many times its expected norm; 0 to take all steps.
        floor: the value that no pixel is below, network units; default is that of physical zero.
    """

    name = "richardson-lucy"
    paper: ClassVar[Paper | None] = Paper(
        "Bayesian-Based Iterative Method of Image Restoration",
        ("William Hadley Richardson",),
        1972,
        "doi:10.1364/JOSA.62.000055",
    )
    builds_on: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "An iterative technique for the rectification of observed distributions",
            ("L. B. Lucy",),
            1974,
            "doi:10.1086/111605",
        ),
    )
    cost: ClassVar[str] = "none"

    steps: int = 100
    discrepancy: float = 1.0
    floor: float | None = None

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1, "discrepancy": -1}
    needs: ClassVar[tuple[str, ...]] = ("gaussian-like",)
    draws: ClassVar[bool] = False
    mean_error: ClassVar[float] = 1.18
    # Images about zero have a floor below it.
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"floor": -1.0},)

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(self.steps)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        operator, factor, bottom = self.above(problem)
        ones, data = torch.ones_like(bottom), problem.y - problem.operator(bottom)
        seen, passed = operator(ones), operator.adjoint(torch.ones_like(data))
        if seen.is_complex() or bool((seen < 0).any()) or bool((passed < 0).any()):
            raise UserError(
                "strategy 'richardson-lucy' needs an operator of real weights >= 0, such as a blur; take strategy 'cgls'"
            )
        flux = data.clamp_min(0).flatten(1).sum(1) / seen.flatten(1).sum(1).clamp_min(torch.finfo(seen.dtype).tiny)
        flat = rows(flux, ones) * ones
        return {
            "x": bottom + flat / factor,
            "above": flat,
            "data": data,
            "over": over(passed),
            "converged": unfinished(problem),
        }

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        operator, factor, bottom = self.above(problem)
        above, data = state["above"], state["data"]
        predicted = operator(above)
        residual = data - predicted
        converged = met(problem, state, residual, self.discrepancy)
        # Where nothing is predicted, nothing could be seen.
        new = above * state["over"] * operator.adjoint(data.clamp_min(0) * over(predicted))
        new = torch.where((state["over"] > 0) & (going(converged, above) > 0), new, above)
        misfit = problem.misfit(residual)
        return state | {"x": bottom + new / factor, "above": new, "converged": converged, "residual": misfit}

    def above(self, problem: Problem) -> tuple[LinearOperator, float | Tensor, Tensor]:
        """A linear operator, a factor and the image of the floor, so that A(x) - A(floor) = linear(factor (x - floor)).

        Raises:
            UserError: the operator is not linear.
        """
        operator: Operator = problem.operator
        factor: float | Tensor = 1.0
        bottom = nothing(problem)
        if isinstance(operator, InPhysicalUnits):
            factor, offset = operator.scale.broadcast(bottom)
            operator, bottom = operator.inner, bottom - offset / factor
        if not isinstance(operator, LinearOperator):
            raise UserError("strategy 'richardson-lucy' needs a linear operator; take strategy 'daps'")
        return operator, factor, bottom if self.floor is None else torch.full_like(bottom, self.floor)
