"""Images behind other numbers: a channel axis put in front, axes moved, values mapped; read when sliced."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.layout import Rows
from invsolve.datasets._hdf5 import to_tensor


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
