"""The Fourier transform at any points by gridding, and its exact transpose: a non-uniform FFT of types 2 and 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import fft as scipy_fft
from scipy import sparse, special
from torch import Tensor

from invsolve.numerics.autograd import Map, linear_map

#: How much finer the grid is than the image needs.
OVERSAMPLING = 1.5
#: Widest kernel, in points of the grid; narrower ones serve down to `LEAST` in one dimension.
_WIDEST = 17
LEAST = 1e-12
#: Bytes that a stored table and its transpose may take; beyond, weights are multiplied out sample by sample in each call.
_STORED_BYTES = 768 * 2**20
#: Rows that go through the table together: their numbers then fill two lines of a cache.
_ROWS = 16
#: Bytes of grids at once on a CPU and elsewhere.
_GRID_BYTES, _DEVICE_BYTES = 128 * 2**20, 1024 * 2**20


def width_for(tolerance: float, dimensions: int) -> int:
    """Width of the Kaiser-Bessel kernel, in points of the grid, for a relative error.

    One dimension errs by at most 2.2 exp(-pi w sqrt(1 - 1 / oversampling)): the rate is that of Barnett, Magland and af
    Klinteberg (2019), the factor what direct sums show for widths of 4 to 16.
    """
    wanted = tolerance / (2.2 * math.sqrt(dimensions))
    return min(_WIDEST, max(4, math.ceil(-math.log(wanted) / (math.pi * math.sqrt(1 - 1 / OVERSAMPLING)))))


def _shape(width: int) -> float:
    """Of the Kaiser-Bessel kernel, after Beatty, Nishimura and Pauly (2005), equation 5."""
    return math.pi * math.sqrt((width / OVERSAMPLING) ** 2 * (OVERSAMPLING - 0.5) ** 2 - 0.8)


def kernel(distance: np.ndarray, width: int) -> np.ndarray:
    """The Kaiser-Bessel kernel at distances in points of the grid; 1 in its middle."""
    inside = np.clip(1 - (2 * distance / width) ** 2, 0, None)
    beta = _shape(width)
    return np.where(np.abs(distance) <= width / 2, special.i0(beta * np.sqrt(inside)), 0) / special.i0(beta)


def kernel_transform(position: np.ndarray, points: int, width: int) -> np.ndarray:
    """The kernel's Fourier transform at pixels counted from the image's middle, for a grid of so many points."""
    beta = _shape(width)
    root = np.sqrt((beta**2 - (np.pi * width * position / points) ** 2).astype(np.complex128))
    return width * np.real(np.sinh(root) / root) / special.i0(beta)


class Nufft:
    """y[j] = sum over n of x[n] exp(-2 pi i k[j] . (n - size // 2)), and its transpose, of rows of complex images.

    The image, divided by the kernel's transform, is padded to `OVERSAMPLING` times its size, transformed, and interpolated at the
    points (Fessler and Sutton 2003). The transpose goes the same way backwards, through the same numbers. Both are
    differentiable, to any order, and store nothing for it. Off a CPU the transpose of a table that is too large to be stored adds
    in any order, so that its last digits vary; everything else is repeatable.

    Args:
        points: k, (points, dimensions) float64, in cycles per pixel along each axis of the image; any real number.
        size: of the images, 1 to 3 dimensions.
        tolerance: relative error (in the 2-norm, for images and points in general position) that the kernel is made for; from
            1e-2 to `LEAST`. Single precision adds its own, about 1e-6.
        dtype: real precision of the calculation, float32 or float64.
        device: where the tables are.
        stored: whether it is to be used often, so that a table is worth its making and its memory.
        width: of the kernel, in points of the grid, instead of the tolerance's.
    """

    def __init__(
        self,
        points: Tensor,
        size: Sequence[int],
        tolerance: float,
        dtype: torch.dtype,
        device: torch.device,
        stored: bool = True,
        width: int | None = None,
    ) -> None:
        self.size, self.count = tuple(size), len(points)
        # Single precision rounds more by wide kernels, whose transform spans many decades, than they gain.
        within = max(tolerance, 1e-7) if dtype == torch.float32 else tolerance
        self.width = width or width_for(within, len(self.size))
        # Of even length: the image's middle at the middle of the grid costs a sign then, and no shift.
        self.grid = tuple(2 * scipy_fft.next_fast_len(math.ceil(OVERSAMPLING * n / 2)) for n in self.size)
        self.dtype, self.device = dtype, device
        self.before = [g // 2 - n // 2 for g, n in zip(self.grid, self.size, strict=True)]
        inverse: np.ndarray = np.ones(())
        for n, g in zip(self.size, self.grid, strict=True):
            inverse = inverse[..., None] / kernel_transform(np.arange(n) - n // 2, g, self.width)
        self.weights = torch.from_numpy(inverse).to(device, dtype)
        at = points.cpu().numpy() * np.array(self.grid)
        first = np.ceil(at - self.width / 2).astype(np.int64)
        near = first[..., None] + np.arange(self.width)
        values = kernel(at[..., None] - near, self.width) * np.where(near % 2, -1, 1)
        strides = np.cumprod([1, *self.grid[:0:-1]])[::-1]
        cells = near % np.array(self.grid)[:, None] * strides[:, None]
        # (points, dimensions, width): of each axis, which its product has all of.
        self.cells = torch.from_numpy(cells.astype(np.int32)).to(device)
        self.values = torch.from_numpy(values).to(device, dtype)
        self.taps = self.width ** len(self.size)
        self.tables: tuple[tuple[Tensor, Tensor, Tensor], ...] | None = None
        if stored and self.count * self.taps * 2 * (4 + dtype.itemsize) <= _STORED_BYTES:
            self.tables = self._stored()

    def forward(self, x: Tensor) -> Tensor:
        """Images (rows, *size), complex, to values at the points, (rows, points)."""
        return linear_map(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """The exact transpose of `forward`."""
        return linear_map(y, self._adjoint, self._forward)

    def interpolated(self, cells: Tensor) -> Tensor:
        """The grid's numbers (cells, columns), real, interpolated at the points, (points, columns)."""
        if self.tables is not None:
            return _bags(self.tables[0], cells)
        parts = [_bags(self._table(chosen), cells) for chosen in self._parts(cells.shape[1])]
        return torch.cat(parts)

    def spread(self, values: Tensor) -> Tensor:
        """The transpose of `interpolated`: (points, columns) to (cells, columns)."""
        if self.tables is not None:
            return _bags(self.tables[1], values)
        out = values.new_zeros(values.shape[1], math.prod(self.grid))
        for chosen in self._parts(1):
            index, weights, _ = self._table(chosen)
            # One column after the other: torch adds numbers several times faster than rows of numbers.
            for column, sums in zip(values[chosen].T, out, strict=True):
                sums.index_add_(0, index, (weights.view(-1, self.taps) * column[:, None]).flatten())
        return out.T.contiguous()

    def _forward(self, x: Tensor) -> Tensor:
        return self._by_rows(x.detach(), self._rows_forward)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._by_rows(y.detach(), self._rows_adjoint)

    def _by_rows(self, rows: Tensor, apply: Map) -> Tensor:
        budget = _GRID_BYTES if rows.device.type == "cpu" else _DEVICE_BYTES
        most = budget // (math.prod(self.grid) * 2 * self.dtype.itemsize)
        parts = [apply(part) for part in rows.split(int(min(_ROWS, max(1, most))))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _rows_forward(self, x: Tensor) -> Tensor:
        # Image by image on a CPU: a grid fits in its caches, several do not.
        images = x.split(1) if x.device.type == "cpu" else (x,)
        cells = torch.cat([self._to_grid(image * self.weights).flatten(1) for image in images])
        columns = torch.view_as_real(cells.T.contiguous()).flatten(1)
        return torch.view_as_complex(self.interpolated(columns).view(self.count, len(x), 2)).T.contiguous()

    def _rows_adjoint(self, y: Tensor) -> Tensor:
        columns = torch.view_as_real(y.T.contiguous()).flatten(1)
        cells = torch.view_as_complex(self.spread(columns).view(-1, len(y), 2)).T.contiguous().view(-1, *self.grid)
        grids = cells.split(1) if y.device.type == "cpu" else (cells,)
        return torch.cat([self._from_grid(grid) * self.weights for grid in grids])

    def _to_grid(self, x: Tensor) -> Tensor:
        # The last axis first: there are rows of zeros that need no transform of theirs.
        for axis in reversed(range(len(self.size))):
            dim, before = axis - len(self.size), self.before[axis]
            after = self.grid[axis] - self.size[axis] - before
            x = torch.fft.fft(F.pad(x, (*(0, 0) * (-1 - dim), before, after)), dim=dim)
        return x

    def _from_grid(self, x: Tensor) -> Tensor:
        for axis in range(len(self.size)):
            dim = axis - len(self.size)
            x = torch.fft.ifft(x, dim=dim, norm="forward").narrow(dim, self.before[axis], self.size[axis])
        return x

    def _parts(self, columns: int) -> Iterator[slice]:
        """Points whose taps are multiplied out together."""
        budget = _GRID_BYTES if self.device.type == "cpu" else _DEVICE_BYTES
        step = max(1, budget // (self.taps * (columns + 2) * self.dtype.itemsize))
        yield from (slice(start, min(start + step, self.count)) for start in range(0, self.count, step))

    def _table(self, chosen: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Cells, weights and where each point's begin, of some points; (points x taps,) each but the last."""
        cells, values = self.cells[chosen], self.values[chosen]
        index, weights = cells[:, 0], values[:, 0]
        for axis in range(1, len(self.size)):
            index = (index[:, :, None] + cells[:, axis, None]).flatten(1)
            weights = (weights[:, :, None] * values[:, axis, None]).flatten(1)
        starts = torch.arange(0, index.numel() + 1, self.taps, dtype=torch.int32, device=self.device)
        return index.flatten(), weights.flatten(), starts

    def _stored(self) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """All points' taps, and the same by cells."""
        table = self._table(slice(0, self.count))
        index, weights, starts = (part.cpu().numpy() for part in table)
        by_points = sparse.csr_matrix((weights, index, starts), shape=(self.count, math.prod(self.grid)))
        by_cells = by_points.tocsc()
        transposed = (by_cells.indices.astype(np.int32), by_cells.data, by_cells.indptr.astype(np.int32))
        a, b, c = (torch.from_numpy(part).to(self.device) for part in transposed)
        return table, (a, b, c)


def _bags(table: tuple[Tensor, Tensor, Tensor], columns: Tensor) -> Tensor:
    index, weights, starts = table
    return F.embedding_bag(index, columns, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)
