"""Measurements that are computed when they are sliced: a scan of any length, a slab of images at a time."""

from __future__ import annotations

from torch import Tensor

from invsolve import api
from invsolve.api.fit import check_items
from invsolve.contracts.measurement import Rows
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.engine.streaming import AHEAD
from invsolve.errors import UserError


class OneSlab:
    """Rows that are read some at a time, the last of which are kept: for what is written item by item."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.start, self.kept = rows, 0, rows[0:1]
        self.size = max(AHEAD // max(self.kept.nbytes, 1), 1)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice, /) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        if not self.start <= start <= stop <= self.start + len(self.kept):
            self.start, self.kept = start, self.rows[start : max(stop, min(start + self.size, len(self)))]
        return self.kept[start - self.start : stop - self.start]


class SimulatedScan:
    """Measurements of images (N, C, *spatial), made when sliced; refuses images that are not finite."""

    def __init__(self, images: Rows, forward: Operator, noise: Noise, seed: int, source: str) -> None:
        check_items(forward, len(images), source)
        self.truth = OneSlab(images)
        self.forward, self.noise, self.seed, self.source = forward, noise, seed, source

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, rows: slice, /) -> Tensor:
        images = self.truth[rows]
        start, _, _ = rows.indices(len(self))
        if not bool(images.isfinite().all()):
            bad = int((~images.isfinite()).flatten(1).any(1).nonzero()[0]) + start
            raise UserError(f"{self.source}: the images hold NaN or infinite values in item {bad}; replace them")
        return api.simulate(images, self.forward, self.noise, self.seed, first=start)
