"""Views: one operator seen as another. What a view does not change, it hands on to the operator inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from invsolve.contracts.module import Module
from invsolve.numerics.krylov import CG
from invsolve.numerics.spectrum import SingularSystem


class HandedOn:
    """An attribute of a view: that of the operator inside, until the view is given its own."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, view: Any, owner: type | None = None) -> Any:
        if view is None:
            return self
        own = view.__dict__
        return own[self.name] if self.name in own else getattr(view.inner, self.name)

    def __set__(self, view: Any, value: Any) -> None:
        view.__dict__[self.name] = value


class Wrapped(Module):
    """The base of views; stands before `Operator` among the bases: `class Cropped(Wrapped, Operator)`.

    Override what the view changes. Sizes, units, the name, and which entries are measured are those of the operator inside.

    Args:
        inner: the operator.
    """

    image_shape: Any = HandedOn()
    complex_image: Any = HandedOn()
    image_unit: Any = HandedOn()
    name: Any = HandedOn()
    paper: ClassVar[Any] = HandedOn()
    builds_on: ClassVar[Any] = HandedOn()
    parameters_given: Any = HandedOn()
    items: Any = HandedOn()
    waits: Any = HandedOn()
    surrogate: Any = HandedOn()
    flat: Any = HandedOn()
    nested: Any = HandedOn()

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def of_item(self, item: int) -> Any:
        one = self.twin()
        # Its own, as what the view of all items remembers is not that of one.
        one.__dict__.update(_modules=self._modules | {"inner": self.inner.for_item(item)}, _remembered={})
        return one

    def measured(self) -> Tensor | None:
        return self.inner.measured()

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        return self.inner.image_shape_for(measurement_shape, channels)

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        return self.inner.measurement_shape(image_shape)


class WrappedLinear(Wrapped):
    """The base of views of linear operators: `class Flipped(WrappedLinear, LinearOperator)`.

    Closed forms are handed on too. A view that changes `forward` changes them all.
    """

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(y)

    def normal(self, x: Tensor) -> Tensor:
        return self.inner.normal(x)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        return self.inner.prox(z, y, rho, solver)

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        return self.inner.tikhonov(r, rho)

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        return self.inner.pinv(y, solver)

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        return self.inner.svd(image_shape, like)

    def svd_on_real_images(self, like: Tensor) -> SingularSystem | None:
        return self.inner.svd_on_real_images(like)

    @property
    def baseline_floor(self) -> float | None:
        floor: float | None = self.inner.baseline_floor
        return floor

    @property
    def ridge_by_noise(self) -> bool:
        return bool(self.inner.ridge_by_noise)

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        # A formula of somebody's own takes no solver.
        return self.inner.baseline(y, sigma) if solver is None else self.inner.baseline(y, sigma, solver)

    def norm(self, like: Tensor | None = None) -> float:
        return self.inner.norm(like)
