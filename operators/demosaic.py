"""Demosaicking: a colour camera measures one colour in each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from invsolve.errors import UserError
from invsolve.operators._orthogonal import OrthogonalRows


class Demosaic(OrthogonalRows):
    """One colour in each pixel, behind a Bayer filter.

    y[i, j] = x[colour(i, j), i, j]. x (B, 3, rows, columns): red, green, blue; y (B, 1, rows, columns); of any size.

    Args:
        pattern: the colours of the first 2 x 2 pixels, row by row (Bayer, US patent 3971065).

    Raises:
        UserError: (when applied) x has not three channels.
    """

    name = "demosaic"
    shapes_tried = ((3, 6, 7), (3, 5, 5))
    examples = ({}, {"pattern": "gbrg"})

    def __init__(self, pattern: Literal["rggb", "bggr", "grbg", "gbrg"] = "rggb") -> None:
        super().__init__()
        self.pattern = pattern

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        return (3, *measurement_shape[1:]) if len(measurement_shape) == 3 and measurement_shape[0] == 1 else None

    def _mask(self, x: Tensor) -> Tensor:
        """1 where a colour is measured, (3, rows, columns)."""
        rows, columns = x.shape[-2:]

        def made() -> Tensor:
            mask = torch.zeros(3, rows, columns, dtype=x.dtype)
            for k, colour in enumerate(self.pattern):
                mask["rgb".index(colour), k // 2 :: 2, k % 2 :: 2] = 1
            return mask.to(x.device)

        return self.remembered(("mask", rows, columns, x.dtype, x.device), made)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise UserError(f"operator 'demosaic' takes images (items, 3, rows, columns), got {tuple(x.shape)}")
        return (self._mask(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._mask(y) * y
