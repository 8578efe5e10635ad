"""Joseph's method in 2-D without a matrix: two numbers a ray are kept, weights are computed when they are used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.base import Projector, budget, stated
from invsolve.operators.ct.projectors.sampling import interpolate, on_grid, spread


class JosephProjector(Projector):
    """Joseph's weights (1982) of any 2-D geometry, computed as they are needed: for images whose matrix is too large.

    A ray closer to the columns crosses row r of the image at column `middle + slope * (r - (rows - 1) / 2)`, and gets from
    each row what is there, linearly between its pixels, times the length from one row to the next. Others likewise, rows
    and columns exchanged.
    """

    name = "joseph"

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        degrees, s = geometry.lines()
        cos, sin = np.cos(np.deg2rad(degrees.ravel())), np.sin(np.deg2rad(degrees.ravel()))
        at = s.ravel() / geometry.pixel_size
        steep = np.abs(cos) >= np.abs(sin)
        main = np.where(steep, cos, sin)
        # Row r is at y = (rows - 1) / 2 - r, so that rows run against y.
        middle = np.where(steep, (geometry.columns - 1) / 2 + at / main, (geometry.rows - 1) / 2 - at / main)
        slope = np.where(steep, sin / main, cos / main)
        length = geometry.pixel_size / np.abs(main)
        # In double precision, and so no buffers, which are cast with the operator.
        self.rays = [(np.flatnonzero(k), middle[k], slope[k], length[k]) for k in (steep, ~steep)]
        self.stated = stated(geometry)

    @classmethod
    def unsupported(cls, geometry: Geometry) -> str:
        return "" if geometry.dimensions == 2 else "it is for 2-D images; 'joseph-3d' is for volumes"

    def _rays(self, like: Tensor) -> list[tuple[Tensor, ...]]:
        """Of both kinds: which rays, where they cross the middle, slope and length, where `like` is."""

        def moved() -> list[tuple[Tensor, ...]]:
            kinds = []
            for index, *numbers in self.rays:
                told = [torch.from_numpy(n).to(like.device, like.dtype) for n in numbers]
                kinds.append((torch.from_numpy(index).to(like.device), *told))
            return kinds

        return self.remembered((like.device, like.dtype), moved)

    def _parts(self, like: Tensor) -> Iterator[tuple[bool, Tensor, Tensor, Tensor]]:
        """Of so many rays as fit in the budget: whether they are steep, which, the grid that they sample, and lengths."""
        g = self.geometry
        for steep, (index, middle, slope, length) in zip((True, False), self._rays(like), strict=True):
            steps, across = (g.rows, g.columns) if steep else (g.columns, g.rows)
            step = torch.arange(steps, device=like.device, dtype=like.dtype) - (steps - 1) / 2
            per_ray = steps * (2 + len(like)) * like.element_size()
            count = max(1, budget(like) // per_ray)
            for first in range(0, len(index), count):
                part = slice(first, first + count)
                crossing = on_grid(middle[part] + step[:, None] * slope[part], across)
                grid = torch.stack([crossing, torch.zeros_like(crossing)], -1)[:, None]
                yield steep, index[part], grid, length[part]

    def project(self, x: Tensor) -> Tensor:
        out = x.new_empty(len(x), self.geometry.measurement_shape[0] * self.geometry.detectors)
        lines = {True: x.transpose(0, 1)[:, :, None].contiguous(), False: x.permute(2, 0, 1)[:, :, None].contiguous()}
        for steep, index, grid, length in self._parts(x):
            out[:, index] = interpolate(lines[steep], grid).sum(0)[:, 0] * length
        return out.view(len(x), *self.geometry.measurement_shape)

    def backproject(self, y: Tensor) -> Tensor:
        g = self.geometry
        y = y.reshape(len(y), -1)
        steep_lines, flat_lines = y.new_zeros(g.rows, len(y), g.columns), y.new_zeros(g.columns, len(y), g.rows)
        for steep, index, grid, length in self._parts(y):
            lines = steep_lines if steep else flat_lines
            values = (y[:, index] * length)[None, :, None].expand(len(lines), -1, -1, -1)
            lines += spread(values, grid, 1, lines.shape[2])[:, :, 0]
        return steep_lines.transpose(0, 1) + flat_lines.permute(1, 2, 0)
