"""Inpainting: some pixels are measured, the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array, as_mask, is_image, rows_and_columns
from invsolve.contracts.maskable import MaskableOperator, numbered
from invsolve.contracts.operator import LinearOperator, matching
from invsolve.contracts.ridge import by_signal
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.spectrum import SingularSystem

_NAME = "operator 'inpainting'"


class Inpainting(MaskableOperator):
    """Some pixels: a mask, a random fraction, all but a box.

    y = mask * x, zero where nothing is measured; y has the shape of x, (B, C, rows, columns). With weights y = weights * x: a
    flat field, vignetting, exposure.

    Give exactly one of mask, fraction, box and weights. With fraction and box the size may be left open; it is then that of the
    first image seen.

    Args:
        mask: (rows, columns), or (channels, rows, columns) where channels differ; non-zero where measured; an array or the
            path of a .npy file. A mask for each item is (items, channels, rows, columns), channels 1 where all share it.
        weights: by what each pixel is multiplied, 0 where nothing is measured, else finite and positive; shaped like a mask.
        fraction: part of the pixels that is measured, 0 < fraction <= 1, drawn at random.
        box: hidden rectangle as [top, left, height, width] in pixels.
        image_size: N for N x N pixels, or [rows, columns].
        channels: channels of the image, where the mask does not tell.
        seed: of the random pixels.

    Raises:
        UserError: not exactly one of the four, out of range, shapes that disagree, or a mask of more than two values.
    """

    name = "inpainting"
    closed_forms = "proximal solve, pseudo-inverse"

    examples = (
        {"fraction": 0.5, "image_size": 12},
        {"box": [2, 3, 4, 5], "image_size": 11},
        {"fraction": 0.4, "image_size": [9, 13], "channels": 3},
        {"mask": [[[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]], [[0, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 1]]]},
        {"weights": [[0.5, 1, 0, 2], [1, 0.25, 1, 0], [0, 1, 1.5, 1]]},
    )
    channelwise = True
    item_axes: ClassVar[Mapping[str, int]] = {"mask": 3, "weights": 3}

    def __init__(
        self,
        mask: Tensor | None = None,
        fraction: float | None = None,
        box: list[int] | None = None,
        image_size: int | list[int] | None = None,
        channels: int = 1,
        seed: int = 0,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (mask, fraction, box, weights)) != 1:
            raise UserError("operator 'inpainting' needs exactly one of mask=, fraction=, box=, weights=")
        if fraction is not None and not 0 < fraction <= 1:
            raise UserError(f"operator 'inpainting': fraction must be in (0, 1], got {fraction}")
        if box is not None and (len(box) != 4 or min(box) < 0):
            raise UserError(f"operator 'inpainting': box must be [top, left, height, width] in pixels, got {box}")
        if channels < 1:
            raise UserError(f"operator 'inpainting': channels must be at least 1, got {channels}")
        self.fraction, self.box, self.seed = fraction, box, seed
        size = rows_and_columns(image_size, _NAME)
        if mask is not None:
            mask = as_array(mask, f"{_NAME}: mask")
            self._fix(as_mask(_fitting(mask, size, channels), _NAME), max(channels, len(mask) if mask.ndim == 3 else 1))
        elif weights is not None:
            weights = as_array(weights, f"{_NAME}: weights")
            fitting = _as_weights(_fitting(weights, size, channels, "weights"))
            self._fix(fitting, max(channels, len(weights) if weights.ndim == 3 else 1))
        elif size is not None:
            self._fix(self._draw(size), channels)

    def _draw(self, size: Sequence[int]) -> Tensor:
        if self.fraction is not None:
            count = max(1, round(self.fraction * size[0] * size[1]))
            order = torch.randperm(size[0] * size[1], generator=torch.Generator().manual_seed(self.seed))
            mask = torch.zeros(size[0] * size[1], dtype=torch.bool)
            mask[order[:count]] = True
            return mask.view(*size)
        assert self.box is not None
        top, left, height, width = self.box
        if top + height > size[0] or left + width > size[1]:
            raise UserError(f"operator 'inpainting': box {self.box} does not fit in an image of {size[0]} x {size[1]}")
        mask = torch.ones(*size, dtype=torch.bool)
        mask[top : top + height, left : left + width] = False
        return mask

    def _fix(self, mask: Tensor, channels: int) -> None:
        self.mask = mask
        self.image_shape = (channels, *mask.shape[-2:])

    @property
    def group_index(self) -> Tensor:  # type: ignore[override]
        """Each measured pixel is a group."""
        if self.image_shape is None:
            raise UserError("operator 'inpainting' has no groups before it has seen an image; give image_size=")

        def index() -> Tensor:
            numbers = numbered(self.mask)
            return numbers if numbers.ndim == 3 else numbers[None]

        return self.remembered("groups", index)

    def group_coordinates(self) -> dict[str, Tensor]:
        """ "row" and "column" of each pixel, from 0, the first above and on the left."""
        return self._indices({-2: "row", -1: "column"})

    def restricted(self, selected: Tensor) -> LinearOperator:
        return self._with_less(selected)

    def forward(self, x: Tensor) -> Tensor:
        if self.image_shape is None:
            is_image(x, _NAME)
            self._fix(self._draw(x.shape[-2:]), x.shape[1])
            self.to(x.device)
        return x * matching(self.mask, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        mask = matching(self.mask, z)
        return (mask * y + rho * z) / (mask**2 + rho)

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor:
        mask = matching(self.mask, r)
        return r * (mask / (mask**2 + rho))

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        if self._is_plain():
            return self.adjoint(y)
        weights = matching(self.mask, y)
        return torch.where(weights > 0, y / weights, 0.0)

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        if self._is_plain():
            return self.adjoint(y)
        return by_signal(self, y, sigma, 1e-6 * self.norm() ** 2, CG())

    def _is_plain(self) -> bool:
        return self.image_shape is None or self.mask.dtype == torch.bool

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem:
        """The pixels themselves; a singular value is 1 or the weight where measured, else 0."""
        mask, seen = matching(self.mask, like), matching(self.mask != 0, like)
        return SingularSystem(
            mask.view(1, -1, *mask.shape[-2:]), lambda x: x, lambda c: c, lambda y: seen * y, "pixels"
        )

    def measured(self) -> Tensor | None:
        return self.mask != 0 if self.image_shape is not None else None

    def norm(self, like: Tensor | None = None) -> float:
        return 1.0 if self._is_plain() else float(self.mask.max())


def _as_weights(weights: Tensor) -> Tensor:
    """Weights in double precision, once they have proved to be some."""
    if weights.is_complex() or not bool((weights.isfinite() & (weights >= 0)).all()) or not bool(weights.any()):
        raise UserError(f"{_NAME}: weights must be finite, 0 or above and not all 0; give 0 where nothing is measured")
    return weights.double()


def _fitting(mask: Tensor, size: tuple[int, int] | None, channels: int, what: str = "mask") -> Tensor:
    """A mask, or weights, once the axes have proved to be those of the image; of one channel without that axis."""
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise UserError(
            f"{_NAME}: {what} must be (rows, columns) or (channels, rows, columns), or with items in front of these three by "
            f"invsolve.operator, got shape {tuple(mask.shape)}"
        )
    if size is not None and tuple(mask.shape[-2:]) != size:
        raise UserError(
            f"{_NAME}: {what} {tuple(mask.shape)} does not fit images of {size[0]} x {size[1]}; it must be (rows, columns)"
        )
    if mask.ndim == 3 and len(mask) == 1:
        mask = mask[0]
    if mask.ndim == 3 and channels not in (1, len(mask)):
        raise UserError(
            f"{_NAME}: {what} {tuple(mask.shape)} does not fit images of {channels} channels; it must be (rows, columns) or "
            f"({channels}, rows, columns), and one for each item (items, 1, rows, columns)"
        )
    return mask
