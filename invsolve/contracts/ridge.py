"""The ridge of a least-squares solve: for a signal of known size, or the largest whose residual the noise explains."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import inner, rows

#: From one ridge that is tried to the next; between two of them the logarithms are interpolated.
_STRIDE = 4.0


def by_signal(operator: Any, y: Tensor, sigma: float | Tensor, floor: float, solver: CG) -> Tensor:
    """argmin_x |A x - y|^2 + rho |x|^2 with rho = (sigma / 0.5)^2, a signal of half of [-1, 1]; arguments as for `by_noise`."""
    rho = (torch.as_tensor(sigma, dtype=torch.float64) / 0.5) ** 2
    rho = rho.clamp_min(floor).to(y.device, y.real.dtype)
    start = operator.adjoint(y)
    rho = rho.reshape(-1, *[1] * (start.ndim - 1)) if rho.ndim else rho
    return operator.prox(torch.zeros_like(start), y, rho, solver)


def by_noise(operator: Any, y: Tensor, sigma: float | Tensor, floor: float, solver: CG) -> Tensor:
    """argmin_x |A x - y|^2 + rho |x|^2 with the largest rho at which |A x - y|^2 = sigma^2 (n - dof(rho)).

    dof(rho) = tr A (A'A + rho)^-1 A' are the equivalent degrees of freedom of the fit, so that what is left over is
    what noise leaves over (Hall and Titterington, J. R. Stat. Soc. B 49, 1987). Morozov's principle, |A x - y|^2 =
    sigma^2 n, smooths too much where there are not many more data than unknowns. The trace is that of one random probe.

    Args:
        operator: A, a `LinearOperator`.
        y: (B, *measurement).
        sigma: standard deviation of the (white) noise, of each part where y is complex: a number, or (B, 1, ...). A row
            of which it is zero has the ridge `floor`.
        floor: the least ridge, which is also taken where no ridge leaves as little as that, as with wrong coil maps.
        solver: of every solve; `told` hears of the last.
    """
    count, like = len(y), y.real.dtype
    level = torch.as_tensor(sigma, dtype=like, device=y.device)
    level = level.flatten().expand(count) if level.numel() == 1 else level.reshape(count)
    blank, quiet = torch.zeros_like(operator.adjoint(y)), replace(solver, told=None)
    best = torch.full((count,), floor, dtype=like, device=y.device)
    top = float(operator.norm(y)) ** 2
    if not bool((level > 0).any()) or not top > floor > 0:
        return operator.prox(blank, y, rows(best, blank), solver)
    mask = operator.measured()
    used = (
        torch.ones(y.shape[1:], dtype=like, device=y.device) if mask is None else mask.to(y.device).expand(y.shape[1:])
    )
    numbers = float(used.sum()) * (2 if y.is_complex() else 1)
    probe = (used * _probe(y)).expand_as(y)
    x, echo, last = blank, torch.zeros_like(blank), None
    start, found = blank, level <= 0
    steps = math.ceil(math.log(top / floor, _STRIDE))
    for rho in (top * (floor / top) ** (k / steps) for k in range(steps + 1)):
        x = operator.prox(blank, y, rho, replace(quiet, start=x))
        echo = operator.prox(blank, probe, rho, replace(quiet, start=echo))
        residual = used * (y - operator(x))
        left = numbers - inner(probe, operator(echo))
        ratio = (inner(residual, residual) / (level.square() * left).clamp_min(torch.finfo(like).tiny)).log()
        enough = ~found & (ratio <= 0)
        between = torch.full_like(best, math.log(rho))
        if last is not None:
            above, where = last
            share = (ratio / (ratio - above)).clamp(0, 1)
            between = between + share * (where - math.log(rho))
        best, start = torch.where(enough, between.exp(), best), torch.where(rows(enough, x), x, start)
        found, last = found | enough, (ratio, math.log(rho))
        if bool(found.all()):
            break
    start = torch.where(rows(found & (level > 0), x), start, x)
    return operator.prox(
        blank, y, rows(best, blank), solver if solver.start is not None else replace(solver, start=start)
    )


def _probe(y: Tensor) -> Tensor:
    """White noise of standard deviation 1 in each real number, the same for every row: (1, *measurement)."""
    shape = (1, *y.shape[1:], 2) if y.is_complex() else (1, *y.shape[1:])
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (torch.view_as_complex(drawn) if y.is_complex() else drawn).to(y)
