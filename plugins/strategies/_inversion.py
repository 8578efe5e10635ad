"""Images back to the noise from which the probability flow makes them, exactly: BDIA (Zhang 2023), a start for ODE strategies."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._flow import eps

Pair = tuple[Tensor, Tensor]


def step(problem: Problem, pair: Pair, before: float, sigma: float, after: float, gamma: float = 1.0) -> Pair:
    """Bidirectional integration (Zhang 2023, equation 20) in variance-exploding coordinates; one network call.

    z' = gamma [z_before - (z + d(sigma -> before))] + z + d(sigma -> after), d(s -> t) = (t - s) eps(z, s): with gamma 1 the
    leapfrog method on any grid.

    Args:
        pair: states at the levels `before` and `sigma`.

    Returns:
        States at `sigma` and `after`.
    """
    earlier, z = pair
    slope = eps(problem, z, sigma)
    there = gamma * (earlier - z - (before - sigma) * slope) + z + (after - sigma) * slope
    return z, there


def unstep(problem: Problem, pair: Pair, before: float, sigma: float, after: float, gamma: float = 1.0) -> Pair:
    """The inverse of `step` in closed form: from states at `sigma` and `after` those at `before` and `sigma`.

    Rounding is multiplied by 1 / gamma each time.
    """
    z, there = pair
    slope = eps(problem, z, sigma)
    earlier = (there - z - (after - sigma) * slope) / gamma + z + (before - sigma) * slope
    return earlier, z


def invert(problem: Problem, image: Tensor, levels: Sequence[float], gamma: float = 1.0) -> Pair:
    """States at levels[0] and levels[1] from which `replay` makes this image; one call a level.

    Args:
        levels: descending, the last 0; three or more.
    """
    # The state before the image is that of one explicit step back.
    pair = image + levels[-2] * eps(problem, image, levels[-2]), image
    for before, sigma, after in reversed(list(zip(levels, levels[1:], levels[2:], strict=False))):
        pair = unstep(problem, pair, before, sigma, after, gamma)
    return pair


def replay(problem: Problem, pair: Pair, levels: Sequence[float], gamma: float = 1.0) -> Tensor:
    """The image to which `step` leads from states at levels[0] and levels[1]."""
    for before, sigma, after in zip(levels, levels[1:], levels[2:], strict=False):
        pair = step(problem, pair, before, sigma, after, gamma)
    return pair[1]


def origin(problem: Problem, levels: Sequence[float], inverted: float, rng: ChainRandom) -> Tensor:
    """Where a flow starts at levels[0]: noise, or a part of its variance from the linear reconstruction, inverted.

    Args:
        inverted: that part; 0 is noise alone, 1 the inverted image alone, the same for all samples of an item.

    Raises:
        UserError: `inverted` is not within 0 and 1, or there is no linear reconstruction.
    """
    if not 0 <= inverted <= 1:
        raise UserError(f"inverted must be from 0 to 1, got {inverted:g}")
    noise = levels[0] * rng.normal(problem.zeros())
    if inverted == 0:
        return noise
    if not isinstance(problem.operator, LinearOperator):
        raise UserError("inverted needs a linear operator, whose reconstruction is inverted; leave it at 0")
    back, _ = invert(problem, problem.baseline(), levels)
    return math.sqrt(inverted) * back + math.sqrt(1 - inverted) * noise
