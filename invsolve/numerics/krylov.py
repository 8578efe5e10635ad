"""Batched conjugate gradients and the power iteration: each batch row is solved and stopped for itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from invsolve.numerics.linalg import inner, norm, rows


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    start: Tensor | None = None,
    tolerance: float = 1e-5,
    iterations: int = 100,
    dot: Callable[[Tensor, Tensor], Tensor] = inner,
) -> Tensor:
    """Solve `apply(x) = b` for a symmetric positive (semi)definite map, every batch row for itself.

    Args:
        apply: the map, (B, ...) -> (B, ...).
        b: right-hand sides, (B, ...), real or complex.
        start: warm start, same shape; zero when absent.
        tolerance: a row stops when its residual norm is below `tolerance * |b|`. A stopped row is frozen, so its
            answer does not depend on what else is in the batch.
        iterations: upper limit; the current iterate is returned when it is reached.
        dot: inner product, (B,), or (1,) where the rows are one system, such as `ThroughPlane.inner`.
    """
    x = torch.zeros_like(b) if start is None else start.clone()
    r = b - apply(x) if start is not None else b.clone()
    p = r
    rr = dot(r, r)
    goal = tolerance**2 * dot(b, b)
    # On a GPU, asking whether all rows are done waits for the device, so it is asked less often there.
    stride = 1 if b.device.type == "cpu" else 5
    for k in range(iterations):
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
    return x


def spectral_norm(
    normal: Callable[[Tensor], Tensor], start: Tensor, iterations: int = 60, tolerance: float = 1e-4
) -> float:
    """Largest singular value of A by power iteration on A'A from `start` (1, ...)."""
    x, value = start / norm(start).clamp_min(1e-30), 0.0
    for _ in range(iterations):
        y = normal(x)
        new = float(norm(y))
        if new == 0.0:
            return 0.0
        x = y / new
        if abs(new - value) <= tolerance * new:
            return new**0.5
        value = new
    return value**0.5
