"""Inner products and norms per batch row, and shapes that broadcast against them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product per batch row: Re <a, b>, shape (B,)."""
    product = a.conj() * b if a.is_complex() else a * b
    return (product.real if product.is_complex() else product).flatten(1).sum(1)


def norm(a: Tensor) -> Tensor:
    """Euclidean norm per batch row, shape (B,), real also for complex `a`."""
    return torch.linalg.vector_norm(a.flatten(1), dim=1)


def rows(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) so that it broadcasts against (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def size_of(shape: Sequence[int]) -> int:
    """Number of entries of a shape."""
    return math.prod(shape)
