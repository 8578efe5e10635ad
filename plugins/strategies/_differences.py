"""Differences between neighbouring pixels and their transpose, which total variation is made of."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient(x: Tensor) -> Tensor:
    """Forward differences along every spatial axis, zero at the far edge: (B, C, *s) -> (B, axes, C, *s)."""
    parts = []
    for axis in range(2, x.ndim):
        pad = torch.zeros_like(x.narrow(axis, 0, 1))
        parts.append(torch.cat([x.diff(dim=axis), pad], axis))
    return torch.stack(parts, 1)


def divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of `gradient`."""
    total = torch.zeros_like(p[:, 0])
    for k in range(p.shape[1]):
        axis = k + 2
        inner = p[:, k].narrow(axis, 0, p.shape[axis + 1] - 1)
        pad = torch.zeros_like(inner.narrow(axis, 0, 1))
        total = total + torch.cat([inner, pad], axis) - torch.cat([pad, inner], axis)
    return total
