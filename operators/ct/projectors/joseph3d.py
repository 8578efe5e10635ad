"""Joseph's method in 3-D without a matrix: slice by slice along the axis that a ray runs closest to, one view at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.base import Projector, budget, stated
from invsolve.operators.ct.projectors.sampling import interpolate, on_grid, spread

# For rays along z, y, x of the array: the axes that are interpolated in, (rows, columns) of a slice.
_ACROSS = {0: (1, 2), 1: (0, 2), 2: (0, 1)}


class Joseph3DProjector(Projector):
    """Joseph's weights of any 3-D geometry: bilinear in each slice that a ray crosses, times the length between slices.

    Nothing is stored but source and detector of each view; what is computed of a view is as large as the view, times the
    slices that fit in the budget.
    """

    name = "joseph-3d"

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        views = geometry.views()
        # From lengths along x, y, z to voxels along slices, rows, columns, counted from the middle of the image.
        voxel = np.array([geometry.slice_thickness, -geometry.pixel_size, geometry.pixel_size])

        def vectors(v: np.ndarray) -> np.ndarray:
            return v[..., ::-1] / voxel

        offset = np.asarray(geometry.image_offset)
        shift = 0 * offset if geometry.beam == "parallel" else offset
        # In double precision, and so no buffers, which are cast with the operator.
        self.table = np.stack(
            [
                vectors(views.source - shift),
                vectors(views.middle - offset),
                vectors(views.u),
                vectors(views.normal),
                vectors(views.v),
            ],
            1,
        )
        self.a, self.b, self.m, self.voxel = views.a, views.b, views.m, np.abs(voxel)
        self.axes = [self._axes_of(torch.from_numpy(row)) for row in self.table]
        self.stated = stated(geometry)

    @classmethod
    def unsupported(cls, geometry: Geometry) -> str:
        return "" if geometry.dimensions == 3 else "it is for volumes; 'joseph' is for 2-D images"

    def _axes_of(self, row: Tensor) -> list[int]:
        """Along which axes some ray of a view goes from slice to slice."""
        _, way = self._rays(row, [torch.from_numpy(n) for n in (self.a, self.b, self.m)])
        return torch.unique((way * torch.from_numpy(self.voxel)).abs().argmax(-1)).tolist()

    def _rays(self, row: Tensor, offsets: list[Tensor]) -> tuple[Tensor, Tensor]:
        """A point on each ray of a view and its direction, (detector rows, detectors, 3), in voxels."""
        source, middle, u, normal, v = row
        a, b, m = offsets
        pixels = middle + (a[:, None] * u + b[:, None] * normal) + m[:, None, None] * v
        if self.geometry.beam == "parallel":
            return pixels, source.expand_as(pixels)
        return source.expand_as(pixels), pixels - source

    def _on(self, like: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Table, offsets and voxel, in double precision where `like` is."""

        def moved() -> tuple[Tensor, list[Tensor], Tensor]:
            device = like.device
            offsets = [torch.from_numpy(np.ascontiguousarray(n)).to(device) for n in (self.a, self.b, self.m)]
            return torch.from_numpy(self.table).to(device), offsets, torch.from_numpy(self.voxel).to(device)

        return self.remembered(like.device, moved)

    def _parts(self, like: Tensor) -> Iterator[tuple[int, int, slice, Tensor, Tensor]]:
        """View, axis, slices along it, the grid that its rays sample there, and length of each from slice to slice."""
        size = self.geometry.image_size
        table, offsets, voxel = self._on(like)
        for view, axes in enumerate(self.axes):
            start, way = self._rays(table[view], offsets)
            lengths = (way * voxel).abs()
            whole = (way * voxel).square().sum(-1).sqrt()
            # Among the axes that occur: a tie may fall otherwise on another device, but it falls on one of them.
            nearest = lengths[..., axes].argmax(-1)
            for k, axis in enumerate(axes):
                step = torch.where(nearest == k, way[..., axis], 1.0)
                length = torch.where(nearest == k, whole / step.abs(), 0.0).to(like.dtype)
                crossings = []
                for other in _ACROSS[axis]:
                    slope = torch.where(nearest == k, way[..., other] / step, 0.0)
                    middle = start[..., other] - start[..., axis] * slope + (size[other] - 1) / 2
                    crossings.append((on_grid(middle, size[other]), 2 * slope / size[other]))
                # Where a ray crosses the middle slice is told in double precision, steps from there in single.
                at = torch.stack([c[0] for c in reversed(crossings)], -1).to(like.dtype)
                per_slice = torch.stack([c[1] for c in reversed(crossings)], -1).to(like.dtype)
                bytes_a_slice = whole.numel() * (2 + len(like)) * like.element_size()
                count = max(1, budget(like) // bytes_a_slice)
                for first in range(0, size[axis], count):
                    chosen = slice(first, min(first + count, size[axis]))
                    index = torch.arange(chosen.start, chosen.stop, device=like.device, dtype=like.dtype)
                    index = index - (size[axis] - 1) / 2
                    yield view, axis, chosen, at + index[:, None, None, None] * per_slice, length

    def project(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), *self.geometry.measurement_shape)
        slices = {k: x.permute(k + 1, 0, *(n + 1 for n in _ACROSS[k])).contiguous() for k in self._occurring()}
        for view, axis, chosen, grid, length in self._parts(x):
            out[:, view] += interpolate(slices[axis][chosen], grid).sum(0) * length
        return out

    def backproject(self, y: Tensor) -> Tensor:
        size = self.geometry.image_size
        across = {k: [size[n] for n in _ACROSS[k]] for k in self._occurring()}
        slices = {k: y.new_zeros(size[k], len(y), *shape) for k, shape in across.items()}
        for view, axis, chosen, grid, length in self._parts(y):
            values = (y[:, view] * length).expand(len(grid), -1, -1, -1)
            slices[axis][chosen] += spread(values, grid, *across[axis])
        out = y.new_zeros(len(y), *size)
        for axis, stack in slices.items():
            order = [0, 0, 0]
            order[_ACROSS[axis][0]], order[_ACROSS[axis][1]] = 2, 3
            out += stack.permute(1, *order)
        return out

    def _occurring(self) -> set[int]:
        return {axis for axes in self.axes for axis in axes}
