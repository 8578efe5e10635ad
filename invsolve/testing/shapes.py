"""An operator of free size on images that its author may not have thought of: long ones, and volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.errors import UserError
from invsolve.numerics.linalg import inner, norm
from invsolve.testing.cases import NotApplicable, below
from invsolve.testing.report import Finding


class Tried(Protocol):
    """What is looked at: a copy of an operator, and the shape of images that it takes."""

    @property
    def operator(self) -> Operator: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def rounding(self) -> float: ...

    @property
    def x(self) -> Tensor: ...


def long_images(p: Tried) -> Finding:
    """Images with twice as many columns as rows, and twice as many rows as columns: measured, or refused by `UserError`."""
    channels, *size = p.shape
    shorter = min(size)
    wide = [*[shorter] * (len(size) - 1), 2 * shorter]
    findings = [_measures(p, (channels, *turned), UserError) for turned in (wide, wide[::-1])]
    return max(findings, key=lambda finding: finding.figure or 0.0)


def volumes(p: Tried) -> Finding:
    """Images with an axis more: measured as the adjoint says, or refused."""
    channels, *size = p.shape
    # Code that is for images may well stumble over them, which is better than a wrong number.
    return _measures(p, (channels, *((4, *size) if len(size) < 3 else (*size[:-1], size[-1] + 3))), Exception)


def _measures(p: Tried, shape: Sequence[int], refusals: type[Exception]) -> Finding:
    """An image alone is measured as in a batch, and <Ax, Ax> is <x, A'Ax>.

    Args:
        p: the operator.
        shape: of the images.
        refusals: errors by which the operator may refuse them.

    Raises:
        NotApplicable: the operator refuses the shape.
    """
    wide = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).abs() + 0.1
    x = wide.to(p.x)
    size = "x".join(map(str, shape))
    try:
        y = p.operator(x)
        back = p.operator.adjoint(y) if isinstance(p.operator, LinearOperator) else None
    except refusals as refusal:
        raise NotApplicable(f"refuses {size}: {str(refusal).partition(chr(10))[0]}") from None
    error = float(norm(p.operator(x[1:]) - y[1:]).max() / norm(y).max().clamp_min(1e-30))
    if back is not None and back.shape != x.shape:
        return Finding("", False, text=f"adjoint gives {tuple(back.shape)} for images {tuple(x.shape)}")
    if back is not None:
        energy = inner(y, y)
        error = max(error, float(((energy - inner(x, back)).abs() / energy.clamp_min(1e-30)).max()))
    return below(
        error, p.rounding, f"images of {size} are measured, and wrongly; mend it, or refuse them with UserError"
    )


SHAPES: dict[str, Callable[[Any], Finding]] = {"long images": long_images, "volumes": volumes}
