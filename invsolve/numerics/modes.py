"""Images as coefficients in an orthonormal basis, each with a variance of its own: what is known of a prior's covariance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Modes:
    """A covariance of images that is diagonal in an orthonormal basis.

    Attributes:
        variance: of each coefficient, >= 0; broadcasts against them.
        to_basis: coefficients of images (B, C, *spatial), shaped like these.
        from_basis: its inverse, which is its transpose.
    """

    variance: Tensor
    to_basis: Callable[[Tensor], Tensor]
    from_basis: Callable[[Tensor], Tensor]


def white(variance: float, like: Tensor) -> Modes:
    """Every pixel for itself, all of one variance; for images shaped like `like` (B, C, *spatial)."""

    def same(x: Tensor) -> Tensor:
        return x

    return Modes(torch.full((), variance, dtype=like.dtype, device=like.device), same, same)
