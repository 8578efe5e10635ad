"""A few steps of reverse diffusion from a noise level to a clean image, as `daps` and `pnp-dm` take them inside each step."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom


def reverse(
    problem: Problem, x: Tensor, sigma: float, steps: int, churn: float, rng: ChainRandom
) -> tuple[Tensor, Tensor]:
    """Go from x at noise level `sigma` to a clean image by DPM-Solver++ 2M (Lu 2022) on an EDM grid.

    Args:
        x: (B, C, *spatial), an image plus sigma times white noise.
        steps: network calls; one gives D(x, sigma) itself.
        churn: 0 for the probability flow, which maps x to one image; 1 for the reverse SDE, which draws from
            p(x0 | x_sigma = x) as the steps grow.

    Returns:
        The clean image, and D(x, sigma) of the first call; both (B, C, *spatial).
    """
    low = min(problem.prior.sigma_min, sigma)
    # At the last level, sigma_min but for rounding, there is no way left to go in steps: they would have no length.
    levels = schedules.edm(steps, low, sigma).tolist() if steps > 1 and low < sigma * (1 - 1e-6) else [sigma, 0.0]
    levels[0] = sigma  # the grid gives it back but for rounding
    first = before = problem.denoise(x, sigma)
    gap = 0.0
    for k, (level, after) in enumerate(pairwise(levels)):
        estimate = first if k == 0 else problem.denoise(x, level)
        if after == 0:
            return estimate, first
        step = math.log(level / after)
        forecast = estimate if k == 0 else estimate + (estimate - before) * (step / (2 * gap))
        ratio, shrink = after / level, (after / level) ** churn
        x = ratio * shrink * x + (1 - ratio * shrink) * forecast
        if churn > 0:
            x = x + after * math.sqrt(1 - shrink**2) * rng.normal(x)
        before, gap = estimate, step
    raise AssertionError("a schedule ends at zero")


def reverse_euler(problem: Problem, x: Tensor, sigma: float, levels: int, rng: ChainRandom) -> Tensor:
    """The same by Euler-Maruyama down those of a fixed EDM grid's levels that lie below sigma, as the code of Wu 2024 does.

    The first call is told the grid's level, although the noise of x is sigma; the last step, without noise, doubles the way to
    D, as Euler's step of the reverse equation does.

    Args:
        levels: of the whole grid, from 80 to 0.002, or the prior's limits.
    """
    prior = problem.prior
    grid = schedules.edm(levels, max(0.002, prior.sigma_min), min(80.0, prior.sigma_max)).tolist()
    below = [level for level in grid if level < sigma]
    for level, after in pairwise(below):
        estimate = problem.denoise(x, level)
        x = x + 2 * (after - level) / level * (x - estimate)
        if after > 0:
            x = x + math.sqrt(2 * level * (level - after)) * rng.normal(x)
    return x
