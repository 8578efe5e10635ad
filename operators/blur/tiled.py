"""Spatially varying blur: a point-spread function for each tile of the image, blended smoothly between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array, by_parts, is_image
from invsolve.contracts.operator import LinearOperator
from invsolve.errors import UserError


def windows(size: int, tiles: int) -> Tensor:
    """Weights of the tiles along an axis, (tiles, size), float64: cos^2 between the middles of neighbours, sum 1."""
    position = ((torch.arange(size, dtype=torch.float64) + 0.5) * tiles / size - 0.5).clamp(0, tiles - 1)
    distance = (position - torch.arange(tiles, dtype=torch.float64)[:, None]).abs().clamp_max(1)
    return torch.cos(torch.pi / 2 * distance) ** 2


class TiledBlur(LinearOperator):
    """A blur that varies over the image: a kernel for each tile, blended smoothly.

    y = sum_t kernel_t * (w_t x), * a convolution, w_t >= 0 the weight of tile t, of sum 1 in each pixel: so a point is imaged
    as the blend of the kernels of the tiles around it (Nagy & O'Leary 1998). x and y (B, C, rows, columns), of any size.

    Args:
        kernels: point-spread functions (tile rows, tile columns, rows, columns) of a regular grid of tiles, real; the centre of
            each is element (rows // 2, columns // 2). Used as given: not normalised. Kernels for each item are (items, tile rows,
            tile columns, rows, columns).
        boundary: what lies outside the image: its periodic repetition, or zeros.

    Raises:
        UserError: kernels of another shape, complex or not finite; (when applied) a kernel that is wider than a periodic image.
    """

    name = "tiled-blur"
    channelwise = True
    examples = (
        {"kernels": [[[[0.1, 0.6, 0.3]], [[0.3, 0.3, 0.4]]], [[[1.0, 0.0, 0.0]], [[0.2, 0.5, 0.3]]]]},
        {"kernels": [[[[0.4, 0.1], [0.2, 0.3], [0.3, 0.0]], [[0.1, 0.1], [0.2, 0.2], [0.3, 0.1]]]], "boundary": "zero"},
    )
    item_axes: ClassVar[Mapping[str, int]] = {"kernels": 4}

    def __init__(self, kernels: Tensor, boundary: Literal["circular", "zero"] = "circular") -> None:
        super().__init__()
        kernels = as_array(kernels, "operator 'tiled-blur': kernels")
        if kernels.ndim != 4 or 0 in kernels.shape or kernels.is_complex() or not bool(kernels.isfinite().all()):
            raise UserError(
                "operator 'tiled-blur': kernels must be real and finite, (tile rows, tile columns, rows, columns), or with items "
                f"in front by invsolve.operator, got {kernels.dtype} {tuple(kernels.shape)}"
            )
        self.kernels, self.boundary = kernels.float(), boundary

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Weights (tiles, rows, columns), transfer functions (tiles, ...) and the transforms' size, for real images like x."""
        rows, columns = x.shape[-2:]
        down, across, height, width = self.kernels.shape
        size = (rows, columns) if self.boundary == "circular" else (rows + height - 1, columns + width - 1)
        if self.boundary == "circular" and (height > rows or width > columns):
            raise UserError(
                f"operator 'tiled-blur': kernels of {height} x {width} are wider than an image of {rows} x {columns}; take "
                "boundary='zero'"
            )

        def made() -> tuple[Tensor, Tensor]:
            weights = windows(rows, down)[:, None, :, None] * windows(columns, across)[:, None]
            padded = torch.zeros(down, across, *size, dtype=torch.float64, device=x.device)
            padded[..., :height, :width] = self.kernels.double()
            # The centre of each kernel at the origin.
            padded = padded.roll((-(height // 2), -(width // 2)), (-2, -1))
            transfer = torch.fft.rfft2(padded.flatten(0, 1))
            return weights.flatten(0, 1).to(x), transfer.to(x.dtype.to_complex())

        weights, transfer = self.remembered(("parts", rows, columns, x.dtype, x.device), made)
        return weights, transfer, size

    def forward(self, x: Tensor) -> Tensor:
        is_image(x, "operator 'tiled-blur'")
        return by_parts(self._blurred, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return by_parts(self._spread, y)

    def _blurred(self, x: Tensor) -> Tensor:
        weights, transfer, size = self._parts(x)
        # Tile by tile: all at once would hold an image for each tile.
        spectrum = torch.zeros((), dtype=transfer.dtype, device=x.device)
        for w, h in zip(weights, transfer, strict=True):
            spectrum = spectrum + torch.fft.rfft2(w * x, s=size) * h
        return torch.fft.irfft2(spectrum, s=size)[..., : x.shape[-2], : x.shape[-1]]

    def _spread(self, y: Tensor) -> Tensor:
        weights, transfer, size = self._parts(y)
        spectrum = torch.fft.rfft2(y, s=size)
        image = torch.zeros_like(y)
        for w, h in zip(weights, transfer, strict=True):
            image = image + w * torch.fft.irfft2(spectrum * h.conj(), s=size)[..., : y.shape[-2], : y.shape[-1]]
        return image
