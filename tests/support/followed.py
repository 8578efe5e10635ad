"""The variance of a solver's images of a Gaussian, followed exactly: each step is linear in the image and in its noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from invsolve.numerics.ode.base import Solver
from invsolve.numerics.random import ChainRandom


class Impulses(ChainRandom):
    """Its k-th draw is one in row k and zero elsewhere."""

    def __init__(self) -> None:
        super().__init__(0, [(0, 0)])
        self.draws = 0

    def normal(self, like: Tensor) -> Tensor:
        self.draws += 1
        return torch.zeros_like(like).index_fill(0, torch.tensor([self.draws]), 1.0)


def variance_drawn(solver: Solver, spectrum: Tensor, levels: Sequence[float], start: Tensor | float) -> Tensor:
    """Variance of independent numbers of variance `spectrum` (rows, columns), float64, as the solver draws them.

    Row 0 of the run follows the start, row k the k-th draw of noise; what they come to is added in squares.

    Args:
        solver: one that draws noise once a step at most.
        spectrum: the right variances.
        levels: noise levels, the last one 0.
        start: standard deviation of the start.
    """
    x = torch.zeros(len(levels) + 1, 1, *spectrum.shape, dtype=torch.float64)
    x[0] = start
    memory: Mapping[str, Tensor] = {}
    rng = Impulses()
    for sigma, after in pairwise(levels):
        x, memory = solver.step(lambda z, s: spectrum / (spectrum + s**2) * z, x, memory, sigma, after, rng)
    return x.square().sum(0)[0]
