"""Forward operators: what an author subclasses (one method is enough), what a strategy may ask of them, and their algebra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts import combining
from invsolve.contracts.arguments import matching as matching
from invsolve.contracts.combining import Arithmetic, NoArithmetic, added, called, is_operator, items_of, real_factor
from invsolve.contracts.guarded import check_image, guarded
from invsolve.contracts.module import Module
from invsolve.contracts.ridge import by_noise, by_signal
from invsolve.contracts.wrapped import WrappedLinear
from invsolve.errors import UserError
from invsolve.numerics.autograd import Tangent
from invsolve.numerics.krylov import CG, spectral_norm
from invsolve.numerics.scipy_view import ScipyView
from invsolve.numerics.spectrum import SingularSystem

#: Operators of items that are kept, with what they remember: the samples of an item run one batch after another.
_ITEMS_KEPT = 4


class Operator(NoArithmetic, Module):
    """A forward operator y = A(x): x (B, C, *spatial), y (B, *measurement), of any dtype and device.

    Write `forward`. Tensors that you assign to attributes become buffers: they move with `.to()`.

    Attributes:
        image_shape: (C, *spatial) when the operator fixes it, else None.
        complex_image: True when x must be complex (MRI). Priors with one channel are then used as real images, priors
            with two as real and imaginary parts.
        image_unit: the physical unit of x ("1/cm"), empty when it has none.
        closed_forms: what of it is computed directly, in words, for tables.
        advice: options with which `invsolve inspect` suggests it for images; empty where it does not.
        examples: keyword arguments of small instances, from which the conformance tests make theirs.
        surrogate: why autograd's gradient is not the derivative of `forward`, such as "straight through the rounding"; empty
            where it is.
        flat: what makes `forward` constant over ranges of x, such as "saturation", where its derivative tells nothing.
        waits: why its calls must wait for what they compute, such as "NumPy code runs on the host"; empty where they need not.
        shapes_tried: image shapes (C, *spatial) with which the conformance tests try those of free size.
        parameters_given: the keyword arguments it was made from, as written to scan files.
        items: how many items it has parameters of their own for; None where one operator measures all items.
        channelwise: True when it takes images of any number of channels, and measures each of them alike.
        item_axes: parameters that may differ from item to item, with the most axes that the value for one item has. Made by
            name with a value of one axis more, the operator is a `PerItem`: an instance of this class for each item.
    """

    image_shape: tuple[int, ...] | None = None
    complex_image: bool = False
    image_unit: str = ""
    name: str = ""
    parameters_given: dict[str, Any] | None = None
    items: int | None = None
    waits: str = ""
    channelwise: ClassVar[bool] = False
    item_axes: ClassVar[Mapping[str, int]] = {}
    closed_forms: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    surrogate: str = ""
    flat: str = ""
    shapes_tried: ClassVar[tuple[tuple[int, ...], ...]] = ((1, 12, 13), (1, 11, 11))

    def __call__(self, x: Tensor) -> Tensor:
        """Return A(x); refuses images whose size the operator was not made for, and numbers that it does not calculate with."""
        check_image(self, x)
        return super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return A(x)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")

    def measured(self) -> Tensor | None:
        """Boolean tensor, broadcastable to y, of the entries that carry data; None when all do."""
        return None

    def for_item(self, item: int) -> Any:
        """Return the operator that measures this item, counted from 0: itself where one measures all.

        Raises:
            UserError: it has no such item.
        """
        if self.items is None:
            return self
        return self.remembered("for_item", lambda: lru_cache(_ITEMS_KEPT)(self.of_item))(item)

    def of_item(self, item: int) -> Any:
        """Make what `for_item` returns where items differ; views and sums do it by their parts."""
        raise NotImplementedError(f"{type(self).__name__} has items, so it must define of_item(item)")

    @classmethod
    def carries_items(cls, parameter: str, value: Tensor) -> bool:
        """Whether the value of a parameter is one for each item, along its first axis (see `item_axes`)."""
        return parameter in cls.item_axes and value.ndim > cls.item_axes[parameter]

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        """Return the image shape (C, *spatial) that gives measurements of this shape, or None when it cannot be told.

        By default `image_shape`, or the measurement's own shape when the operator keeps it (blur, inpainting): checked
        by running it once.
        """
        if self.image_shape is not None:
            return self.image_shape
        candidate = tuple(measurement_shape)
        for shape in dict.fromkeys([candidate, (channels, *candidate[1:])]):
            try:
                if self.measurement_shape(shape) == candidate:
                    return shape
            except (RuntimeError, ValueError, IndexError):
                continue
        return None

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of y, without the batch axis, for images of `image_shape`."""
        with torch.no_grad():
            return tuple(self(self.blank(1, image_shape)).shape[1:])

    def blank(
        self, batch: int = 1, image_shape: Sequence[int] | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return zeros (batch, C, *spatial) of the operator's domain, on its device."""
        shape = image_shape if image_shape is not None else self.image_shape
        if shape is None:
            raise UserError(
                f"operator {self.name or type(self).__name__!r} does not know its image shape; "
                "set self.image_shape = (channels, rows, columns) in its __init__"
            )
        held = next(iter(self.buffers()), None)
        real = dtype or torch.float32
        if self.complex_image:
            real = real.to_complex()
        return torch.zeros(batch, *shape, dtype=real, device=held.device if held is not None else None)

    def linearise(self, x: Tensor) -> LinearOperator:
        """Return the tangent of the operator at images x (B, C, *spatial): its Jacobian, as a linear operator of so many rows.

        Raises:
            UserError: the operator's forward is not differentiable by torch.
        """
        return Linearised(self, x)

    def __matmul__(self, other: Any) -> Any:
        is_operator(other, Operator, "A @ B")
        linear = isinstance(self, LinearOperator) and isinstance(other, LinearOperator)
        return Composition(self, other) if linear else Composed(self, other)


class LinearOperator(Arithmetic, Operator):
    """A linear operator: `forward`, and `adjoint`, derived by autograd when the author gives none.

    The inner product is Re <a, b>, so that a real operator seen through complex numbers has one adjoint.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "adjoint" in cls.__dict__:
            cls.adjoint = guarded(cls.__dict__["adjoint"])  # type: ignore[method-assign]

    @guarded
    def adjoint(self, y: Tensor) -> Tensor:
        """Return A'y, the exact transpose of `forward`; (B, *measurement) -> (B, C, *spatial)."""
        shape = self.image_shape or self.image_shape_for(y.shape[1:])
        real = y.dtype.to_real() if y.is_complex() else y.dtype
        with torch.enable_grad():
            x = self.blank(len(y), shape, real).to(y.device).requires_grad_()
            predicted = self.forward(x)
            if not predicted.requires_grad:
                raise UserError(
                    f"operator {self.name or type(self).__name__!r} has no adjoint and its forward is not differentiable "
                    "by torch: write it in torch operations, or define adjoint(y)"
                )
            (transposed,) = torch.autograd.grad(predicted, x, y, create_graph=y.requires_grad)
        return transposed

    def normal(self, x: Tensor) -> Tensor:
        """Return A'A x."""
        return self.adjoint(self(x))

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        """Return argmin_x |Ax - y|^2 + rho |x - z|^2; conjugate gradients here, closed form where the physics has one.

        Args:
            z: (B, C, *spatial).
            y: (B, *measurement).
            rho: positive; a number, or a tensor that broadcasts against z.
            solver: how to iterate, from z if it brings no start of its own; a closed form does not look at it.
        """
        return solver.solve(lambda x: self.normal(x) + rho * x, self.adjoint(y) + rho * z, z).x

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        """Return (A'A + rho)^-1 A' r, `prox` from zero, where there is a closed form shorter than that of `prox`; else None."""
        return None

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        """Return the least-squares solution of smallest norm (Moore-Penrose)."""
        return solver.solve(self.normal, self.adjoint(y)).x

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        """Return the singular system in closed form, or None where there is none (see `Problem.svd`).

        Args:
            image_shape: (C, *spatial).
            like: a measurement (B, *measurement), for precision and device.
        """
        return None

    def svd_on_real_images(self, like: Tensor) -> SingularSystem | None:
        """The same for an operator with complex images, restricted to images of one real channel."""
        return None

    @property
    def baseline_floor(self) -> float | None:
        """Least ridge of the least-squares solve that `baseline` is, over the squared norm; None where it is a formula instead.

        A solve weighs entries by their noise, and takes `solver`; formulas take y as it is, and are called without.
        """
        return 1e-6 if type(self).baseline is LinearOperator.baseline else None

    @property
    def ridge_by_noise(self) -> bool:
        """Whether the ridge of `baseline` is the largest that the noise explains (`contracts.ridge`); False for a formula."""
        return False

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        """Return the linear reconstruction that users of this instrument know (FBP, zero-filled, Wiener).

        Args:
            y: (B, *measurement).
            sigma: of the noise, for those that regularise by it. Here: Tikhonov with a signal of 0.5, half of [-1, 1], or
                `ridge_by_noise`.
            solver: how to iterate, where it is a solve (`baseline_floor`) without a closed form; the operator's choice if None.
        """
        floor = (self.baseline_floor or 0.0) * self.norm(y) ** 2
        solve = by_noise if self.ridge_by_noise else by_signal
        return solve(self, y, sigma, floor, CG() if solver is None else solver)

    def norm(self, like: Tensor | None = None) -> float:
        """Return the largest singular value, by power iteration; remembered until the operator changes.

        Args:
            like: a measurement (B, *measurement), from which operators of free size take their shape.
        """
        shape = self.image_shape or (self.image_shape_for(like.shape[1:]) if like is not None else None)

        def largest() -> float:
            blank = self.blank(1, shape)
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(blank.shape, generator=generator).to(blank)
            with torch.no_grad():
                return spectral_norm(self.normal, start)

        return self.remembered(("norm", None if shape is None else tuple(shape)), largest)

    def linearise(self, x: Tensor) -> LinearOperator:
        """Return the operator itself: it is its own tangent."""
        return self

    def as_scipy(self, image_shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float64) -> ScipyView:
        """Return the operator as a `scipy.sparse.linalg.LinearOperator` between vectors, for solvers that take one.

        Args:
            image_shape: (C, *spatial), where the operator does not fix it.
            dtype: real precision to compute in.

        Raises:
            UserError: the image shape is not known.
        """
        image = self.blank(1, image_shape, dtype)
        with torch.no_grad():
            return ScipyView(self, self.adjoint, image, self(image))

    def __matmul__(self, other: Any) -> Any:
        return super().__matmul__(other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        is_operator(other, LinearOperator, "A + B")
        return Sum(self, other)

    def __rmul__(self, factor: float) -> LinearOperator:
        return Scaled(factor, self)


class Linearised(LinearOperator):
    """The tangent of an operator at one image a row: forward is a Jacobian-vector product, adjoint a vector-Jacobian product.

    It is linear in the direction, (B, C, *spatial), and has as many rows as `at`, all at once.

    Args:
        operator: differentiable torch code.
        x: the images (B, C, *spatial).

    Raises:
        UserError: the operator's forward is not differentiable by torch.
    """

    def __init__(self, operator: Operator, x: Tensor) -> None:
        super().__init__()
        self.image_shape, self.image_unit = tuple(x.shape[1:]), operator.image_unit
        self.complex_image, self.name = operator.complex_image, f"tangent of {called(operator)}"
        self.tangent = Tangent(operator, x)
        if not self.tangent.exists:
            raise UserError(f"operator {called(operator)!r} has no tangent: its forward is not differentiable by torch")
        self.mask = operator.measured()

    @property
    def value(self) -> Tensor:
        """A(x), (B, *measurement), which came with the tangent."""
        return self.tangent.value

    def forward(self, x: Tensor) -> Tensor:
        return self.tangent.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.tangent.adjoint(y)

    def measured(self) -> Tensor | None:
        return self.mask

    def norm(self, like: Tensor | None = None) -> float:
        """The largest singular value among the rows, by power iteration."""
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(self.tangent.at.shape, generator=generator).to(self.tangent.at)
        return spectral_norm(self.normal, start)


class Composed(Operator):
    """(A @ B)(x) = A(B(x)): images of B, measurements of A. Not linear; `Composition` is."""

    def __init__(self, outer: Operator, first: Operator) -> None:
        super().__init__()
        self.outer, self.first, self.nested = outer, first, combining.depth(outer, first)
        self.image_shape, self.image_unit, self.waits = first.image_shape, first.image_unit, outer.waits or first.waits
        # A real operator takes complex images part by part, so what follows it may ask for them.
        self.complex_image = first.complex_image or outer.complex_image
        self.name, self.items = f"{called(outer)} @ {called(first)}", items_of(outer, first)
        self.surrogate, self.flat = outer.surrogate or first.surrogate, outer.flat or first.flat

    def of_item(self, item: int) -> Any:
        return self.outer.for_item(item) @ self.first.for_item(item)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.first(x))

    def measured(self) -> Tensor | None:
        return self.outer.measured()

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        between = self.image_shape or self.outer.image_shape_for(measurement_shape, channels)
        return self.image_shape or (None if between is None else self.first.image_shape_for(between, channels))


class Composition(Composed, LinearOperator):
    """`Composed` of linear operators."""

    outer: LinearOperator
    first: LinearOperator

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(self.outer.adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        return self.first.adjoint(self.outer.normal(self.first(x)))


class Sum(LinearOperator):
    """(A + B)(x) = A(x) + B(x); raises UserError where their images differ in size, or (called) their measurements in shape."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        super().__init__()
        combining.of_one_image(left, right)
        self.left, self.right, self.nested = left, right, combining.depth(left, right)
        self.image_shape = left.image_shape or right.image_shape
        self.complex_image = left.complex_image or right.complex_image
        self.image_unit, self.waits = left.image_unit or right.image_unit, left.waits or right.waits
        self.name, self.items = f"{called(left)} + {called(right)}", items_of(left, right)

    def of_item(self, item: int) -> Any:
        return self.left.for_item(item) + self.right.for_item(item)

    def forward(self, x: Tensor) -> Tensor:
        return added(self.left, self.right, self.left(x), self.right(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.left.adjoint(y) + self.right.adjoint(y)

    def measured(self) -> Tensor | None:
        # What one of the two did not measure is zero there, and the other's share is data.
        masks = [self.left.measured(), self.right.measured()]
        return None if masks[0] is None or masks[1] is None else masks[0].bool() | masks[1].bool()

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        told = self.image_shape or self.left.image_shape_for(measurement_shape, channels)
        return told or self.right.image_shape_for(measurement_shape, channels)


class Scaled(WrappedLinear, LinearOperator):
    """(s * A)(x) = s A(x).

    Args:
        factor: s, a real number, neither zero nor infinite (UserError).
        inner: A.
    """

    def __init__(self, factor: float, inner: LinearOperator) -> None:
        super().__init__(inner)
        self.factor, self.nested = real_factor(factor), combining.depth(inner)
        self.name, self.parameters_given = f"{self.factor:g} * {called(inner)}", None

    def of_item(self, item: int) -> Any:
        return self.factor * self.inner.for_item(item)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.inner.adjoint(y)

    def normal(self, x: Tensor) -> Tensor:
        return self.factor**2 * self.inner.normal(x)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        return super().prox(z, y / self.factor, rho / self.factor**2, solver)

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        return super().tikhonov(r / self.factor, rho / self.factor**2)

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        return super().pinv(y / self.factor, solver)

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        inner = super().svd(image_shape, like)
        return None if inner is None else inner.scaled(self.factor)

    def svd_on_real_images(self, like: Tensor) -> SingularSystem | None:
        inner = super().svd_on_real_images(like)
        return None if inner is None else inner.scaled(self.factor)

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        return super().baseline(y / self.factor, sigma / abs(self.factor), solver)

    def norm(self, like: Tensor | None = None) -> float:
        return abs(self.factor) * super().norm(None if like is None else like / self.factor)
