"""What a strategy needs, held against what a problem has."""

from __future__ import annotations

import torch

from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import NEEDS, Strategy
from invsolve.errors import UserError


def check_needs(strategy: Strategy, problem: Problem) -> None:
    """Raise UserError when the problem lacks what the strategy declares to need."""
    operator = problem.operator
    have = {
        "prior": lambda: problem.known is not None,
        "prior-gradient": lambda: problem.known is not None and problem.known.differentiable,
        "linear": lambda: isinstance(operator, LinearOperator),
        "maskable": lambda: isinstance(operator, MaskableOperator),
        "operator-gradient": lambda: _differentiable(problem),
        "linearisation": lambda: linear_gaussian(problem) or _differentiable(problem),
        "gaussian": lambda: problem.noise.name == "gaussian",
    }
    for need in strategy.needs:
        if not have[need]():
            names = {"operator": operator.name or type(operator).__name__}
            prior = getattr(problem.known, "name", "") or type(problem.known).__name__
            got = {
                "prior": "none is given",
                "prior-gradient": f"{prior!r} cannot",
                "gaussian": f"it is {problem.noise.name}",
            }
            reason = got.get(need, f"{names['operator']!r} is not" if need != "operator-gradient" else "it is not")
            raise UserError(f"strategy {strategy.name or type(strategy).__name__!r} needs {NEEDS[need]}; {reason}")


def linear_gaussian(problem: Problem) -> bool:
    """Whether the operator is linear and the noise Gaussian."""
    return isinstance(problem.operator, LinearOperator) and isinstance(problem.noise, Gaussian)


def _differentiable(problem: Problem) -> bool:
    with torch.enable_grad():
        probe = problem.zeros()[:1].requires_grad_()
        return bool(problem.operator(probe).requires_grad)
