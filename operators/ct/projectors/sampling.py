"""Linear interpolation in a stack of images at any points, and its exact transpose: the inner step of Joseph's method."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def on_grid(position: Tensor, size: int) -> Tensor:
    """Positions in pixels, counted from 0, as torch's grids have them."""
    return (2 * position + 1) / size - 1


def interpolate(images: Tensor, grid: Tensor) -> Tensor:
    """Images (n, B, rows, columns) at the points of a grid (n, p, q, 2), zero outside; (n, B, p, q)."""
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def spread(values: Tensor, grid: Tensor, rows: int, columns: int) -> Tensor:
    """The transpose of `interpolate`: values (n, B, p, q) to images (n, B, rows, columns)."""
    # Only the shape of the images matters; the numbers are those of `interpolate`'s own kernel, backwards.
    like = values.new_empty(1).expand(len(values), values.shape[1], rows, columns)
    images, _ = torch.ops.aten.grid_sampler_2d_backward(values, like, grid, 0, 0, False, [True, False])
    return images
