"""Forward operators: what an author subclasses (one method is enough), what a strategy may ask of them, and their algebra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from invsolve.contracts.module import Module
from invsolve.contracts.wrapped import WrappedLinear
from invsolve.errors import UserError
from invsolve.numerics.autograd import Tangent
from invsolve.numerics.krylov import CG, spectral_norm
from invsolve.numerics.linalg import size_of
from invsolve.numerics.spectrum import SingularSystem


def matching(buffer: Tensor, x: Tensor) -> Tensor:
    """Return `buffer` in the precision of `x`: real stays real, complex stays complex."""
    real = x.dtype.to_real() if x.is_complex() else x.dtype
    return buffer.to(real.to_complex() if buffer.is_complex() else real)


class Operator(Module):
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
        parameters_given: the keyword arguments it was made from, as written to scan files.
    """

    image_shape: tuple[int, ...] | None = None
    complex_image: bool = False
    image_unit: str = ""
    name: str = ""
    parameters_given: dict[str, Any] | None = None
    closed_forms: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    def __call__(self, x: Tensor) -> Tensor:
        """Return A(x); refuses images whose size the operator was not made for."""
        if self.image_shape is not None and tuple(x.shape[1:]) != tuple(self.image_shape):
            raise UserError(
                f"operator {self.name or type(self).__name__!r} takes images (channels, *size) of "
                f"{tuple(self.image_shape)}, got {tuple(x.shape[1:])}"
            )
        return super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return A(x)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")

    def measured(self) -> Tensor | None:
        """Boolean tensor, broadcastable to y, of the entries that carry data; None when all do."""
        return None

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


class LinearOperator(Operator):
    """A linear operator: `forward`, and `adjoint`, derived by autograd when the author gives none.

    The inner product is Re <a, b>, so that a real operator seen through complex numbers has one adjoint.
    """

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

        A solve weighs entries by their noise; formulas such as filtered back-projection take y as it is.
        """
        return 1e-6 if type(self).baseline is LinearOperator.baseline else None

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Return the linear reconstruction that users of this instrument know (FBP, zero-filled, Wiener).

        Args:
            y: (B, *measurement).
            sigma: noise standard deviation, for those that regularise by it. Here: Tikhonov with the signal's standard
                deviation taken as 0.5, half of a [-1, 1] range.
        """
        rho = (torch.as_tensor(sigma, dtype=torch.float64) / 0.5) ** 2
        floor = (self.baseline_floor or 0.0) * self.norm(y) ** 2
        rho = rho.clamp_min(floor).to(y.device, y.real.dtype)
        start = self.adjoint(y)
        rho = rho.reshape(-1, *[1] * (start.ndim - 1)) if rho.ndim else rho
        return self.prox(torch.zeros_like(start), y, rho)

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

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Composition(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
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
        self.complex_image, self.name = operator.complex_image, f"tangent of {_called(operator)}"
        self.tangent = Tangent(operator, x)
        if not self.tangent.exists:
            raise UserError(
                f"operator {_called(operator)!r} has no tangent: its forward is not differentiable by torch"
            )
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


class Composition(LinearOperator):
    """(A @ B)(x) = A(B(x)): images of B, measurements of A."""

    def __init__(self, outer: LinearOperator, first: LinearOperator) -> None:
        super().__init__()
        self.outer, self.first = outer, first
        self.image_shape, self.complex_image, self.image_unit = first.image_shape, first.complex_image, first.image_unit
        self.name = f"{_called(outer)} @ {_called(first)}"

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.first(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(self.outer.adjoint(y))

    def measured(self) -> Tensor | None:
        return self.outer.measured()

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        between = self.image_shape or self.outer.image_shape_for(measurement_shape, channels)
        return self.image_shape or (None if between is None else self.first.image_shape_for(between, channels))


class Sum(LinearOperator):
    """(A + B)(x) = A(x) + B(x)."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.image_shape = left.image_shape or right.image_shape
        self.complex_image = left.complex_image or right.complex_image
        self.image_unit = left.image_unit or right.image_unit
        self.name = f"{_called(left)} + {_called(right)}"

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.left.adjoint(y) + self.right.adjoint(y)

    def measured(self) -> Tensor | None:
        # What one of the two did not measure is zero there, and the other's share is data.
        masks = [self.left.measured(), self.right.measured()]
        return None if masks[0] is None or masks[1] is None else masks[0].bool() | masks[1].bool()

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        told = self.image_shape or self.left.image_shape_for(measurement_shape, channels)
        return told or self.right.image_shape_for(measurement_shape, channels)


class Stack(LinearOperator):
    """Several operators on one image, measurements flattened side by side: y (B, m1 + m2 + ...)."""

    parts: nn.ModuleList

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(operators)
        self.image_shape = next((a.image_shape for a in operators if a.image_shape is not None), None)
        self.complex_image = any(a.complex_image for a in operators)
        self.image_unit = next((a.image_unit for a in operators if a.image_unit), "")
        self.name = f"stack of {', '.join(_called(a) for a in operators)}"

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each part's measurement.

        Raises:
            UserError: no part knows its image's shape, and none was assigned to `image_shape`.
        """
        shape = tuple(self.blank().shape[1:])
        return self.remembered(shape, lambda: [part.measurement_shape(shape) for part in self.parts])  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        shapes = self.shapes()
        parts = zip(self.parts, y.split([size_of(s) for s in shapes], 1), shapes, strict=True)
        return torch.stack([part.adjoint(piece.reshape(-1, *s)) for part, piece, s in parts]).sum(0)  # type: ignore[operator]

    def measured(self) -> Tensor | None:
        masks = [part.measured() for part in self.parts]  # type: ignore[operator]
        if all(mask is None for mask in masks):
            return None
        place = next(mask.device for mask in masks if mask is not None)
        whole = torch.ones((), dtype=torch.bool, device=place)
        pairs = zip(masks, self.shapes(), strict=True)
        return torch.cat([(whole if m is None else m.bool()).expand(s).flatten() for m, s in pairs])

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        return self.image_shape


class Scaled(WrappedLinear, LinearOperator):
    """(s * A)(x) = s A(x).

    Args:
        factor: s, a real number, not zero.
        inner: A.

    Raises:
        UserError: the factor is zero or not finite.
    """

    def __init__(self, factor: float, inner: LinearOperator) -> None:
        super().__init__(inner)
        self.factor = float(factor)
        if not 0 < abs(self.factor) < float("inf"):
            raise UserError(f"an operator can be multiplied by a finite number other than 0, got {factor}")
        self.name, self.parameters_given = f"{self.factor:g} * {_called(inner)}", None

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

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        return super().baseline(y / self.factor, sigma / abs(self.factor))

    def norm(self, like: Tensor | None = None) -> float:
        return abs(self.factor) * super().norm(None if like is None else like / self.factor)


def stack(operators: Sequence[LinearOperator]) -> LinearOperator:
    """Measure one image with several operators at once; y is their flattened measurements side by side, (B, m1 + m2 + ...)."""
    return Stack(operators)


def _called(operator: Operator) -> str:
    return operator.name or type(operator).__name__
