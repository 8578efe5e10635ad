"""What iterations without a prior share: where they begin, and when an image meets its data."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State
from invsolve.numerics.linalg import rows


def nothing(problem: Problem) -> Tensor:
    """The image of physical value zero, air, in network units, (B, C, *spatial)."""
    blank = problem.blank()
    return blank if problem.shift is None else blank - problem.shift[1]


def unfinished(problem: Problem) -> Tensor:
    """The state's `converged` at first, int32 (B,)."""
    return torch.zeros(problem.batch, dtype=torch.int32, device=problem.y.device)


def met(problem: Problem, state: State, residual: Tensor, discrepancy: float) -> Tensor:
    """`converged` (B,) of rows whose residual is within the noise: |residual| <= discrepancy times its expected value.

    Morozov's rule. With `discrepancy` 0 no row is, but for an exact fit.
    """
    within = problem.misfit(residual) <= discrepancy * problem.expected_misfit()
    return torch.maximum(state["converged"], within.to(state["converged"]))


def going(converged: Tensor, like: Tensor) -> Tensor:
    """1 in rows that go on, 0 in those that are done, shaped to broadcast against (B, ...)."""
    return rows(1 - converged.to(like.real.dtype), like)


def over(sums: Tensor) -> Tensor:
    """One over sums (B, ...), zero where nothing is summed but for rounding."""
    least = 1e-6 * rows(sums.flatten(1).amax(1), sums)
    return torch.where(sums > least, 1 / sums.clamp_min(torch.finfo(sums.dtype).tiny), 0.0)
