"""Views of operators that a problem needs: complex images as real ones, and physical units as network units."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from invsolve.contracts.maskable import MaskableOperator, MaskableView
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.scale import Scale
from invsolve.contracts.wrapped import Wrapped, WrappedLinear
from invsolve.numerics.krylov import CG
from invsolve.numerics.spectrum import SingularSystem

T = TypeVar("T")


def real_view(operator: Operator, channels: int) -> Operator:
    """See a complex-image operator as one on real images with `channels` 1 (real part) or 2 (real, imaginary)."""
    if not isinstance(operator, LinearOperator):
        return RealView(operator, channels)
    return (MaskableRealView if isinstance(operator, MaskableOperator) else LinearRealView)(operator, channels)


class RealView(Wrapped, Operator):
    """A complex-image operator on real images: (B, 1, ...) is the real part, (B, 2, ...) real and imaginary part.

    Args:
        inner: the operator of complex images (B, 1, *spatial).
        channels: 1 or 2.
    """

    complex_image = False

    def __init__(self, inner: Operator, channels: int) -> None:
        super().__init__(inner)
        self.channels = channels

    @property
    def image_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        inner = self.inner.image_shape
        return None if inner is None else (self.channels, *inner[1:])

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        inner = self.inner.image_shape_for(measurement_shape, 1)
        return None if inner is None else (self.channels, *inner[1:])

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        return super().measurement_shape((1, *image_shape[1:]))

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        # A view is made for each batch; the operator inside stays.
        return self.inner.remembered(("real view", self.channels, key), make)

    def to_complex(self, x: Tensor) -> Tensor:
        imaginary = x[:, 1:] if self.channels == 2 else torch.zeros_like(x)
        return torch.complex(x[:, :1], imaginary)

    def to_real(self, x: Tensor) -> Tensor:
        return torch.cat([x.real, x.imag], 1) if self.channels == 2 else x.real

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.to_complex(x))


class LinearRealView(RealView, WrappedLinear, LinearOperator):
    """`RealView` of a linear operator; closed forms carry over where both parts are free."""

    def adjoint(self, y: Tensor) -> Tensor:
        return self.to_real(self.inner.adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        return self.to_real(self.inner.normal(self.to_complex(x)))

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        if self.channels == 1:
            return LinearOperator.prox(self, z, y, rho, solver)
        return self.to_real(self.inner.prox(self.to_complex(z), y, rho, solver.starting(self.to_complex)))

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        image = None if self.channels == 1 else self.inner.tikhonov(r, rho)
        return None if image is None else self.to_real(image)

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        if self.channels == 1:
            return LinearOperator.pinv(self, y, solver)
        return self.to_real(self.inner.pinv(y, solver.starting(self.to_complex)))

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        if self.channels == 1:
            return self.inner.svd_on_real_images(like)
        inner = self.inner.svd((1, *image_shape[1:]), like)
        return None if inner is None else inner.on_real_parts(self.to_complex, self.to_real)

    def svd_on_real_images(self, like: Tensor) -> SingularSystem | None:
        return None

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        solver = None if solver is None else solver.starting(self.to_complex)
        return self.to_real(super().baseline(y, sigma, solver))

    def norm(self, like: Tensor | None = None) -> float:
        # On real parts alone it may be smaller than on complex images.
        return LinearOperator.norm(self, like) if self.channels == 1 else super().norm(like)


class MaskableRealView(LinearRealView, MaskableView, MaskableOperator):
    """`RealView` of a maskable operator: the measurement, and so its groups, are the same."""


class InPhysicalUnits(Wrapped, Operator):
    """A(factor x + offset): an operator that cannot be rescaled, fed from network units.

    Args:
        inner: the operator of images in physical units.
        scale: physical = factor * network + offset.
    """

    def __init__(self, inner: Operator, scale: Scale) -> None:
        super().__init__(inner)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.scale.to_physical(x))
