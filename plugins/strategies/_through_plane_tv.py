"""Total variation across the slices of a volume, beside a data term: ADMM whose linear solves are a few CG steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softshrink

from invsolve.contracts.problem import Problem
from invsolve.numerics.krylov import CG

#: A slice (or volume) whose gradient has fallen to this part of its size is solved.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ThroughPlaneTV:
    """min_x |Ax - y|^2 / 2 + keep |x - near|^2 / 2 + weight |Dz x|_1, by ADMM with the split d = Dz x.

    A is divided by its norm here, so that weights mean the same for every operator. Dz are the differences to the next
    slice of the volume, zero at the last one (not circular); with `weight` 0 the slices are solved one by one.

    Args:
        weight: of the total variation.
        penalty: ADMM's rho; d is Dz x shrunk by weight / rho.
        sweeps: ADMM sweeps.
        solves: CG steps a sweep, started from the last solution.
    """

    weight: float
    penalty: float
    sweeps: int
    solves: int

    def improve(
        self, problem: Problem, near: Tensor, residual: Tensor, jumps: Tensor, dual: Tensor, keep: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Go on from x = near.

        Args:
            near: (B, C, *spatial).
            residual: y - A(near), which the caller has computed anyway.
            jumps, dual: d and u (scaled by rho) of the last call, shaped like near.
            keep: a number, or broadcasting against near.

        Returns:
            x, jumps, dual.
        """
        operator, across = problem.linear, problem.through_plane
        scale = problem.operator_norm() ** 2

        def normal(v: Tensor) -> Tensor:
            return operator.normal(v) / scale + keep * v

        def coupled(v: Tensor) -> Tensor:
            return normal(v) + self.penalty * across.transpose(across.difference(v))

        # Steps for the correction from zero are those for x from near, and cost one operator pass less.
        data = operator.adjoint(residual) / scale
        if self.weight == 0:
            return near + CG(_TOLERANCE, self.sweeps * self.solves).solve(normal, data).x, jumps, dual
        shift = None
        start = across.difference(near)
        for _ in range(self.sweeps):
            wanted = data + self.penalty * across.transpose(jumps - dual - start)
            shift = CG(_TOLERANCE, self.solves).solve(coupled, wanted, shift, across.inner).x
            reached = start + across.difference(shift) + dual
            jumps = softshrink(reached, self.weight / self.penalty)
            dual = reached - jumps
        assert shift is not None
        return near + shift, jumps, dual
