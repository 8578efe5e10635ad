"""Images behind other numbers: a channel axis put in front, axes moved, values mapped; read when sliced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.measurement import Rows
from invsolve.datasets.hdf5.reading import dataset, open_readonly, read, to_tensor
from invsolve.errors import UserError


class WithChannel:
    """Rows (N, *spatial) as (N, 1, *spatial).

    Args:
        rows: without a channel axis.
        factor: multiplies the values.
    """

    def __init__(self, rows: Rows, factor: float = 1.0) -> None:
        self.rows, self.factor = rows, factor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice, /) -> Tensor:
        values = self.rows[rows][:, None]
        return values if self.factor == 1.0 else values * self.factor


class OneByOne:
    """Images (N, *shape) from a function that reads one.

    Args:
        count: N.
        shape: (C, *spatial).
        read: index -> array of that shape.
        complex_: whether the numbers are complex.
    """

    def __init__(
        self, count: int, shape: tuple[int, ...], read: Callable[[int], np.ndarray], complex_: bool = False
    ) -> None:
        self.count, self.shape, self.read = count, (count, *shape), read
        self.dtype = torch.complex64 if complex_ else torch.float32

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice, /) -> Tensor:
        picked = range(*rows.indices(self.count))
        if not picked:
            return torch.empty(0, *self.shape[1:], dtype=self.dtype)
        return to_tensor(np.stack([self.read(i) for i in picked]))


class LazyRows:
    """A dataset that is read when sliced, along its first axis; float32, or complex64. Picklable.

    The file is opened anew for each slice: no lock is held between, and it is safe after a fork.

    Args:
        path: the file.
        name: dataset in it, (N, ...).
        items: which rows count, in order; all when absent.

    Raises:
        UserError: see `open_readonly` and `dataset`; or when the file changes between slices.
    """

    def __init__(self, path: str | Path, name: str, items: Sequence[int] | None = None) -> None:
        self.path, self.name = Path(path), name
        with open_readonly(path) as file:
            dset = dataset(file, name)
            if dset.ndim == 0 or not dset.size:
                raise UserError(f"{path}: dataset {name!r} {dset.shape}: is empty, expected items along its first axis")
            self.items = None if items is None else list(items)
            self.shape = (dset.shape[0] if self.items is None else len(self.items), *dset.shape[1:])
            complex_ = dset.dtype.kind == "c" or dset.dtype.names is not None
        self.dtype = torch.complex64 if complex_ else torch.float32
        self._state = self._stat()

    def _stat(self) -> tuple[int, int, int]:
        stat = self.path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> Tensor:
        if not isinstance(rows, slice):
            raise TypeError(f"LazyRows takes slices such as rows[3:4], got {rows!r}")
        picked = range(*rows.indices(len(self)))
        if not picked:
            return torch.empty(0, *self.shape[1:], dtype=self.dtype)
        with open_readonly(self.path) as file:
            if self._stat() != self._state:
                raise UserError(f"{self.path}: was changed while it was being read; leave it alone and start again")
            dset = dataset(file, self.name)
            if self.items is not None:
                return to_tensor(np.stack([read(dset, self.items[i]) for i in picked]))
            forward = picked if picked.step > 0 else picked[::-1]
            values = read(dset, slice(forward.start, forward.stop, forward.step))
            return to_tensor(values if picked.step > 0 else values[::-1])
