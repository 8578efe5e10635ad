"""A linear map as an autograd function: its backward is its adjoint, and stores nothing."""

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
