"""Total variation across the slices of a volume, beside a data term: ADMM whose linear solves are a few CG steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.contracts.linalg import conjugate_gradients
from invsolve.contracts.problem import Problem


@dataclass(frozen=True)
class AcrossTV:
    """min_x |Ax - y|^2 / 2 + keep |x - near|^2 / 2 + weight |Dz x|_1, by ADMM with the split d = Dz x.

    A is divided by its norm here, so that weights mean the same for every operator. Dz are the differences to the next
    slice of the volume, zero at the last one (not circular); with `weight` 0 the slices are solved one by one.

    Args:
        weight: of the total variation.
        penalty: ADMM's rho; jumps smaller than weight / rho are flattened.
        sweeps: ADMM sweeps.
        iterations: CG steps a sweep, started from the last solution.
    """

    weight: float
    penalty: float
    sweeps: int = 1
    iterations: int = 5

    def solve(
        self,
        problem: Problem,
        x: Tensor,
        jumps: Tensor,
        dual: Tensor,
        near: Tensor | None = None,
        keep: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go on from x, jumps (d) and dual (u, scaled by rho), and return them anew."""
        scale, across = problem.operator_norm() ** 2, problem.across
        data = problem.linear.adjoint(problem.y) / scale
        if near is not None:
            data = data + keep * near

        def normal(v: Tensor) -> Tensor:
            return problem.linear.normal(v) / scale + keep * v

        if not self.weight:
            return conjugate_gradients(normal, data, x, 0.0, self.sweeps * self.iterations), jumps, dual
        for _ in range(self.sweeps):
            x = conjugate_gradients(
                lambda v: normal(v) + self.penalty * across.transpose(across.difference(v)),
                data + self.penalty * across.transpose(jumps - dual),
                x,
                0.0,
                self.iterations,
                across.inner,
            )
            reached = across.difference(x) + dual
            jumps = torch.nn.functional.softshrink(reached, self.weight / self.penalty)
            dual = reached - jumps
        return x, jumps, dual
