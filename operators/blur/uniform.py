"""Blur with one point-spread function: a convolution, with circular, reflecting or zero boundaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from scipy import fft as scipy_fft
from torch import Tensor

from invsolve.contracts.arguments import as_array, by_parts, is_image
from invsolve.contracts.operator import LinearOperator, matching
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.spectrum import RELATIVE_CUT, SingularSystem, hartley, safe_reciprocal

#: The widest Gaussian, in pixels: its kernel has some ten million.
_WIDEST = 500
#: Kernels of so many pixels along an axis, and larger ones, are multiplied with in Fourier space beyond the edges, too.
_FOURIER = 7


def gaussian_kernel(sigma: float) -> Tensor:
    """Gaussian of standard deviation `sigma` pixels, cut at 4 sigma, sum 1; (2r + 1, 2r + 1)."""
    radius = max(1, math.ceil(4 * sigma))
    line = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    kernel = line[:, None] * line[None]
    return (kernel / kernel.sum()).float()


class Blur(LinearOperator):
    """The image convolved with any kernel; circular, reflecting or zero boundaries.

    y = k * x, a true convolution (the kernel is the image of a point); y has the shape of x, (B, C, rows, columns). Every channel
    is blurred alike, and of complex images the real and the imaginary part.

    Args:
        kernel: point-spread function (rows, columns), real; its centre is element (rows // 2, columns // 2). Used as given: it
            is not normalised. A kernel for each item is (items, rows, columns).
        sigma: instead of a kernel, a Gaussian of this standard deviation in pixels.
        boundary: what lies outside the image: its periodic repetition, its mirror image, or zeros.

    Raises:
        UserError: both or neither of kernel and sigma, or a kernel that is complex, empty or not finite.
    """

    name = "blur"
    closed_forms = "proximal solve (circular)"
    advice = "--set sigma=1.5"

    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"sigma": 0.8},
        {"kernel": [[0.1, 0.3, 0.0, 0.1], [0.0, 0.4, 0.1, 0.0]]},
        {"sigma": 0.8, "boundary": "reflect"},
        {"kernel": [[0.2, 0.0, 0.3], [0.1, 0.3, 0.1]], "boundary": "zero"},
    )
    channelwise = True
    item_axes: ClassVar[Mapping[str, int]] = {"kernel": 2}

    def __init__(
        self,
        kernel: Tensor | None = None,
        sigma: float | None = None,
        boundary: Literal["circular", "reflect", "zero"] = "circular",
    ) -> None:
        super().__init__()
        if (kernel is None) == (sigma is None):
            raise UserError("operator 'blur' needs exactly one of kernel= and sigma=")
        if sigma is not None and not 0 < sigma <= _WIDEST:
            raise UserError(f"operator 'blur': sigma must be > 0 and at most {_WIDEST} pixels, got {sigma}")
        kernel = None if kernel is None else as_array(kernel, "operator 'blur': kernel")
        if kernel is not None and (kernel.ndim != 2 or 0 in kernel.shape):
            raise UserError(
                "operator 'blur': kernel must be (rows, columns), or with items in front by invsolve.operator, got shape "
                f"{tuple(kernel.shape)}"
            )
        if kernel is not None and (kernel.is_complex() or not bool(kernel.isfinite().all())):
            kind = "complex" if kernel.is_complex() else "not finite everywhere"
            raise UserError(f"operator 'blur': kernel is {kind}; give real, finite numbers")
        self.kernel = gaussian_kernel(sigma) if sigma is not None else torch.as_tensor(kernel).float()
        self.boundary = boundary

    def transfer(self, x: Tensor) -> Tensor:
        """Optical transfer function for images like x: the rfft2 of the kernel, its centre at the origin."""

        def transformed() -> Tensor:
            rows, columns = x.shape[-2:]
            kernel = matching(self.kernel, x)
            # A kernel wider than the image wraps around, as the periodic repetition says.
            padded = kernel.new_zeros(rows, columns)
            i = (torch.arange(kernel.shape[0], device=x.device) - kernel.shape[0] // 2) % rows
            j = (torch.arange(kernel.shape[1], device=x.device) - kernel.shape[1] // 2) % columns
            padded = padded.index_put((i[:, None], j[None]), kernel, accumulate=True)
            return torch.fft.rfft2(padded)

        return self.remembered(("transfer", *x.shape[-2:], x.real.dtype, x.device), transformed)

    def power(self, x: Tensor) -> Tensor:
        """Squared modulus of `transfer`."""
        return self.remembered(("power", *x.shape[-2:], x.real.dtype, x.device), lambda: self.transfer(x).abs() ** 2)

    def _filter(self, x: Tensor, response: Tensor) -> Tensor:
        return by_parts(lambda part: torch.fft.irfft2(torch.fft.rfft2(part) * response, s=x.shape[-2:]), x)

    def forward(self, x: Tensor) -> Tensor:
        is_image(x, "operator 'blur'")
        if self.boundary == "circular":
            return self._filter(x, self.transfer(x))
        return by_parts(self._inside, x)

    def _inside(self, x: Tensor) -> Tensor:
        """The convolution of real images that are continued beyond their edges."""
        height, width = self.kernel.shape
        (top, bottom), (left, right) = self._beyond
        mode = "reflect" if self.boundary == "reflect" else "constant"
        if mode == "reflect" and (max(left, right) >= x.shape[-1] or max(top, bottom) >= x.shape[-2]):
            raise UserError(
                f"operator 'blur': a {height} x {width} kernel reflects beyond an image of "
                f"{x.shape[-2]} x {x.shape[-1]}; use boundary='circular' or a smaller kernel"
            )
        flat = F.pad(x.flatten(0, 1)[:, None], (left, right, top, bottom), mode=mode)
        if max(height, width) < _FOURIER:
            return F.conv2d(flat, self._weight(x)).view(x.shape)
        size, response = self._larger(x)
        whole = torch.fft.irfft2(torch.fft.rfft2(flat, s=size) * response, s=size)
        rows, columns = x.shape[-2:]
        return whole[..., height - 1 : height - 1 + rows, width - 1 : width - 1 + columns].reshape(x.shape)

    def _inside_adjoint(self, y: Tensor) -> Tensor:
        """The transpose of `_inside`."""
        height, width = self.kernel.shape
        flat = y.flatten(0, 1)[:, None]
        if max(height, width) < _FOURIER:
            flat = F.conv_transpose2d(flat, self._weight(y))
        else:
            size, response = self._larger(y)
            flat = F.pad(flat, (width - 1, 0, height - 1, 0))
            rows, columns = flat.shape[-2:]
            flat = torch.fft.irfft2(torch.fft.rfft2(flat, s=size) * response.conj(), s=size)[..., :rows, :columns]
        for axis, (before, after) in zip((-2, -1), self._beyond, strict=True):
            n = y.shape[axis]
            inner = flat.narrow(axis, before, n)
            if self.boundary == "reflect":
                # What lies outside is that of the mirrored pixels: 1 .. before from the near edge, likewise from the far one.
                near, far = flat.narrow(axis, 0, before).flip(axis), flat.narrow(axis, before + n, after).flip(axis)
                inner = inner + _placed(near, 1, n, axis) + _placed(far, n - 1 - after, n, axis)
            flat = inner
        return flat.reshape(y.shape)

    @property
    def _beyond(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels beyond the edges that a pixel is blurred from: above and below, left and right."""
        height, width = self.kernel.shape
        return (height - 1 - height // 2, height // 2), (width - 1 - width // 2, width // 2)

    def _weight(self, x: Tensor) -> Tensor:
        return matching(self.kernel, x).flip(0, 1)[None, None]

    def _larger(self, x: Tensor) -> tuple[tuple[int, int], Tensor]:
        """Size of transforms that images with what is beyond their edges fit into, and the kernel's."""
        rows, columns = (n + k - 1 for n, k in zip(x.shape[-2:], self.kernel.shape, strict=True))
        size = (scipy_fft.next_fast_len(rows, real=True), scipy_fft.next_fast_len(columns, real=True))
        key = ("larger", *size, x.dtype, x.device)
        return size, self.remembered(key, lambda: torch.fft.rfft2(matching(self.kernel, x), s=size))

    def adjoint(self, y: Tensor) -> Tensor:
        if self.boundary == "circular":
            return self._filter(y, self.transfer(y).conj())
        return by_parts(self._inside_adjoint, y)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        if self.boundary != "circular":
            return super().prox(z, y, rho, solver)

        def solved(z: Tensor, y: Tensor) -> Tensor:
            both = self.transfer(z).conj() * torch.fft.rfft2(y) + rho * torch.fft.rfft2(z)
            return torch.fft.irfft2(both / (self.power(z) + rho), s=z.shape[-2:])

        return by_parts(solved, z, y)

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        if self.boundary != "circular":
            return None
        return self._filter(r, self.transfer(r).conj() / (self.power(r) + rho))

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        if self.boundary != "circular":
            return super().pinv(y, solver)
        transfer = self.transfer(y)
        kept = transfer.abs() > 1e-6 * transfer.abs().max()
        inverse = torch.where(kept, 1 / torch.where(kept, transfer, torch.ones_like(transfer)), 0)
        return self._filter(y, inverse)

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        """The Hartley basis for circular boundaries; the singular values are the modulus of the transfer function."""
        if self.boundary != "circular":
            return None
        half = self.transfer(like)
        rows, columns = image_shape[-2:]
        # The other half of the plane, by symmetry: the kernel is real.
        kernel = torch.fft.irfft2(half, s=(rows, columns))
        transfer = torch.fft.fft2(kernel)
        values = transfer.abs()
        values = torch.where(values > RELATIVE_CUT * values.max(), values, 0.0)
        phase = transfer.conj() * safe_reciprocal(values)

        def measurement_to_basis(y: Tensor) -> Tensor:
            spectrum = torch.fft.fft2(y, norm="ortho") * phase
            return spectrum.real - spectrum.imag

        return SingularSystem(values, hartley, hartley, measurement_to_basis, "hartley")


def _placed(part: Tensor, first: int, length: int, axis: int) -> Tensor:
    """Zeros of a length along an axis, -1 or -2, with a part from `first` on."""
    around = (first, length - first - part.shape[axis])
    return F.pad(part, around if axis == -1 else (0, 0, *around))
