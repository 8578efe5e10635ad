"""The probability flow as a map from noise to image, its way back, and exact gradients through it by the adjoint method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from invsolve.contracts.problem import Problem


def times(steps: int, problem: Problem) -> list[float]:
    """Ends of `steps` equal steps of a flow's time t = 1 / (1 + sigma), from the prior's largest level to t = 1."""
    first = 1 / (1 + problem.prior.sigma_max)
    return torch.linspace(first, 1, steps + 1, dtype=torch.float64).tolist()


def velocity(problem: Problem, x: Tensor, t: float) -> Tensor:
    """(D - x) / (1 - t), x = t x0 + (1 - t) n: where a flow's network points to."""
    t = max(t, 1 / (1 + problem.prior.sigma_max))
    return (problem.denoise(x / t, (1 - t) / t) - x) / (1 - t)


def midpoint(problem: Problem, x: Tensor, ends: Sequence[float]) -> Tensor:
    """Integrate dx / dt = v by the midpoint rule over steps that end at `ends`, forwards or backwards in time.

    The midpoint rule never asks for v at t = 1, where it does not exist; backwards its first half step takes v from beside it.
    """
    for t, after in pairwise(ends):
        step = after - t
        at = min(t, 1 - abs(step) / 2)
        middle = x + step / 2 * velocity(problem, x, at)
        x = x + step * velocity(problem, middle, t + step / 2)
    return x


def eps(problem: Problem, x: Tensor, sigma: float) -> Tensor:
    """(x - D) / sigma, the right-hand side of the probability flow dx / dsigma."""
    return (x - problem.denoise(x, sigma)) / sigma


def descend(problem: Problem, x: Tensor, levels: Sequence[float]) -> list[Tensor]:
    """All states of Euler's method (DDIM) from levels[0] on; the last is D where the last level is 0."""
    states = [x]
    for sigma, after in pairwise(levels):
        states.append(states[-1] + (after - sigma) * eps(problem, states[-1], sigma))
    return states


def adjoint(problem: Problem, states: Sequence[Tensor], levels: Sequence[float], gradient: Tensor) -> Tensor:
    """The gradient with respect to the first state of what has `gradient` with respect to the last.

    da / dsigma = -(d eps / dx)' a, by Euler's method backwards on the same grid: the exact derivative of `descend`. One forward
    and one backward pass a step; no more than one step's activations are in memory at a time.
    """
    a = gradient
    for x, (sigma, after) in zip(reversed(states[:-1]), reversed(list(pairwise(levels))), strict=True):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (product,) = torch.autograd.grad(eps(problem, x, sigma), x, a)
        a = a + (after - sigma) * product
    return a
