"""Pixels that are not square made so, for operators that know square ones: linear interpolation along the coarser axis."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from invsolve.contracts.measurement import Rows
from invsolve.datasets.hdf5.reading import to_tensor


class SquarePixels:
    """Images (N, C, rows, columns) whose pixels are all as wide as the shorter side of the stored ones.

    Args:
        rows: the images as stored.
        spacing: distance of rows and of columns.
    """

    def __init__(self, rows: Rows, spacing: tuple[float, float]) -> None:
        self.rows, self.spacing, self.side = rows, spacing, min(spacing)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice, /) -> Tensor:
        values = self.rows[rows].numpy()
        for axis, width in zip((-2, -1), self.spacing, strict=True):
            if width > self.side:
                values = _stretched(values, axis, width / self.side)
        return to_tensor(values)


def squared(rows: Rows, spacing: tuple[float, float], notes: list[str]) -> tuple[Rows, tuple[float, float]]:
    """Images with square pixels, and their spacing; as they are where the pixels are square already."""
    if is_square(spacing):
        return rows, spacing
    images = SquarePixels(rows, spacing)
    notes.append(f"pixels of {spacing[0]:g} x {spacing[1]:g} made square by linear interpolation, {images.side:g} wide")
    return images, (images.side, images.side)


def is_square(spacing: tuple[float, ...]) -> bool:
    return bool(max(spacing) - min(spacing) <= 1e-3 * min(spacing))


def _stretched(values: np.ndarray, axis: int, factor: float) -> np.ndarray:
    """So many more samples over the same length; the half pixel beyond the outermost centres keeps their value."""
    count = values.shape[axis]
    fine = max(round(count * factor), 1)
    where = np.clip((np.arange(fine) + 0.5) * count / fine - 0.5, 0, count - 1)
    low = np.minimum(where.astype(int), max(count - 2, 0))
    high = np.minimum(low + 1, count - 1)
    share = (where - low).reshape([-1 if k == values.ndim + axis else 1 for k in range(values.ndim)])
    return values.take(low, axis) * (1 - share) + values.take(high, axis) * share
