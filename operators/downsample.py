"""Downsampling: the image through a kernel, of which every few pixels one is kept; the operator of super-resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.arguments import as_array, by_parts, is_image
from invsolve.contracts.operator import LinearOperator, matching
from invsolve.contracts.paper import Paper
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.spectrum import RELATIVE_CUT, SingularSystem, hartley, safe_reciprocal


def area_weights(factor: int) -> Tensor:
    """The mean of `factor` pixels, (factor,), float64."""
    return torch.full((factor,), 1 / factor, dtype=torch.float64)


def bicubic_weights(factor: int) -> Tensor:
    """Keys' cubic (a = -1/2) stretched by `factor`, as Pillow and Matlab shrink images; (4 factor - factor % 2,), sum 1."""
    radius = 2 * factor - (1 if factor % 2 else 0.5)
    t = torch.arange(-radius, radius + 0.25, dtype=torch.float64).abs() / factor
    inner, outer = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = torch.where(t < 1, inner, outer)
    return weights / weights.sum()


class Downsample(LinearOperator):
    """Fewer pixels: area means, bicubic, or any kernel and decimation; super-resolution.

    y[i, j] = (kernel * x)[f i + (f - 1) // 2, f j + (f - 1) // 2], * a convolution: the kernel lies over the middle of the
    f x f pixels that become one. x (B, C, rows, columns), y (B, C, rows / f, columns / f). Where the boundary is circular,
    AA' is a circular convolution of the small image, with the mean over its aliases of |transfer function|^2 for a spectrum;
    so (A'A + rho)^-1 and the singular vectors are closed forms (Zhao 2016, fast single image super-resolution).

    Args:
        factor: f, a whole number; or [rows, columns], one for each axis.
        kernel: "area", the mean of the f x f pixels; "bicubic", stretched against aliasing as in Pillow and Matlab; or a
            point-spread function (rows, columns) in pixels of x, its centre at element (rows // 2, columns // 2), not normalised.
            A kernel for each item is (items, rows, columns).
        boundary: what lies outside the image: its periodic repetition, its mirror image, or zeros.
        image_shape: [channels, rows, columns] of x, where it is to be fixed; without it any size that the factor divides.

    Raises:
        UserError: a factor below 1, a size that it does not divide, or a kernel that is complex or not finite.
    """

    name = "downsample"
    paper = Paper(
        "Fast Single Image Super-Resolution Using a New Analytical Solution for l2-l2 Problems",
        ("Ningning Zhao", "Qi Wei", "Adrian Basarab", "Nicolas Dobigeon", "Denis Kouamé", "Jean-Yves Tourneret"),
        2016,
        "doi:10.1109/TIP.2016.2567075",
    )
    closed_forms = "proximal solve, pseudo-inverse, singular system (circular)"

    examples = (
        {"factor": 2, "image_shape": [1, 12, 12]},
        {"factor": [2, 3], "kernel": "bicubic", "image_shape": [2, 8, 15]},
        {"factor": 3, "kernel": [[0.1, 0.3, 0.0, 0.1], [0.0, 0.4, 0.1, 0.0]], "image_shape": [1, 9, 12]},
        {"factor": 2, "kernel": "bicubic", "boundary": "reflect", "image_shape": [1, 12, 10]},
        {"factor": 2, "kernel": [[0.2, 0.0, 0.3], [0.1, 0.3, 0.1]], "boundary": "zero", "image_shape": [1, 10, 10]},
    )
    channelwise = True
    item_axes: ClassVar[Mapping[str, int]] = {"kernel": 2}

    def __init__(
        self,
        factor: int | list[int],
        kernel: Literal["area", "bicubic"] | Tensor = "area",
        boundary: Literal["circular", "reflect", "zero"] = "circular",
        image_shape: list[int] | None = None,
    ) -> None:
        super().__init__()
        pair = (factor, factor) if isinstance(factor, int) else tuple(factor)
        if len(pair) != 2 or min(pair) < 1:
            raise UserError(f"operator 'downsample': factor must be N or [rows, columns], at least 1, got {factor}")
        self.factor = (pair[0], pair[1])
        if not isinstance(kernel, str):
            kernel = as_array(kernel, "operator 'downsample': kernel")
            if kernel.ndim != 2 or 0 in kernel.shape or kernel.is_complex() or not bool(kernel.isfinite().all()):
                raise UserError(
                    "operator 'downsample': kernel must be real, (rows, columns), and finite, or with items in front by "
                    f"invsolve.operator, got {kernel.dtype} {tuple(kernel.shape)}"
                )
            self.kernel = kernel.float()
        else:
            weights = area_weights if kernel == "area" else bicubic_weights
            self.kernel = torch.outer(weights(pair[0]), weights(pair[1])).float()
        self.boundary = boundary
        if image_shape is not None:
            if len(image_shape) != 3 or min(image_shape) < 1:
                raise UserError(
                    f"operator 'downsample': image_shape must be [channels, rows, columns], above 0, got {image_shape}"
                )
            self._divides(image_shape[1:])
            self.image_shape = tuple(image_shape)

    def _divides(self, size: Sequence[int]) -> None:
        if size[0] % self.factor[0] or size[1] % self.factor[1]:
            fitting = " x ".join(str(n - n % f) for n, f in zip(size, self.factor, strict=True))
            raise UserError(
                f"operator 'downsample': an image of {size[0]} x {size[1]} pixels has no whole number of "
                f"{self.factor[0]} x {self.factor[1]}; crop it to {fitting}"
            )

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        if self.image_shape is not None or len(measurement_shape) != 3:
            return self.image_shape
        count, rows, columns = measurement_shape
        return count, rows * self.factor[0], columns * self.factor[1]

    def _reach(self) -> tuple[int, int, int, int]:
        """How far the kernel reaches beyond the image: left, right, top, bottom, in pixels; negative where it stays inside."""
        reach: list[int] = []
        for axis in (1, 0):
            f, length = self.factor[axis], self.kernel.shape[axis]
            middle = (
                f - 1
            ) // 2 + length // 2  # from the last pixel of the kernel at the first output to the image's edge
            before = length - 1 - middle
            reach += [before, length - before - f]
        return reach[0], reach[1], reach[2], reach[3]

    def _wrapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of the image that the kernel meets, over its periodic repetition."""
        left, right, top, bottom = self._reach()
        rows, columns = x.shape[-2:]
        i = torch.arange(-top, rows + bottom, device=x.device) % rows
        j = torch.arange(-left, columns + right, device=x.device) % columns
        return i, j

    def forward(self, x: Tensor) -> Tensor:
        is_image(x, "operator 'downsample'")
        self._divides(x.shape[-2:])
        return by_parts(self._shrunk, x)

    def _shrunk(self, x: Tensor) -> Tensor:
        """The measurement of real images."""
        flat = x.flatten(0, 1)[:, None]
        reach = self._reach()
        if self.boundary == "circular":
            if any(reach):
                i, j = self._wrapped(x)
                flat = flat.index_select(-2, i).index_select(-1, j)
        else:
            mode = "reflect" if self.boundary == "reflect" else "constant"
            if mode == "reflect" and (max(reach[:2]) >= x.shape[-1] or max(reach[2:]) >= x.shape[-2]):
                height, width = self.kernel.shape
                raise UserError(
                    f"operator 'downsample': a {height} x {width} kernel reflects beyond an image of "
                    f"{x.shape[-2]} x {x.shape[-1]}; use boundary='circular' or a smaller kernel"
                )
            flat = F.pad(flat, reach, mode=mode)
        weight = matching(self.kernel, x).flip(0, 1)[None, None]
        return F.conv2d(flat, weight, stride=self.factor).unflatten(0, x.shape[:2])[:, :, 0]

    def adjoint(self, y: Tensor) -> Tensor:
        return by_parts(super().adjoint if self.boundary != "circular" else self._spread, y)

    def _spread(self, y: Tensor) -> Tensor:
        """The adjoint of real measurements, over the periodic repetition."""
        rows, columns = y.shape[-2] * self.factor[0], y.shape[-1] * self.factor[1]
        left, right, top, bottom = self._reach()
        weight = matching(self.kernel, y).flip(0, 1)[None, None]
        flat = F.conv_transpose2d(y.flatten(0, 1)[:, None], weight, stride=self.factor)
        # The stride leaves out pixels at the end that no kernel meets, where it is shorter than a block.
        flat = F.pad(flat, (0, columns + left + right - flat.shape[-1], 0, rows + top + bottom - flat.shape[-2]))
        if any((left, right, top, bottom)):
            i, j = self._wrapped(y.new_empty(rows, columns))
            flat = flat.new_zeros(*flat.shape[:-2], rows, flat.shape[-1]).index_add(-2, i, flat)
            flat = flat.new_zeros(*flat.shape[:-1], columns).index_add(-1, j, flat)
        return flat.unflatten(0, y.shape[:2])[:, :, 0]

    def _response(self, y: Tensor) -> Tensor:
        """What a frequency of the image contributes to the one it is folded onto; (rows, columns) of x, complex128.

        In the orthonormal transforms of both: transfer function, shift onto the first kept pixel, over the root of the pixels
        that become one. In double precision, as ratios of it are orthonormal vectors.
        """
        sizes = [n * f for n, f in zip(y.shape[-2:], self.factor, strict=True)]
        kernel = self.kernel.double()
        places, shifts = [], []
        for axis in (0, 1):
            length, f, size = kernel.shape[axis], self.factor[axis], sizes[axis]
            places.append((torch.arange(length, device=y.device) - length // 2) % size)
            frequency = torch.arange(size, device=y.device, dtype=torch.float64) / size
            shifts.append(torch.polar(torch.full_like(frequency, f**-0.5), 2 * torch.pi * frequency * ((f - 1) // 2)))
        padded = kernel.new_zeros(sizes).index_put((places[0][:, None], places[1][None]), kernel, accumulate=True)
        return torch.fft.fft2(padded) * shifts[0][:, None] * shifts[1]

    def _aliases(self, spectrum: Tensor) -> Tensor:
        """(..., rows, columns) of x as (..., f, rows of y, f, columns of y): the frequencies that are folded onto one."""
        rows, columns = self.factor
        return spectrum.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))

    def _modes(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Singular values (rows, columns) of y, and the response over them, as `_aliases`."""

        def computed() -> tuple[Tensor, Tensor]:
            response = self._aliases(self._response(y))
            values = response.abs().square().sum((-4, -2)).sqrt()
            values = torch.where(values > RELATIVE_CUT * values.max(), values, 0.0)
            ratio = response * safe_reciprocal(values)[:, None]
            return values.to(y.dtype), ratio.to(y.dtype.to_complex())

        return self.remembered(("modes", *y.shape[-2:], y.dtype, y.device), computed)

    def _power(self, y: Tensor) -> Tensor:
        """The spectrum of AA' as rfft2 has it, for measurements like y."""

        def computed() -> Tensor:
            power = self._aliases(self._response(y)).abs().square().sum((-4, -2))
            return power[..., : y.shape[-1] // 2 + 1].to(y.dtype)

        return self.remembered(("power", *y.shape[-2:], y.dtype, y.device), computed)

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        if self.boundary != "circular":
            return None

        def divided(part: Tensor) -> Tensor:
            return torch.fft.irfft2(torch.fft.rfft2(part) / (self._power(part) + rho), s=part.shape[-2:])

        return self.adjoint(by_parts(divided, r))

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        step = self.tikhonov(y - self(z), rho)
        return super().prox(z, y, rho, solver) if step is None else z + step

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        if self.boundary != "circular":
            return super().pinv(y, solver)
        power = self._power(y.real)
        inverse = safe_reciprocal(torch.where(power > RELATIVE_CUT**2 * power.max(), power, 0.0))
        return self.adjoint(by_parts(lambda v: torch.fft.irfft2(torch.fft.rfft2(v) * inverse, s=v.shape[-2:]), y))

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        """U the Hartley basis of the small image, V what is folded onto one of its frequencies; for circular boundaries."""
        if self.boundary != "circular" or like.is_complex():
            return None
        values, ratio = self._modes(like)
        seen = (values > 0).to(values.dtype)

        def to_basis(x: Tensor) -> Tensor:
            folded = (ratio * self._aliases(torch.fft.fft2(x, norm="ortho"))).sum((-4, -2))
            return folded.real - folded.imag

        def from_basis(c: Tensor) -> Tensor:
            folded = torch.fft.fft2(hartley(c), norm="ortho")
            spectrum = ratio.conj() * folded[..., None, :, None, :]
            return torch.fft.ifft2(spectrum.flatten(-4, -3).flatten(-2, -1), norm="ortho").real

        return SingularSystem(values, to_basis, from_basis, lambda y: seen * hartley(y))

    def norm(self, like: Tensor | None = None) -> float:
        if self.boundary != "circular" or (self.image_shape is None and like is None):
            return super().norm(like)
        if like is None or self.image_shape is not None:
            like = self.kernel.new_empty(1, *self.measurement_shape(self.image_shape or ()))
        return float(self._power(like.real).max().sqrt())
