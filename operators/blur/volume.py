"""Blur of volumes: convolution with a three-dimensional point-spread function, as a microscope that focuses in depth has it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array, by_parts
from invsolve.contracts.operator import LinearOperator
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.spectrum import RELATIVE_CUT, SingularSystem, safe_reciprocal

_AXES = (-3, -2, -1)
#: The widest Gaussian, in pixels; the kernel has eight times as many along an axis.
_WIDEST = 50


def gaussian(sigma: Sequence[float]) -> Tensor:
    """A Gaussian of these standard deviations in pixels, one for each axis, cut at 4 of them, sum 1; float64."""
    kernel = torch.ones((), dtype=torch.float64)
    for width in sigma:
        radius = math.ceil(4 * width)
        line = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * max(width, 1e-9) ** 2))
        kernel = kernel[..., None] * (line / line.sum())
    return kernel


class VolumeBlur(LinearOperator):
    """A volume convolved with a kernel in depth, rows and columns; circular or zero boundaries.

    y = kernel * x, a true convolution; x and y (B, C, depth, rows, columns), of any size.

    Args:
        kernel: point-spread function (depth, rows, columns), real; its centre is element (depth // 2, rows // 2, columns // 2).
            Used as given: not normalised. A kernel for each item is (items, depth, rows, columns).
        sigma: instead of a kernel, a Gaussian of these standard deviations in pixels, [depth, rows, columns]; 0 for none.
        boundary: what lies outside the volume: its periodic repetition, or zeros.

    Raises:
        UserError: not exactly one of kernel and sigma, or one of another shape; (when applied) x is no volume.
    """

    name = "blur-3d"
    closed_forms = "proximal solve, singular system (circular)"
    shapes_tried = ((1, 4, 6, 5),)
    item_axes: ClassVar[Mapping[str, int]] = {"kernel": 3}
    examples = (
        {"sigma": [0.8, 0.5, 0.0]},
        {"kernel": [[[0.1, 0.3], [0.0, 0.1]], [[0.2, 0.0], [0.2, 0.1]], [[0.0, 0.1], [0.3, 0.0]]], "boundary": "zero"},
    )

    def __init__(
        self,
        kernel: Tensor | None = None,
        sigma: list[float] | None = None,
        boundary: Literal["circular", "zero"] = "circular",
    ) -> None:
        super().__init__()
        if (kernel is None) == (sigma is None):
            raise UserError("operator 'blur-3d' needs exactly one of kernel= and sigma=")
        if sigma is not None and (len(sigma) != 3 or not all(0 <= s <= _WIDEST for s in sigma)):
            raise UserError(
                f"operator 'blur-3d': sigma must be [depth, rows, columns] in pixels, from 0 to {_WIDEST}, got {sigma}"
            )
        given = gaussian(sigma or ()) if kernel is None else as_array(kernel, "operator 'blur-3d': kernel")
        if given.ndim != 3 or 0 in given.shape or given.is_complex() or not bool(given.isfinite().all()):
            raise UserError(
                "operator 'blur-3d': kernel must be real and finite, (depth, rows, columns), got "
                f"{given.dtype} {tuple(given.shape)}"
            )
        self.kernel, self.boundary = given.float(), boundary

    def _size(self, x: Tensor) -> list[int]:
        """Of the transforms: the volume's, or as much more as the kernel reaches beyond."""
        reach = [k - 1 if self.boundary == "zero" else 0 for k in self.kernel.shape]
        return [n + r for n, r in zip(x.shape[-3:], reach, strict=True)]

    def _padded(self, x: Tensor) -> Tensor:
        """The kernel at the size of the transforms, its centre at the origin, float64; what is wider wraps around."""
        size = self._size(x)
        kernel = self.kernel.double()
        d, i, j = ((torch.arange(k, device=x.device) - k // 2) % n for k, n in zip(kernel.shape, size, strict=True))
        return kernel.new_zeros(size).index_put((d[:, None, None], i[:, None], j), kernel, accumulate=True)

    def transfer(self, x: Tensor) -> Tensor:
        """The kernel's rfftn for real volumes like x."""
        key = ("transfer", *x.shape[-3:], x.dtype, x.device)
        return self.remembered(key, lambda: torch.fft.rfftn(self._padded(x)).to(x.dtype.to_complex()))

    def _filter(self, x: Tensor, response: Tensor) -> Tensor:
        size, (depth, rows, columns) = self._size(x), x.shape[-3:]
        spectrum = torch.fft.rfftn(x, s=size, dim=_AXES) * response
        return torch.fft.irfftn(spectrum, s=size, dim=_AXES)[..., :depth, :rows, :columns]

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5:
            raise UserError(
                f"operator 'blur-3d' takes volumes (items, channels, depth, rows, columns), got {tuple(x.shape)}"
            )
        return by_parts(lambda part: self._filter(part, self.transfer(part)), x)

    def adjoint(self, y: Tensor) -> Tensor:
        return by_parts(lambda part: self._filter(part, self.transfer(part).conj()), y)

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        if self.boundary != "circular":
            return None

        def solved(part: Tensor) -> Tensor:
            transfer = self.transfer(part)
            return self._filter(part, transfer.conj() / (transfer.abs().square() + rho))

        return by_parts(solved, r)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        step = self.tikhonov(y - self(z), rho)
        return super().prox(z, y, rho, solver) if step is None else z + step

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        """The Hartley basis for circular boundaries; the singular values are the modulus of the transfer function."""
        if self.boundary != "circular" or like.is_complex():
            return None
        transfer = torch.fft.fftn(self._padded(like))
        values = transfer.abs()
        values = torch.where(values > RELATIVE_CUT * values.max(), values, 0.0)
        phase = (transfer.conj() * safe_reciprocal(values)).to(like.dtype.to_complex())

        def hartley(x: Tensor, turned: Tensor | float = 1.0) -> Tensor:
            spectrum = torch.fft.fftn(x, dim=_AXES, norm="ortho") * turned
            return spectrum.real - spectrum.imag

        return SingularSystem(values.to(like), hartley, hartley, lambda y: hartley(y, phase))
