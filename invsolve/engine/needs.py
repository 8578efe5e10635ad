"""What a strategy needs, held against what a problem has."""

from __future__ import annotations

import torch

from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.contracts.returned import called
from invsolve.contracts.strategy import NEEDS, Strategy
from invsolve.errors import Unsuited, UserError


def check_needs(strategy: Strategy, problem: Problem) -> None:
    """Raise Unsuited when the problem lacks what the strategy declares to need.

    Raises:
        UserError: the strategy is to take no step, or fewer.
    """
    steps = getattr(strategy, "steps", None)
    if isinstance(steps, int) and steps < 1:
        raise UserError(f"{called('strategy', strategy)}: steps={steps} makes no step; take 1 or more")
    need = _unmet(type(strategy), problem)
    if need is None:
        return
    operator, noise, known = problem.operator, problem.noise, problem.known
    got = {
        "prior": "none is given",
        "prior-gradient": f"{getattr(known, 'name', '') or type(known).__name__!r} cannot",
        "gaussian": f"it is {noise.name or type(noise).__name__}",
        "operator-gradient": "it is not",
    }
    reason = got.get(need, f"{operator.name or type(operator).__name__!r} is not")
    raise Unsuited(
        f"strategy {strategy.name or type(strategy).__name__!r} needs {NEEDS[need]}; {reason}",
        lambda other: issubclass(other, Strategy) and _unmet(other, problem) is None,
    )


def _unmet(strategy: type[Strategy], problem: Problem) -> str | None:
    """The first need of a strategy that a problem does not meet."""
    operator, known = problem.operator, problem.known
    have = {
        "prior": lambda: known is not None,
        "prior-gradient": lambda: known is not None and known.differentiable,
        "linear": lambda: isinstance(operator, LinearOperator),
        "maskable": lambda: isinstance(operator, MaskableOperator),
        "operator-gradient": lambda: _differentiable(problem),
        "linearisation": lambda: linear_gaussian(problem) or _differentiable(problem),
        "gaussian": lambda: isinstance(problem.noise, Gaussian),
    }
    return next((need for need in strategy.needs if not have[need]()), None)


def linear_gaussian(problem: Problem) -> bool:
    """Whether the operator is linear and the noise Gaussian."""
    return isinstance(problem.operator, LinearOperator) and isinstance(problem.noise, Gaussian)


def _differentiable(problem: Problem) -> bool:
    with torch.enable_grad():
        probe = problem.zeros()[:1].requires_grad_()
        return bool(problem.operator(probe).requires_grad)
