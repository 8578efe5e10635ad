"""What a strategy needs, held against what a problem has, its noise included."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.noise import Gaussian, Noise
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.contracts.returned import called
from invsolve.contracts.strategy import NEEDS, Strategy
from invsolve.errors import Unsuited, UserError
from invsolve.numerics.random import ChainRandom

#: The most that noise counted as low may be, of what the prior's images vary by.
LOW_NOISE = 0.4

#: What of a noise a strategy may need.
NOISE_NEEDS: dict[str, Callable[[Noise], bool]] = {
    "gaussian": lambda noise: isinstance(noise, Gaussian),
    "gaussian-like": lambda noise: noise.gaussian_like,
    "noise-slope": lambda noise: noise.has_slope,
}


#: Steps of a strategy, a thousand times those of any paper.
_MOST_STEPS = 10**6


def takes_noise(strategy: type[Strategy], noise: Noise) -> bool:
    """Whether a strategy has what it needs of the noise, whatever the operator and the prior."""
    return all(met(noise) for need, met in NOISE_NEEDS.items() if need in strategy.needs)


def check_needs(strategy: Strategy, problem: Problem, scaled: bool = True) -> None:
    """Raise Unsuited when the problem lacks what the strategy declares to need.

    Args:
        strategy: what is to run.
        problem: what it is to run on.
        scaled: the problem is in network units; else what depends on them is left for later.

    Raises:
        UserError: the strategy is to take no step, or fewer, or so many that the levels alone would fill the memory.
    """
    steps = getattr(strategy, "steps", None)
    if isinstance(steps, int) and steps < 1:
        raise UserError(f"{called('strategy', strategy)}: steps={steps} makes no step; take 1 or more")
    if isinstance(steps, int) and steps > _MOST_STEPS:
        raise UserError(f"{called('strategy', strategy)}: steps={steps} would never end; take at most {_MOST_STEPS}")
    need = _unmet(type(strategy), problem, scaled)
    if need is None:
        return
    operator, noise, known = problem.operator, problem.noise, problem.known
    got = {
        "prior": "none is given",
        "prior-gradient": f"{getattr(known, 'name', '') or type(known).__name__!r} cannot",
        **dict.fromkeys(NOISE_NEEDS, f"it is {noise.name or type(noise).__name__}"),
        "operator-gradient": "it is not",
        "tangent": f"{operator.name or type(operator).__name__!r} is flat over ranges of x ({operator.flat})",
    }
    reason = got.get(need, f"{operator.name or type(operator).__name__!r} is not")
    if need == "low-noise":
        part = noise_over_spread(problem)
        reason = f"it is {part:.2g} of that, and more than {LOW_NOISE:g} would be fitted as if it were signal"
    raise Unsuited(
        f"strategy {strategy.name or type(strategy).__name__!r} needs {NEEDS[need]}; {reason}",
        lambda other: issubclass(other, Strategy) and _unmet(other, problem, scaled) is None,
    )


def noise_over_spread(problem: Problem) -> float:
    """Root mean square of the noise over what the prior's images vary by, seen through the operator at its largest gain.

    Of several rows the noisiest. The gain of an operator that is not linear is that of its tangent at a typical image.
    """
    prior, y = problem.prior, problem.y
    spread = math.sqrt(prior.error(prior.sigma_max))
    expected = problem.noise_level()
    with torch.no_grad():
        if isinstance(problem.operator, LinearOperator):
            gain = problem.operator_norm()
        else:
            # A problem of its own, so that this call is not counted as the run's.
            one = replace(problem, y=y[:1])
            image = one.denoise(one.zeros(), prior.sigma_max)
            image = image + spread * ChainRandom(0, [(0, 0)]).normal(image)
            gain = problem.operator.linearise(image).norm()
    seen = gain * spread
    return float(expected.max()) / seen if seen > 0 else math.inf


def _unmet(strategy: type[Strategy], problem: Problem, scaled: bool) -> str | None:
    """The first need of a strategy that a problem does not meet."""
    operator, known = problem.operator, problem.known
    have: dict[str, Callable[[], bool]] = {
        "prior": lambda: known is not None,
        "prior-gradient": lambda: known is not None and known.differentiable,
        "linear": lambda: isinstance(operator, LinearOperator),
        "maskable": lambda: isinstance(operator, MaskableOperator),
        "operator-gradient": lambda: _differentiable(problem),
        "linearisation": lambda: linear_gaussian(problem) or _differentiable(problem),
        "tangent": lambda: not operator.flat,
        **{need: partial(met, problem.noise) for need, met in NOISE_NEEDS.items()},
        "low-noise": lambda: not scaled or noise_over_spread(problem) <= LOW_NOISE,
    }
    return next((need for need in strategy.needs if not have[need]()), None)


def linear_gaussian(problem: Problem) -> bool:
    """Whether the operator is linear and the noise Gaussian."""
    return isinstance(problem.operator, LinearOperator) and isinstance(problem.noise, Gaussian)


def _differentiable(problem: Problem) -> bool:
    with torch.enable_grad():
        probe = problem.zeros()[:1].requires_grad_()
        return bool(problem.operator(probe).requires_grad)
