"""The Fourier transform at any points by gridding, and its exact transpose: a non-uniform FFT of types 2 and 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import fft as scipy_fft
from torch import Tensor

from invsolve.numerics.autograd import Map, linear_map
from invsolve.numerics.gridding import OVERSAMPLING, Gridding, kernel_transform, width_for

#: The least tolerance, which the widest kernel keeps.
LEAST = 1e-12
#: Rows that are interpolated together: their numbers then fill two lines of a cache.
_ROWS = 16
#: Bytes of grids at once on a CPU and elsewhere.
_GRID_BYTES, _DEVICE_BYTES = 128 * 2**20, 1024 * 2**20


class Nufft:
    """y[j] = sum over n of x[n] exp(-2 pi i k[j] . (n - size // 2)), and its transpose, of rows of complex images.

    The image, divided by the kernel's transform, is padded to `OVERSAMPLING` times its size, transformed, and interpolated at the
    points (Fessler and Sutton 2003). The transpose goes the same way backwards, through the same numbers. Both are
    differentiable, to any order, and store nothing for it; both add in one order, on every device.

    Args:
        points: k, (points, dimensions) float64, in cycles per pixel along each axis of the image; any real number.
        size: of the images, 1 to 3 dimensions.
        tolerance: relative error (in the 2-norm, for images and points in general position) that the kernel is made for; from
            1e-2 to `LEAST`. Single precision adds its own, about 1e-6.
        dtype: real precision of the calculation, float32 or float64.
        device: where the tables are.
        often: whether it is to be used often, so that a table is worth its making and its memory.
        width: of the kernel, in points of the grid, instead of the tolerance's.
    """

    def __init__(
        self,
        points: Tensor,
        size: Sequence[int],
        tolerance: float,
        dtype: torch.dtype,
        device: torch.device,
        often: bool = True,
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
        self.gridding = Gridding(at, self.grid, self.width, dtype, device, often)

    def forward(self, x: Tensor) -> Tensor:
        """Images (rows, *size), complex, to values at the points, (rows, points)."""
        return linear_map(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """The exact transpose of `forward`."""
        return linear_map(y, self._adjoint, self._forward)

    def _forward(self, x: Tensor) -> Tensor:
        return self._by_rows(x.detach(), self._rows_forward)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._by_rows(y.detach(), self._rows_adjoint)

    def _by_rows(self, rows: Tensor, apply: Map) -> Tensor:
        budget = _GRID_BYTES if rows.device.type == "cpu" else _DEVICE_BYTES
        most = budget // (2 * self.gridding.bytes_a_column)
        parts = [apply(part) for part in rows.split(int(min(_ROWS, max(1, most))))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _rows_forward(self, x: Tensor) -> Tensor:
        images = _portions(x)
        cells = torch.cat([self._to_grid(image * self.weights).flatten(1) for image in images])
        columns = torch.view_as_real(cells.T.contiguous()).flatten(1)
        return torch.view_as_complex(self.gridding.interpolated(columns).view(self.count, len(x), 2)).T.contiguous()

    def _rows_adjoint(self, y: Tensor) -> Tensor:
        columns = torch.view_as_real(y.T.contiguous()).flatten(1)
        cells = (
            torch.view_as_complex(self.gridding.spread(columns).view(-1, len(y), 2)).T.contiguous().view(-1, *self.grid)
        )
        grids = _portions(cells)
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


def _portions(rows: Tensor) -> tuple[Tensor, ...]:
    """What is transformed at once: on a CPU one for each thread, because a grid fits in its caches and several do not."""
    return rows.split(torch.get_num_threads()) if rows.device.type == "cpu" else (rows,)
