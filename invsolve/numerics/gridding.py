"""Interpolation of a periodic grid at any points with a Kaiser-Bessel kernel, and its exact transpose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse, special
from torch import Tensor

from invsolve.numerics.sparse import sparse_product

#: How much finer the grid is than the image needs.
OVERSAMPLING = 1.5
_NARROWEST, _WIDEST = 4, 17
#: Bytes that a table and its transpose may take; larger ones are made part by part in each call.
_TABLE_BYTES = 768 * 2**20

#: Entries that are added one after the other; longer sums are made of such pieces, as single precision loses 1e-5 over the
#: thousands of samples that a cell in the middle of k-space may have.
_PIECE = 256

Table = tuple[Tensor, Tensor, Tensor]


def width_for(tolerance: float, dimensions: int) -> int:
    """Width of the kernel, in points of the grid, for a relative error of the transform.

    One dimension errs by at most 2.2 exp(-pi w sqrt(1 - 1 / oversampling)): the rate is that of Barnett, Magland and af
    Klinteberg (2019), the factor what direct sums show for widths of 4 to 16.
    """
    wanted = tolerance / (2.2 * math.sqrt(dimensions))
    width = math.ceil(-math.log(wanted) / (math.pi * math.sqrt(1 - 1 / OVERSAMPLING)))
    return min(_WIDEST, max(_NARROWEST, width))


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


class Gridding:
    """Numbers on a periodic grid, times the sign (-1)^(sum of indices), interpolated at points; and the transpose.

    A sparse table has a row for each point, and its transpose one for each cell. In a table of windows, an entry is a run of
    `width` cells along the last axis, which a point weighs by itself: `width` times fewer entries, for a grid that is looked up
    `width` times as wide. That is for volumes, and for tables that are used once.

    Args:
        at: points (points, dimensions) in cells of the grid, float64; any real number.
        grid: cells along each axis.
        width: of the kernel, in cells.
        dtype: real precision.
        device: where the tables are.
        often: whether it is to be used often, so that tables are worth keeping.
    """

    def __init__(
        self, at: np.ndarray, grid: Sequence[int], width: int, dtype: torch.dtype, device: torch.device, often: bool
    ) -> None:
        self.count, self.grid, self.width = len(at), tuple(grid), width
        self.dtype, self.device = dtype, device
        self.windows = len(grid) == 3 or not often
        first = np.ceil(at - width / 2).astype(np.int64)
        near = first[..., None] + np.arange(width)
        values = kernel(at[..., None] - near, width) * np.where(near % 2, -1, 1)
        strides = np.cumprod([1, *self.grid[:0:-1]])[::-1]
        cells = near % np.array(self.grid)[:, None] * strides[:, None]
        # (points, dimensions, width): of each axis, which its product has all of.
        self.cells = torch.from_numpy(cells.astype(np.int32)).to(device)
        self.values = torch.from_numpy(values).to(device, dtype)
        self.taps = width ** (len(self.grid) - self.windows)
        step = max(1, _TABLE_BYTES // (self.taps * 2 * (4 + dtype.itemsize)))
        self.parts = [slice(start, min(start + step, self.count)) for start in range(0, self.count, step)]
        self.kept: list[tuple[Table, Pieces]] | None = None
        if often and len(self.parts) == 1:
            self.kept = list(self._tables())

    @property
    def bytes_a_column(self) -> int:
        """What a column of numbers on the grid takes where it is looked up."""
        return math.prod(self.grid) * (self.width if self.windows else 1) * self.dtype.itemsize

    def interpolated(self, cells: Tensor) -> Tensor:
        """Real numbers (cells, columns) at the points, (points, columns)."""
        looked_up = self._unfolded(cells) if self.windows else cells
        parts = [_bags(self._by_points(chosen), looked_up) for chosen in self.parts] if self.kept is None else None
        rows = _bags(self.kept[0][0], looked_up) if self.kept is not None else torch.cat(parts or [])
        if not self.windows:
            return rows
        return (rows.view(self.count, -1, self.width) * self.values[:, -1, None]).sum(-1)

    def spread(self, values: Tensor) -> Tensor:
        """The transpose of `interpolated`: (points, columns) to (cells, columns)."""
        if self.windows:
            values = (values[:, :, None] * self.values[:, -1, None]).flatten(1)
        total: Tensor | None = None
        tables = self.kept if self.kept is not None else self._tables()
        for chosen, (_, by_cells) in zip(self.parts, tables, strict=True):
            part = by_cells.summed(values[chosen])
            total = part if total is None else total + part
        assert total is not None
        return self._folded(total) if self.windows else total

    def _unfolded(self, cells: Tensor) -> Tensor:
        """The runs that begin at each cell, (cells, columns x width)."""
        lines = cells.view(-1, self.grid[-1], cells.shape[1])
        longer = torch.cat([lines, *self._again(lines)], 1)
        return longer.unfold(1, self.width, 1).reshape(len(cells), -1)

    def _again(self, lines: Tensor) -> Iterator[Tensor]:
        """What follows the last cell of a line, which is periodic: its first cells, if need be several times."""
        left = self.width - 1
        while left > 0:
            part = lines[:, : min(left, lines.shape[1])]
            left -= part.shape[1]
            yield part

    def _folded(self, runs: Tensor) -> Tensor:
        """The transpose of `_unfolded`."""
        last = self.grid[-1]
        runs = runs.view(-1, last, runs.shape[1] // self.width, self.width)
        out = torch.zeros_like(runs[..., 0])
        for k in range(self.width):
            turned, shift = runs[..., k], k % last
            out[:, shift:] += turned[:, : last - shift]
            if shift:
                out[:, :shift] += turned[:, last - shift :]
        return out.flatten(0, 1)

    def _by_points(self, chosen: slice) -> Table:
        """Cells, weights and where each point's begin, of some points."""
        axes = len(self.grid)
        index = self.cells.new_zeros(chosen.stop - chosen.start, 1)
        weights = self.values.new_ones(chosen.stop - chosen.start, 1)
        for axis in range(axes - self.windows):
            index = (index[:, :, None] + self.cells[chosen, axis, None]).flatten(1)
            weights = (weights[:, :, None] * self.values[chosen, axis, None]).flatten(1)
        if self.windows:
            index = index + self.cells[chosen, -1, :1]
        starts = torch.arange(0, index.numel() + 1, self.taps, dtype=torch.int32, device=self.device)
        return index.flatten(), weights.flatten(), starts

    def _tables(self) -> Iterator[tuple[Table, Pieces]]:
        """Of each part of the points, its table and the same by cells."""
        for chosen in self.parts:
            table = self._by_points(chosen)
            index, weights, starts = (part.cpu().numpy() for part in table)
            shape = (chosen.stop - chosen.start, math.prod(self.grid))
            by_cells = sparse.csr_matrix((weights, index, starts), shape=shape).tocsc()
            yield table, Pieces(by_cells.indices.astype(np.int32), by_cells.data, by_cells.indptr, self.device)


class Pieces:
    """A table whose long sums are made of pieces: first the beginnings of all, then what they go on with.

    Args:
        index, weights: the entries.
        starts: where the entries of each sum begin, and where the last end.
        device: where they are kept.
    """

    def __init__(self, index: np.ndarray, weights: np.ndarray, starts: np.ndarray, device: torch.device) -> None:
        count = np.diff(starts)
        self.sums = len(count)
        begins = np.minimum(count, _PIECE)
        bounds = np.concatenate([[0], np.cumsum(begins)])
        self.longer: tuple[Tensor, Tensor] | None = None
        if len(index) and int(count.max()) > _PIECE:
            place = np.arange(len(index)) - np.repeat(starts[:-1], count)
            order = np.argsort(place >= _PIECE, kind="stable")
            index, weights = index[order], weights[order]
            which = np.flatnonzero(count > _PIECE)
            more = count[which] - _PIECE
            pieces = -(-more // _PIECE)
            length = np.full(int(pieces.sum()), _PIECE)
            length[np.cumsum(pieces) - 1] = more - (pieces - 1) * _PIECE
            bounds = np.concatenate([bounds, bounds[-1] + np.cumsum(length)])
            ends = np.concatenate([[0], np.cumsum(pieces)]).astype(np.int32)
            self.longer = torch.from_numpy(which).to(device), torch.from_numpy(ends).to(device)
        parts = (torch.from_numpy(part).to(device) for part in (index, weights, bounds.astype(np.int32)))
        self.table: Table = next(parts), next(parts), next(parts)

    def summed(self, columns: Tensor) -> Tensor:
        """The sums of each column, (sums, columns)."""
        out = _bags(self.table, columns)
        if self.longer is None:
            return out
        which, ends = self.longer
        out, rest = out[: self.sums], out[self.sums :]
        each = torch.arange(len(rest), dtype=torch.int32, device=rest.device)
        more = F.embedding_bag(each, rest, ends, mode="sum", include_last_offset=True)
        return out.index_copy(0, which, out.index_select(0, which) + more)


def _bags(table: Table, columns: Tensor) -> Tensor:
    index, weights, starts = table
    return sparse_product(starts, index, weights, columns)
