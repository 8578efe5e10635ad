"""Operator algebra: composition, sum, scaling and stacking of linear operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invsolve.contracts.operator import LinearOperator
from invsolve.numerics.linalg import size_of
from invsolve.numerics.spectrum import SingularSystem


class Composition(LinearOperator):
    """(A @ B)(x) = A(B(x))."""

    def __init__(self, outer: LinearOperator, first: LinearOperator) -> None:
        super().__init__()
        self.outer, self.first = outer, first
        self.image_shape, self.complex_image, self.image_unit = first.image_shape, first.complex_image, first.image_unit

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.first(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(self.outer.adjoint(y))

    def measured(self) -> Tensor | None:
        return self.outer.measured()


class Sum(LinearOperator):
    """(A + B)(x) = A(x) + B(x)."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.image_shape = left.image_shape or right.image_shape
        self.complex_image, self.image_unit = left.complex_image or right.complex_image, left.image_unit

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.left.adjoint(y) + self.right.adjoint(y)


class Scaled(LinearOperator):
    """(s * A)(x) = s A(x), s a real number."""

    def __init__(self, factor: float, inner: LinearOperator) -> None:
        super().__init__()
        self.factor, self.inner = float(factor), inner
        self.image_shape, self.complex_image, self.image_unit = inner.image_shape, inner.complex_image, inner.image_unit

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.inner.adjoint(y)

    def prox(
        self,
        z: Tensor,
        y: Tensor,
        rho: float | Tensor,
        start: Tensor | None = None,
        tolerance: float = 1e-5,
        iterations: int = 100,
    ) -> Tensor:
        return self.inner.prox(z, y / self.factor, rho / self.factor**2, start, tolerance, iterations)

    def pinv(self, y: Tensor, tolerance: float = 1e-6, iterations: int = 200) -> Tensor:
        return self.inner.pinv(y / self.factor, tolerance, iterations)

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        inner = self.inner.svd(image_shape, like)
        return None if inner is None else inner.scaled(self.factor)

    def measured(self) -> Tensor | None:
        return self.inner.measured()


class Stack(LinearOperator):
    """Several operators on one image, measurements flattened side by side: y (B, m1 + m2 + ...)."""

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(operators)
        self.image_shape = next((a.image_shape for a in operators if a.image_shape is not None), None)
        self.complex_image = any(a.complex_image for a in operators)
        self.image_unit = operators[0].image_unit

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        shape = self.image_shape
        if shape is None:
            self.blank()
        shapes = [part.measurement_shape(shape) for part in self.parts]  # type: ignore[operator]
        pieces = y.split([size_of(s) for s in shapes], 1)
        parts = zip(self.parts, pieces, shapes, strict=True)
        return torch.stack([part.adjoint(piece.reshape(-1, *s)) for part, piece, s in parts]).sum(0)  # type: ignore[operator]
