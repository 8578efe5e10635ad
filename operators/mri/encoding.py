"""Cartesian encoding: Fourier measurements through coils, of images with any number of axes, and what is solved directly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array, as_mask
from invsolve.contracts.maskable import MaskableOperator, numbered
from invsolve.contracts.operator import LinearOperator, matching
from invsolve.errors import UserError
from invsolve.numerics.autograd import linear_map
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import size_of
from invsolve.numerics.spectrum import SingularSystem, safe_reciprocal
from invsolve.operators.mri.fourier import after, before
from invsolve.operators.mri.masks import Pattern, kspace_mask

#: Temporaries of so many bytes stay in a core's cache.
_CACHE = 2**21
#: Maps of this modulus to single precision only turn the phase.
_UNIT = 1e-6


class CartesianEncoding(MaskableOperator):
    """Cartesian k-space of images (B, 1, *size), complex, through coils.

    y_c = mask * F(coil_map_c * x), F the centred orthonormal Fourier transform, calculated as a plain one between two phase
    factors, one of them on the image, the other in the mask.

    Solves are direct where A'A is a projection (one coil, whose map if any is of modulus 1) or a weight on each pixel
    (everything is measured).

    Class attributes:
        dims: axes of an image.
        transformed: how many of them, the last, are transformed.
        axes_named: the names of all, for messages.

    Args: those of `MRI`.
    """

    dims: ClassVar[int]
    transformed: ClassVar[int]
    axes_named: ClassVar[str]
    closed_forms = "proximal solve, singular system (one coil, or everything measured), SENSE"
    complex_image = True

    def __init__(
        self,
        mask: Tensor | Pattern | None,
        coil_maps: Tensor | None,
        image_size: int | list[int] | None,
        acceleration: float | None,
        frames: int | None,
        **pattern: Any,
    ) -> None:
        super().__init__()
        if frames is not None:
            raise UserError(f"{self._title()}: frames are items: make it with invsolve.operator({self.name!r}, ...)")
        maps = None if coil_maps is None else self._maps(coil_maps)
        size = self._size(image_size, maps)
        if isinstance(mask, str) or acceleration is not None:
            mask = self._patterned(mask, size, acceleration, None, pattern)
        if mask is not None:
            mask = as_array(mask, f"{self._title()}: mask")
            size = size or self._size_of(mask)
        if size is None:
            raise UserError(
                f"{self._title()} needs image_size= or a mask= of {self.axes_named} to know the image size"
                f"{', or coil_maps=' if self.dims == self.transformed else ''}"
            )
        if mask is None:
            mask = torch.ones(self._lines(size), dtype=torch.bool)
        given = [1] * (self.dims - mask.ndim) + list(mask.shape)
        if mask.ndim > self.dims or any(m not in (1, n) for m, n in zip(given, size, strict=False)):
            raise UserError(
                f"{self._title()}: mask {tuple(mask.shape)} does not fit images of {_times(size)}; it must be (columns,) or "
                f"({self.axes_named}), of length 1 along axes that are measured whole, and with image_size=[{self.axes_named}] "
                "where it does not tell the size"
            )
        #: Axes along which the mask was given as one for all: a group of k-space is a line along them.
        self.along = tuple(k - self.dims for k, n in enumerate(given) if n == 1)
        self.mask = as_mask(mask, f"{self._title()}").expand(*size).contiguous()
        self.image_shape = (1, *size)
        if maps is not None:
            self.coil_maps = maps

    @classmethod
    def _title(cls) -> str:
        return f"operator {cls.name!r}"

    @classmethod
    def spelled_out(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        mask, acceleration, frames = values["mask"], values["acceleration"], values.get("frames")
        if not isinstance(mask, str) and acceleration is None and frames is None:
            return dict(values)
        size = cls._size(values["image_size"], None) or cls._size_of_maps(values["coil_maps"])
        names = ("centre_fraction", "seed", "phase_axes", "density_power")
        made = cls._patterned(mask, size, acceleration, frames, {name: values[name] for name in names})
        return {**values, "mask": made, "acceleration": None} | ({"frames": None} if "frames" in values else {})

    @classmethod
    def _size_of_maps(cls, maps: Tensor | None) -> tuple[int, ...] | None:
        """The size of the images that coil maps as they are given say, for one item or each."""
        if maps is None:
            return None
        shape = maps.shape if maps.is_complex() else maps.shape[:-1]
        return tuple(shape[-cls.dims :]) if len(shape) > cls.dims else None

    @classmethod
    def _patterned(
        cls,
        mask: Tensor | str | None,
        size: tuple[int, ...] | None,
        acceleration: float | None,
        frames: int | None,
        pattern: Mapping[str, Any],
    ) -> Tensor:
        """The mask that a pattern and an acceleration stand for."""
        if not isinstance(mask, str | None) or acceleration is None:
            lacks = "acceleration=" if isinstance(mask, str) else "the name of a pattern as mask="
            wrong = "give acceleration >= 1 or mask, not both" if acceleration is not None else f"needs {lacks}"
            raise UserError(
                f"{cls._title()}: {wrong}; a mask is an array, or made from a pattern, mask=random, and acceleration="
            )
        if size is None:
            raise UserError(f"{cls._title()} needs image_size= or coil_maps= to make a mask for")
        try:
            return kspace_mask(mask or "random", size, acceleration, frames=frames, **pattern)
        except UserError as error:
            raise UserError(f"{cls._title()}: {error}") from None

    @classmethod
    def _maps(cls, coil_maps: Tensor) -> Tensor:
        maps = as_array(coil_maps, f"{cls._title()}: coil_maps")
        if not bool(maps.isfinite().all()):
            raise UserError(f"{cls._title()}: coil_maps has NaN or infinite entries; give 0 where a coil sees nothing")
        if not maps.is_complex() and maps.ndim == cls.dims + 2 and maps.shape[-1] == 2:
            maps = torch.view_as_complex(maps.float().contiguous())
        if not maps.is_complex() or maps.ndim != cls.dims + 1:
            raise UserError(
                f"{cls._title()}: coil_maps must be complex (coils, {cls.axes_named}), or with items in front by "
                f"invsolve.operator, got {maps.dtype} {tuple(maps.shape)}"
            )
        return maps.to(torch.complex64)

    @classmethod
    def _size(cls, image_size: int | Sequence[int] | None, maps: Tensor | None) -> tuple[int, ...] | None:
        """The size of the images, of what says it."""
        told = None if maps is None else tuple(maps.shape[1:])
        if image_size is None:
            return told
        size = (image_size,) * cls.dims if isinstance(image_size, int) else tuple(int(n) for n in image_size)
        if len(size) != cls.dims or min(size) < 1:
            raise UserError(
                f"{cls._title()}: image_size must be N or [{cls.axes_named}], above 0, got "
                f"{image_size if isinstance(image_size, int) else list(size)}"
            )
        if told not in (None, size):
            raise UserError(f"{cls._title()}: coil_maps of {_times(told)} do not fit images of {_times(size)}")
        return size

    @classmethod
    def _size_of(cls, mask: Tensor) -> tuple[int, ...] | None:
        """The size that a mask alone says: each axis, or of a square the lines."""
        if mask.ndim == cls.dims and 1 not in mask.shape:
            return tuple(mask.shape)
        lines = [n for n in mask.shape if n > 1]
        return (lines[0],) * cls.dims if cls.dims == 2 and len(lines) == 1 else None

    @classmethod
    def _lines(cls, size: Sequence[int]) -> list[int]:
        """The shape of a mask of whole readouts, which run along the rows."""
        return [1 if k == len(size) - 2 else n for k, n in enumerate(size)]

    @classmethod
    def carries_items(cls, parameter: str, value: Tensor) -> bool:
        # Real and imaginary part along a last axis, as files without complex numbers have them.
        pairs = parameter == "coil_maps" and not value.is_complex() and value.shape[-1:] == (2,)
        return super().carries_items(parameter, value[..., 0] if pairs else value)

    @property
    def coils(self) -> int:
        """Number of receive coils."""
        return len(self.coil_maps) if self._through_coils else 1

    @property
    def acceleration(self) -> float:
        """Points of k-space over those measured; infinite where none is."""
        measured = int(self.mask.sum())
        return self.mask.numel() / measured if measured else float("inf")

    @property
    def _through_coils(self) -> bool:
        return "coil_maps" in self._buffers

    @property
    def group_index(self) -> Tensor:  # type: ignore[override]
        """Each line of k-space is a group where whole lines are measured, as the mask said it; else each point."""

        def index() -> Tensor:
            lines = self._first(self.along)
            whole = bool((self.mask == lines).all())
            return numbered(lines if whole else self.mask)[None]

        return self.remembered("groups", index)

    def group_coordinates(self) -> dict[str, Tensor]:
        """Index from 0 along each axis that is undersampled ("column"), and "k_column" in cycles per field of view."""
        sides = self.mask.shape[-self.dims :]
        names = {
            axis: name.removesuffix("s")
            for axis, name in zip(range(-self.dims, 0), self.axes_named.split(", "), strict=True)
        }
        places = self._indices(names)
        middles = {names[axis]: sides[axis] // 2 for axis in self._axes}
        return places | {f"k_{name}": places[name] - middle for name, middle in middles.items() if name in places}

    def _first(self, axes: Sequence[int]) -> Tensor:
        """The mask at the first point along these axes, which stay, of length 1."""
        mask = self.mask
        for axis in axes:
            mask = mask.narrow(axis, 0, 1)
        return mask

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-self.transformed, 0))

    def _factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """What images and k-space are multiplied with, in the precision of a complex tensor: Q, and P times the mask.

        The second also makes the plain sum of F orthonormal, which otherwise is a pass of its own over all of k-space.
        """

        def made() -> tuple[Tensor, Tensor]:
            size = tuple(self.mask.shape[-self.transformed :])
            share = after(size).to(like.device) / math.sqrt(math.prod(size))
            return before(size).to(like), (share * self.mask).to(like)

        return self.remembered(("factors", like.dtype, like.device), made)

    def _uneven(self, like: Tensor) -> tuple[tuple[int, ...], Tensor]:
        """The axes along which the mask is not the same everywhere; the mask in `fftn`'s order, of length 1 along the others.

        The mask is divided by the number of points that are transformed, for `fftn` and its transpose without a factor.
        """

        def made() -> tuple[tuple[int, ...], Tensor]:
            same = [axis for axis in self._axes if bool((self.mask == self._first([axis])).all())]
            axes = tuple(axis for axis in self._axes if axis not in same)
            mask = self._first(same)
            if not axes:
                return axes, mask.to(like)
            return axes, torch.fft.ifftshift(mask, axes).to(like) / math.prod(mask.shape[axis] for axis in axes)

        return self.remembered(("uneven", like.dtype, like.device), made)

    def _shares(self, like: Tensor) -> Iterator[Tensor]:
        """The coil maps, a few at a time: on a processor as many as its cache holds."""
        maps = matching(self.coil_maps, like)
        each = max(1, size_of(like.shape) * like.element_size())
        return iter(maps.split(max(1, _CACHE // each) if like.device.type == "cpu" else len(maps)))

    def _through_each(self, x: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        """The sum over the coils of conj(map) apply(map x)."""
        total = torch.zeros_like(x)
        for maps in self._shares(x):
            total = _onto(total, apply(x * maps), maps)
        return total

    def _check_complex(self, x: Tensor) -> None:
        if not x.is_complex():
            raise UserError(
                f"{self._title()} takes complex images (B, 1, {self.axes_named}), got {x.dtype}; "
                "use torch.complex(real, imaginary)"
            )

    def forward(self, x: Tensor) -> Tensor:
        self._check_complex(x)
        if self._through_coils and not self.coil_maps.requires_grad:
            return linear_map(x, self._encoded, self.adjoint)
        first, last = self._factors(x)
        x = x * first
        if self._through_coils:
            x = x * matching(self.coil_maps, x)
        return torch.fft.fftn(x, dim=self._axes).mul_(last)

    def _encoded(self, x: Tensor) -> Tensor:
        """`forward`, coil by coil, each from its image to the measurement in a core's cache; without autograd."""
        first, last = self._factors(x)
        x, start = x * first, 0
        y = x.new_empty(len(x), self.coils, *x.shape[2:])
        for maps in self._shares(x):
            part = torch.fft.fftn(x * maps, dim=self._axes)
            torch.mul(part, last, out=y[:, start : start + len(maps)])
            start += len(maps)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        if not y.is_complex():
            y = y.to(y.dtype.to_complex())
        first, last = self._factors(y)
        last = last.conj().resolve_conj()
        if not self._through_coils:
            return torch.fft.ifftn(y * last, dim=self._axes, norm="forward") * first.conj()
        total, start = torch.zeros_like(y[:, :1]), 0
        for maps in self._shares(y[:, :1]):
            part = y[:, start : start + len(maps)] * last
            total = _onto(total, torch.fft.ifftn(part, dim=self._axes, norm="forward"), maps)
            start += len(maps)
        return total * first.conj()

    def normal(self, x: Tensor) -> Tensor:
        """A'A x: transforms along the axes alone along which the mask varies, as those along the others cancel."""
        self._check_complex(x)
        axes, mask = self._uneven(x)

        def seen(image: Tensor) -> Tensor:
            if not axes:
                return image * mask
            return torch.fft.ifftn(torch.fft.fftn(image, dim=axes).mul_(mask), dim=axes, norm="forward")

        return self._through_each(x, seen) if self._through_coils else seen(x)

    def _weight(self, like: Tensor) -> Tensor | None:
        """The sum of squares of the coil maps, (1, 1, *size), where everything is measured; else None."""

        def made() -> Tensor | None:
            if not self._through_coils or not bool(self.mask.all()):
                return None
            return matching(self.coil_maps, like).abs().square().sum(0)[None, None]

        return self.remembered(("weight", like.dtype, like.device), made)

    def _projects(self) -> bool:
        """Whether A'A is a projection: one coil, of modulus 1."""

        def made() -> bool:
            if not self._through_coils:
                return True
            return len(self.coil_maps) == 1 and bool((self.coil_maps.abs() - 1).abs().max() < _UNIT)

        return self.remembered("projects", made)

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        if self._projects():
            return self.adjoint(r) / (1 + rho)
        weight = self._weight(r)
        return None if weight is None else self.adjoint(r) / (weight + rho)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        if not self._projects() and self._weight(y) is None:
            return super().prox(z, y, rho, solver)
        step = self.tikhonov(y - self(z), rho)
        assert step is not None
        return z + step

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        if self._projects():
            return self.adjoint(y)
        weight = self._weight(y)
        return super().pinv(y, solver) if weight is None else self.adjoint(y) * safe_reciprocal(weight)

    def restricted(self, selected: Tensor) -> LinearOperator:
        return self._with_less(selected)

    def _whole(self) -> Self:
        """The same with everything measured."""
        other = self.twin()
        other.__dict__.update(_buffers=self._buffers | {"mask": torch.ones_like(self.mask)}, _remembered={})
        return other

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        """K-space for one coil of modulus 1, where a value is 1 where measured, else 0; pixels where everything is measured."""
        weight = self._weight(like)
        if self._projects():
            whole, mask = self._whole(), matching(self.mask, like.real)
            name = "" if self._through_coils else "k-space"
            return SingularSystem(mask[None, None], whole.forward, whole.adjoint, lambda y: mask * y, name)
        return None if weight is None else self._by_pixels(weight, self.adjoint)

    def svd_on_real_images(self, like: Tensor) -> SingularSystem | None:
        """The same on images of one real channel.

        Without maps A'A averages the mask over k and -k, so the Hartley basis diagonalises it; values 0, sqrt(1/2), 1. A map
        of modulus 1 mixes the pixels otherwise.
        """
        weight = self._weight(like)
        if weight is not None:
            return self._by_pixels(weight, lambda y: self.adjoint(y).real)
        if self._through_coils:
            return None
        mask = torch.fft.ifftshift(matching(self.mask, like.real), self._axes)
        mirrored = mask.flip(self._axes).roll((1,) * self.transformed, self._axes)
        values = ((mask + mirrored) / 2).sqrt()[None, None]
        inverse = safe_reciprocal(values)

        def hartley(x: Tensor) -> Tensor:
            spectrum = torch.fft.fftn(x, dim=self._axes, norm="ortho")
            return spectrum.real - spectrum.imag

        name = "hartley" if self.dims == self.transformed == 2 else ""
        return SingularSystem(values, hartley, hartley, lambda y: inverse * hartley(self.adjoint(y).real), name)

    @staticmethod
    def _by_pixels(weight: Tensor, adjoint: Callable[[Tensor], Tensor]) -> SingularSystem:
        values = weight.sqrt()
        inverse = safe_reciprocal(values)
        return SingularSystem(values, lambda x: x, lambda c: c, lambda y: inverse * adjoint(y), "pixels")

    @property
    def baseline_floor(self) -> float | None:
        return None if self._projects() else 1e-3

    @property
    def ridge_by_noise(self) -> bool:
        return not self._projects()

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        """Zero-filled for one coil, SENSE (Pruessmann 1999; regularised by the noise, lightly without) for several."""
        if self._projects():
            return self.adjoint(y)
        return super().baseline(y, sigma, CG(1e-4, 50) if solver is None else solver)

    def measured(self) -> Tensor | None:
        return self.mask != 0


def _onto(total: Tensor, images: Tensor, maps: Tensor) -> Tensor:
    """total + the sum over the coils of conj(maps) images, without a temporary of all coils."""
    for coil, weights in enumerate(maps.conj().resolve_conj()):
        total = torch.addcmul(total, images[:, coil : coil + 1], weights)
    return total


def _times(size: Sequence[int] | None) -> str:
    return " x ".join(map(str, size or ()))
