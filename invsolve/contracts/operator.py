"""Forward operators: what an author subclasses (one method is enough) and what a strategy may ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.module import Module
from invsolve.errors import UserError
from invsolve.numerics.krylov import conjugate_gradients, spectral_norm

if TYPE_CHECKING:
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
        examples: keyword arguments of small instances, from which the conformance tests make theirs.
        parameters_given: the keyword arguments it was made from, as written to scan files.
    """

    image_shape: tuple[int, ...] | None = None
    complex_image: bool = False
    image_unit: str = ""
    name: str = ""
    parameters_given: dict[str, Any] | None = None
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

    def prox(
        self,
        z: Tensor,
        y: Tensor,
        rho: float | Tensor,
        start: Tensor | None = None,
        tolerance: float = 1e-5,
        iterations: int = 100,
    ) -> Tensor:
        """Return argmin_x |Ax - y|^2 + rho |x - z|^2; conjugate gradients here, closed form where the physics has one.

        Args:
            z: (B, C, *spatial).
            y: (B, *measurement).
            rho: positive; a number, or a tensor that broadcasts against z.
            start: warm start for iterative solvers; z when absent.
            tolerance, iterations: for iterative solvers, see `conjugate_gradients`.
        """
        return conjugate_gradients(
            lambda x: self.normal(x) + rho * x,
            self.adjoint(y) + rho * z,
            z if start is None else start,
            tolerance,
            iterations,
        )

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        """Return (A'A + rho)^-1 A' r, `prox` from zero, where there is a closed form shorter than that of `prox`; else None."""
        return None

    def pinv(self, y: Tensor, tolerance: float = 1e-6, iterations: int = 200) -> Tensor:
        """Return the least-squares solution of smallest norm (Moore-Penrose)."""
        return conjugate_gradients(self.normal, self.adjoint(y), None, tolerance, iterations)

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

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Return the linear reconstruction that users of this instrument know (FBP, zero-filled, Wiener).

        Args:
            y: (B, *measurement).
            sigma: noise standard deviation, for those that regularise by it. Here: Tikhonov with the signal's standard
                deviation taken as 0.5, half of a [-1, 1] range.
        """
        rho = (torch.as_tensor(sigma, dtype=torch.float64) / 0.5) ** 2
        floor = 1e-6 * self.norm(y) ** 2
        rho = rho.clamp_min(floor).to(y.device, y.real.dtype)
        start = self.adjoint(y)
        rho = rho.reshape(-1, *[1] * (start.ndim - 1)) if rho.ndim else rho
        return self.prox(torch.zeros_like(start), y, rho)

    def norm(self, like: Tensor | None = None) -> float:
        """Return the largest singular value, by power iteration; cached.

        Args:
            like: a measurement (B, *measurement), from which operators of free size take their shape.
        """
        shape = self.image_shape or (self.image_shape_for(like.shape[1:]) if like is not None else None)
        key = tuple(shape) if shape is not None else None
        cache: dict[Any, float] = self.__dict__.setdefault("_norms", {})
        if key not in cache:
            blank = self.blank(1, shape)
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(blank.shape, generator=generator).to(blank)
            with torch.no_grad():
                cache[key] = spectral_norm(self.normal, start)
        return cache[key]

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        from invsolve.contracts.algebra import Composition

        return Composition(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        from invsolve.contracts.algebra import Sum

        return Sum(self, other)

    def __rmul__(self, factor: float) -> LinearOperator:
        from invsolve.contracts.algebra import Scaled

        return Scaled(factor, self)


def stack(operators: Sequence[LinearOperator]) -> LinearOperator:
    """Measure one image with several operators at once; y is their flattened measurements side by side, (B, m1 + m2 + ...)."""
    from invsolve.contracts.algebra import Stack

    return Stack(operators)
