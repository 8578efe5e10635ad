"""The 2-D pictures that a page shows a result as: an item each, or each slice of an item with three spatial axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from invsolve.api import metrics
from invsolve.contracts.measurement import Rows
from invsolve.errors import UserError


@dataclass(frozen=True)
class Frame:
    """One position of the slider.

    Attributes:
        row: of the result.
        slice: along the first of three spatial axes, else 0.
        mean, std: (C, rows, columns).
        samples: (S, C, rows, columns).
        truth, linear: (C, rows, columns), where they are known.
    """

    row: int
    slice: int
    mean: Tensor
    std: Tensor
    samples: Tensor
    truth: Tensor | None
    linear: Tensor | None

    def pictures(self, samples: Sequence[int]) -> dict[str, np.ndarray]:
        """What is shown, (rows, columns) each, by name; of the samples these.

        Two channels are shown as their magnitude, more as their average; then `std` is that of what is shown.
        """
        arrays = {"mean": metrics.magnitude(self.mean)}
        if len(self.samples) > 1:
            several = self.samples.shape[1] > 1
            arrays["std"] = metrics.magnitude(self.samples).std(0) if several else metrics.magnitude(self.std)
            arrays |= {f"sample-{k}": metrics.magnitude(self.samples[k]) for k in samples}
        if self.truth is not None:
            arrays["truth"] = metrics.magnitude(self.truth)
        if self.linear is not None:
            arrays["linear"] = metrics.magnitude(self.linear)
        return {name: picture.numpy() for name, picture in arrays.items()}


class Frames:
    """The frames of some rows of a result, in order; one item in memory at a time.

    Args:
        result: a `ResultView`.
        reference: truth, row by row as in the result.
        rows: which.

    Raises:
        UserError: the images have more than three spatial axes.
    """

    def __init__(self, result: Any, reference: Rows | None, rows: Sequence[int]) -> None:
        self.result, self.reference, self.rows = result, reference, list(rows)
        self.samples = int(result.samples.shape[1])
        self.channels, *spatial = result.mean.shape[1:]
        if len(spatial) > 3:
            raise UserError(f"{result.path}: a page shows images of 1 to 3 spatial axes, these have {len(spatial)}")
        self.depth = int(spatial[0]) if len(spatial) == 3 else 1
        self.size: tuple[int, int] = (int(spatial[-2]) if len(spatial) > 1 else 1, int(spatial[-1]))
        #: (row, slice) of each frame.
        self.places = [(row, z) for row in self.rows for z in range(self.depth)]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, wanted: Sequence[int]) -> Iterator[Frame]:
        """The frames of these numbers, which must rise."""
        held, views = -1, {}
        for number in wanted:
            row, z = self.places[number]
            if row != held:
                held, views = row, self._item(row)
            cut: dict[str, Any] = {name: None if v is None else v[..., z, :, :] for name, v in views.items()}
            yield Frame(row, z, **cut)

    def _item(self, row: int) -> dict[str, Any]:
        """Arrays of an item with three spatial axes, (..., depth, rows, columns)."""
        result = self.result
        sources = {"mean": result.mean, "std": result.std, "samples": result.samples}
        sources |= {"truth": self.reference, "linear": result.linear}
        images: dict[str, Any] = {}
        for name, rows in sources.items():
            if rows is None:
                images[name] = None
                continue
            image = rows[row : row + 1][0]
            leading = image.shape[: 2 if name == "samples" else 1]
            images[name] = image.reshape(*leading, self.depth, *self.size)
        return images
