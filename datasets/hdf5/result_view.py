"""Result files, as they are read: lazily, finished or partial."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.measurement import Rows
from invsolve.datasets.extras import check_regular
from invsolve.datasets.hdf5.links import shown
from invsolve.datasets.hdf5.reading import open_readonly, read, text
from invsolve.datasets.hdf5.result import FORMAT, IMAGES, partial_path
from invsolve.datasets.hdf5.result_check import outline, stored_config
from invsolve.datasets.hdf5.rows import LazyRows
from invsolve.errors import UserError


@dataclass(frozen=True)
class ResultView:
    """What is in a result file; images are read when sliced.

    Attributes:
        mean, std: (N, C, *spatial), physical units; of a partial file only the items that are done.
        samples: (N, S, C, *spatial).
        truth, linear: (N, C, *spatial), if the file has them.
        diagnostics: name -> array (N, ...).
        config: the record of the run.
        items: the index of each row in the input.
        input_items: how many items the input has.
        unit: of the images.
        complete: False for a partial file.
    """

    path: Path
    mean: LazyRows
    std: LazyRows
    samples: LazyRows
    truth: LazyRows | None
    linear: LazyRows | None
    diagnostics: dict[str, np.ndarray]
    config: dict[str, Any]
    items: list[int]
    input_items: int
    unit: str
    complete: bool

    def matching(self, images: Rows) -> Rows:
        """Images (truth) row by row as in this result: of a file with as many, or with one for each item of the input.

        Complex images come as real and imaginary part, two channels. They may be compared with a result of one channel, a
        real image, too; complex results, of two channels, with magnitudes, of one.

        Raises:
            UserError: another number of images, or of another shape.
        """
        first = images[0:1]
        size, shape = tuple(first.shape[1:]), tuple(self.mean.shape[1:])
        if first.is_complex() and shape[0] in (1, 2):
            images, size = RealAndImaginary(images), (shape[0] if size[0] == 1 else size[0], *size[1:])
        fits = size == shape or (shape[0] == 2 and size == (1, *shape[1:]))
        if not fits or len(images) not in (len(self.mean), self.input_items):
            raise UserError(
                f"truth has {len(images)} images of {size}, the result {len(self.mean)} of {shape}; they must agree"
            )
        return images if len(images) == len(self.mean) else Picked(images, self.items)


@dataclass(frozen=True)
class RealAndImaginary:
    """Complex rows (N, 1, *spatial) as (N, 2, *spatial)."""

    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice, /) -> Tensor:
        values = self.rows[rows]
        return torch.cat([values.real, values.imag], 1)


@dataclass(frozen=True)
class Picked:
    """Some of the rows of others, read one by one when sliced."""

    rows: Rows
    items: list[int]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: slice, /) -> Tensor:
        return torch.cat([self.rows[item : item + 1] for item in self.items[rows]])


class _Images(LazyRows):
    """Images of finished items: all numbers are finite, or the file is damaged."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        images = super().__getitem__(rows)
        if not bool(images.isfinite().all()):
            bad = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
            row = range(*rows.indices(len(self)))[bad]
            raise UserError(
                f"{self.path}: dataset {self.name!r} has NaN or infinite values in row {row}, which is said to be done; copy the "
                "file again, or remove it and run again"
            )
        return images


def read_result(path: str | Path) -> ResultView:
    """Open a result file, or the `.partial.h5` of a run that was stopped.

    Raises:
        UserError: unreadable (see `open_readonly`), no result file, or a partial one without a finished item.
    """
    file_path = Path(path)
    check_regular(file_path)
    # A name may be as long as can be, and its partial's none at all.
    if not file_path.exists() and os.path.exists(partial_path(path)):
        raise UserError(f"{path}: is not finished; run the same command again, or look at {partial_path(path)}")
    with open_readonly(file_path) as file:
        written = text(file.attrs.get("format", FORMAT))
        if written != FORMAT:
            raise UserError(
                f"{path}: is written as {written!r}, and this version reads {FORMAT!r}; install the invsolve that wrote it, "
                "or a newer one"
            )
        if "done" not in file:
            missing = ", ".join(name for name in ("mean", "std", "samples", "done") if name not in file)
            inside = ", ".join(sorted(map(shown, file))) or "nothing"
            raise UserError(f"{path}: is no result file: it lacks {missing} and holds {inside}; give a result file")
        known = outline(file, path)
        if not known.done.any():
            raise UserError(f"{path}: no item of it is finished yet; run the same command again")
        done = known.done
        group = file.get("diagnostics", {})
        diagnostics = {name: read(group[name])[done] for name in group}
        config, unit, carried = stored_config(file, path), text(file.attrs.get("unit", "")), set(file)
    there = [int(row) for row in np.flatnonzero(done)]
    rows = {n: _Images(file_path, n, None if done.all() else there) for n in IMAGES if n in carried}
    return ResultView(
        path=file_path,
        mean=rows["mean"],
        std=rows["std"],
        samples=rows["samples"],
        truth=rows.get("truth"),
        linear=rows.get("linear"),
        diagnostics=diagnostics,
        config=config,
        items=[known.items[row] for row in there],
        input_items=known.input_items,
        unit=unit,
        complete=bool(done.all()),
    )
