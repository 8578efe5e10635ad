"""Maps and autograd: a linear map whose backward is its adjoint and stores nothing; the tangent of any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, apply: Map, transpose: Map) -> Tensor:
        return apply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Map, Map], output: Tensor) -> None:
        _, ctx.map, ctx.transpose = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return linear_map(gradient, ctx.transpose, ctx.map), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return linear_map(tangent, ctx.map, ctx.transpose)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], x: Tensor, apply: Map, transpose: Map) -> tuple[Tensor, int]:
        rows = x.movedim(dims[0] or 0, 0)
        out = linear_map(rows.flatten(0, 1), apply, transpose)
        return out.unflatten(0, rows.shape[:2]), 0


def linear_map(x: Tensor, apply: Map, transpose: Map) -> Tensor:
    """Return `apply(x)`, differentiable in x by `transpose` (and that by `apply`), to any order."""
    return _Linear.apply(x, apply, transpose)


class Tangent:
    """The tangent of a differentiable map at a point: one pass through the map, then Jacobian products both ways.

    Attributes:
        at: the point, (B, ...), detached.
        value: the map's value there, detached.
        exists: False where autograd cannot follow the map; products then fail.

    Args:
        function: the map, every row for itself.
        x: the point.
    """

    def __init__(self, function: Map, x: Tensor) -> None:
        with torch.enable_grad():
            self._point = x.detach().requires_grad_()
            self._value = function(self._point)
            self.exists = self._value.requires_grad
            self.at, self.value = self._point.detach(), self._value.detach()
            if not self.exists:
                return
            # The transpose is linear in `probe`, so its transpose in turn is the tangent: forward products by two backward
            # passes, which every differentiable map has, where forward-mode rules are missing from many.
            self._probe = torch.zeros_like(self._value, requires_grad=True)
            (self._pulled,) = torch.autograd.grad(self._value, self._point, self._probe, create_graph=True)

    def forward(self, direction: Tensor) -> Tensor:
        """The Jacobian times a direction, shaped like the point."""
        (product,) = torch.autograd.grad(self._pulled, self._probe, direction, retain_graph=True)
        return product

    def adjoint(self, v: Tensor) -> Tensor:
        """The Jacobian's transpose times v, shaped like the value."""
        (product,) = torch.autograd.grad(self._value, self._point, v, retain_graph=True)
        return product
