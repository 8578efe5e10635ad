"""The singular system of a linear operator: closed forms name their basis, small operators get it from their dense matrix."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from invsolve.errors import UserError
from invsolve.numerics.linalg import size_of

T = TypeVar("T")

#: Largest side of the Gram matrix that is decomposed: a minute or two on one core, growing with its cube.
DENSE_LIMIT = 6000
#: Most numbers in the dense matrix: 1 GiB in double precision, half of it kept in single.
DENSE_NUMBERS = 2**27
#: Largest shorter side, and largest longer one, of a matrix that is decomposed unasked: less than a second, and each solve
#: through it then takes two products where conjugate gradients take tens of passes through the operator.
SMALL = 1024, 4096
#: Singular values below this part of the largest count as zero: the square root of what the Gram matrix resolves, with room.
RELATIVE_CUT = 1e-5


class LinearMap(Protocol):
    """What is decomposed: a linear operator between images (B, C, *spatial) and measurements (B, *measurement)."""

    name: str

    def __call__(self, x: Tensor) -> Tensor: ...

    def adjoint(self, y: Tensor) -> Tensor: ...

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, kept until the operator changes."""
        ...


@dataclass(frozen=True)
class SingularSystem:
    """A = U S V' for a real operator (or a complex one, with complex coefficients).

    V has orthonormal columns that span at least the row space of A. Where they do not span all images, the rest
    x - V V'x belongs to the null space.

    Attributes:
        values: singular values, >= 0; broadcast against coefficients (B, *basis).
        to_basis: V'x, (B, C, *spatial) -> (B, *basis).
        from_basis: V c, (B, *basis) -> (B, C, *spatial).
        measurement_to_basis: U'y, (B, *measurement) -> (B, *basis); zero where the singular value is zero.
        basis: what V is called, where other operators have it too ("hartley", "pixels"); else empty.
    """

    values: Tensor
    to_basis: Callable[[Tensor], Tensor]
    from_basis: Callable[[Tensor], Tensor]
    measurement_to_basis: Callable[[Tensor], Tensor]
    basis: str = ""

    def scaled(self, factor: float) -> SingularSystem:
        """The system of factor * A."""
        sign = 1.0 if factor >= 0 else -1.0

        def measurement_to_basis(y: Tensor) -> Tensor:
            return sign * self.measurement_to_basis(y)

        return replace(self, values=abs(factor) * self.values, measurement_to_basis=measurement_to_basis)

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor:
        """(A'A + rho)^-1 A' r, (B, *measurement) -> (B, C, *spatial); rho > 0, a number or one a row (B, 1, ...)."""
        seen = self.measurement_to_basis(r)
        if isinstance(rho, Tensor):
            rho = rho.view(-1, *[1] * (seen.ndim - 1))
        return self.from_basis(self.values / (self.values**2 + rho) * seen)

    def on_real_parts(
        self, to_complex: Callable[[Tensor], Tensor], to_real: Callable[[Tensor], Tensor]
    ) -> SingularSystem:
        """The system of a complex-image operator on images of two real channels; coefficients (B, *basis, 2).

        Args:
            to_complex, to_real: between (B, 2, *spatial) and (B, 1, *spatial) complex.
        """
        return SingularSystem(
            self.values[..., None],
            lambda x: torch.view_as_real(self.to_basis(to_complex(x))),
            lambda c: to_real(self.from_basis(torch.view_as_complex(c.contiguous()))),
            lambda y: torch.view_as_real(self.measurement_to_basis(y)),
        )


def side_by_side(
    systems: Sequence[SingularSystem | None], split: Callable[[Tensor], Sequence[Tensor]]
) -> SingularSystem | None:
    """The system of operators on one image whose measurements lie side by side; None unless all have one basis, by name.

    Args:
        systems: of each of them.
        split: their measurements, of what lies side by side.
    """
    parts = [system for system in systems if system is not None and system.basis]
    if len(parts) < len(systems) or len({system.basis for system in parts}) != 1:
        return None
    values = torch.stack(torch.broadcast_tensors(*(system.values for system in parts))).square().sum(0).sqrt()
    inverse = safe_reciprocal(values)

    def measurement_to_basis(y: Tensor) -> Tensor:
        pairs = zip(parts, split(y), strict=True)
        return inverse * torch.stack([s.values * s.measurement_to_basis(piece) for s, piece in pairs]).sum(0)

    return replace(parts[0], values=values, measurement_to_basis=measurement_to_basis)


def hartley(x: Tensor) -> Tensor:
    """Orthonormal 2-D Hartley transform over the last two axes, its own inverse: the Fourier basis in real numbers.

    Circular filters with a real, even response are diagonal in it (Bracewell 1983).
    """
    spectrum = torch.fft.fft2(x, norm="ortho")
    return spectrum.real - spectrum.imag


def safe_reciprocal(values: Tensor) -> Tensor:
    """1 / s, and 0 where s is 0."""
    positive = values > 0
    return torch.where(positive, 1 / torch.where(positive, values, torch.ones_like(values)), 0.0)


def dense_system(operator: LinearMap, image_shape: Sequence[int], like: Tensor) -> SingularSystem:
    """Decompose the dense matrix of a real-image operator, in double precision, through the smaller Gram matrix.

    The matrix is asked of the operator in the precision of `like`: its author need not have thought of another. The factors are
    remembered by the operator until it changes.

    Args:
        operator: real images (B, C, *spatial) to real or complex y.
        image_shape: (C, *spatial).
        like: a measurement (B, *measurement): its shape, precision and device.

    Raises:
        UserError: the operator is too large.
    """
    shape, measurement = tuple(image_shape), tuple(like.shape[1:])

    def decomposed() -> tuple[Tensor, ...]:
        return tuple(t.to(like.real.dtype) for t in _decompose(operator, shape, like))

    left, values, right = operator.remembered(("dense", shape, measurement, like.dtype, like.device), decomposed)
    return SingularSystem(
        values,
        lambda x: x.flatten(1) @ right,
        lambda c: (c @ right.T).view(-1, *shape),
        lambda y: _as_real(y).flatten(1) @ left,
    )


def small(image_shape: Sequence[int], like: Tensor) -> bool:
    """Whether the dense matrix between such images and measurements may be decomposed unasked."""
    shorter, longer = sorted((size_of(image_shape), size_of(like.shape[1:]) * (2 if like.is_complex() else 1)))
    return shorter <= SMALL[0] and longer <= SMALL[1]


def _as_real(y: Tensor) -> Tensor:
    return torch.view_as_real(y) if y.is_complex() else y


def _decompose(operator: LinearMap, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (2m or m, rank), values (rank,), V (pixels, rank), float64; for complex y, U acts on its real and imaginary parts."""
    measurement = tuple(like.shape[1:])
    pixels, numbers = size_of(shape), size_of(measurement) * (2 if like.is_complex() else 1)
    side = min(pixels, numbers)
    if side > DENSE_LIMIT or pixels * numbers > DENSE_NUMBERS:
        raise UserError(
            f"operator {operator.name or type(operator).__name__!r} has no closed-form singular system and is too large for a "
            f"dense one ({numbers} x {pixels}; at most {DENSE_LIMIT} on the smaller side and {DENSE_NUMBERS} numbers)"
        )
    matrix = _dense(operator, shape, like, numbers, by_rows=numbers < pixels)  # (numbers, pixels)
    wide = numbers < pixels
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    squares, vectors = torch.linalg.eigh(gram)
    kept = squares > (RELATIVE_CUT**2) * squares[-1].clamp_min(torch.finfo(squares.dtype).tiny)
    values, vectors = squares[kept].sqrt(), vectors[:, kept]
    others = (matrix.T if wide else matrix) @ vectors / values
    return (vectors, values, others) if wide else (others, values, vectors)


def _dense(
    operator: LinearMap, shape: tuple[int, ...], like: Tensor, numbers: int, by_rows: bool, chunk: int = 256
) -> Tensor:
    """The matrix of the operator as float64, (numbers, pixels): from the adjoint of unit data, or the forward of unit images."""
    measurement = tuple(like.shape[1:])
    total = numbers if by_rows else size_of(shape)
    parts = []
    for first in range(0, total, chunk):
        count = min(chunk, total - first)
        unit = torch.zeros(count, total, dtype=like.real.dtype, device=like.device)
        unit[torch.arange(count), first + torch.arange(count)] = 1.0
        if not by_rows:
            parts.append(_as_real(operator(unit.view(count, *shape))).flatten(1))
        elif like.is_complex():
            parts.append(operator.adjoint(torch.view_as_complex(unit.view(count, *measurement, 2))).flatten(1))
        else:
            parts.append(operator.adjoint(unit.view(count, *measurement)).flatten(1))
    matrix = torch.cat(parts).double()
    return matrix if by_rows else matrix.T
