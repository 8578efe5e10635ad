"""Krylov solvers as settings that solve: conjugate gradients, generalised conjugate residuals; and the power iteration.

Each batch row is solved and stopped for itself, so its answer does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from invsolve.numerics.linalg import inner, norm, rows

Map = Callable[[Tensor], Tensor]
#: A direction p in the space of measurements beside an image that belongs to it.
Direction = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Solution:
    """What a solve gave, and how it ended.

    Attributes:
        x: (B, ...), the last iterate.
        converged: boolean, (B,), or (1,) where the rows are one system: whether the residual fell below the tolerance.
        iterations: int32, shaped like `converged`: steps that moved the row.
    """

    x: Tensor
    converged: Tensor
    iterations: Tensor


@dataclass(frozen=True)
class CG:
    """Settings of conjugate gradients, for symmetric positive (semi)definite maps.

    Args:
        tolerance: a row stops, and is frozen, when its residual norm is below `tolerance * |b|`.
        iterations: upper limit; the current iterate is returned when it is reached.
        start: warm start, shaped like the solution; what the caller of `solve` proposes when absent.
        told: called with each `Solution`, for those who do not see what `solve` returns.
    """

    tolerance: float = 1e-5
    iterations: int = 100
    start: Tensor | None = field(default=None, repr=False, compare=False)
    told: Callable[[Solution], None] | None = field(default=None, repr=False, compare=False)

    def solve(
        self, apply: Map, b: Tensor, start: Tensor | None = None, dot: Callable[[Tensor, Tensor], Tensor] = inner
    ) -> Solution:
        """Solve `apply(x) = b`, every row for itself.

        Args:
            apply: the map, (B, ...) -> (B, ...).
            b: right-hand sides, (B, ...), real or complex.
            start: where to begin if the settings do not say, shaped like b; zero when absent.
            dot: inner product, (B,), or (1,) where the rows are one system, such as `ThroughPlane.inner`.
        """
        start = start if self.start is None else self.start
        x = torch.zeros_like(b) if start is None else start.clone()
        r = b - apply(x) if start is not None else b.clone()
        p = r
        rr = dot(r, r)
        goal = self.tolerance**2 * dot(b, b)
        steps = torch.zeros_like(rr, dtype=torch.int32)
        # On a GPU, asking whether all rows are done waits for the device, so it is asked less often there.
        stride = 1 if b.device.type == "cpu" else 5
        for k in range(self.iterations):
            active = rr > goal
            if k % stride == 0 and not bool(active.any()):
                break
            q = apply(p)
            pq = dot(p, q)
            alpha = torch.where(active & (pq > 0), rr / pq.clamp_min(torch.finfo(rr.dtype).tiny), 0.0)
            x = x + rows(alpha, p) * p
            r = r - rows(alpha, q) * q
            rr_new = dot(r, r)
            beta = torch.where(active, rr_new / rr.clamp_min(torch.finfo(rr.dtype).tiny), 0.0)
            p = r + rows(beta, p) * p
            rr = torch.where(active, rr_new, rr)
            steps += active
        solution = Solution(x, rr <= goal, steps)
        if self.told is not None:
            self.told(solution)
        return solution

    def starting(self, change: Map) -> Self:
        """The same settings with the warm start, if there is one, changed."""
        return self if self.start is None else replace(self, start=change(self.start))


@dataclass(frozen=True)
class GCR:
    """Settings of generalised conjugate residuals (Eisenstat 1983), for maps that need not be symmetric.

    Args:
        products: with the map, exactly so many.
    """

    products: int

    def solve(
        self,
        system: Callable[[Tensor, Tensor], Direction],
        direction: Callable[[Tensor], Direction],
        b: Tensor,
        first: Direction | None = None,
        enough: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Solve M u = b, every row for itself, and accumulate the image that belongs to u beside it.

        Args:
            system: p, A'p -> (M p, image of p).
            direction: r -> p, an approximate solution of M p = r up to a factor, and A'p.
            b: right-hand sides, (B, *measurement).
            first: tried as the first direction, with the length that suits it best: a poor one does no harm.
            enough: (B,), rows for which one product is enough; the others do not change them.

        Returns:
            u, its image, and b - M u.
        """
        tried: list[Direction] = []
        basis: list[Direction] = []
        shares: list[list[Tensor]] = []  # of each product along the ones before it
        lengths: list[Tensor] = []
        r = b
        for k in range(self.products):
            p, pulled = first if k == 0 and first is not None else direction(r)
            q, image = system(p, pulled)
            tried.append((p, image))
            shares.append([])
            for q_old, square in basis:
                shares[k].append(inner(q_old, q) / square)
                q = torch.addcmul(q, rows(shares[k][-1], q), q_old, value=-1)
            square = inner(q, q).clamp_min(torch.finfo(image.dtype).tiny)
            basis.append((q, square))
            lengths.append(inner(q, r) / square)
            if k > 0 and enough is not None:
                lengths[k] = torch.where(enough, 0.0, lengths[k])
            r = torch.addcmul(r, rows(lengths[k], q), q, value=-1)
        # The basis is a triangular combination of the products: solved backwards for how much of each direction to take.
        for j in reversed(range(self.products)):
            for k in range(j):
                lengths[k] = lengths[k] - shares[j][k] * lengths[j]
        u, shift = torch.zeros_like(b), torch.zeros_like(tried[0][1])
        for length, (p, image) in zip(lengths, tried, strict=True):
            u = torch.addcmul(u, rows(length, p), p)
            shift = torch.addcmul(shift, rows(length, image), image)
        return u, shift, r


def spectral_norm(normal: Map, start: Tensor, iterations: int = 60, tolerance: float = 1e-4) -> float:
    """Largest singular value of A by power iteration on A'A from `start` (B, ...); with more rows, the largest of them."""
    x, value = start / rows(norm(start).clamp_min(1e-30), start), 0.0
    for _ in range(iterations):
        y = normal(x)
        lengths = norm(y)
        new = float(lengths.max())
        if new == 0.0:
            return 0.0
        x = y / rows(lengths.clamp_min(1e-30), y)
        if abs(new - value) <= tolerance * new:
            return new**0.5
        value = new
    return value**0.5
