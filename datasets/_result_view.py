"""Result files, as they are read: lazily, finished or partial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invsolve.datasets._hdf5 import LazyRows, open_readonly, read, text
from invsolve.datasets._results import IMAGES, partial_path
from invsolve.datasets._resume import stored_config
from invsolve.errors import UserError


@dataclass(frozen=True)
class ResultView:
    """What is in a result file; images are read when sliced.

    Attributes:
        mean, std: (N, C, *spatial), physical units; of a partial file only the items that are done.
        samples: (N, S, C, *spatial).
        truth, pinv: (N, C, *spatial), if the file has them.
        diagnostics: name -> array (N, ...).
        config: the record of the run.
        items: the index of each row in the input.
        unit: of the images.
        complete: False for a partial file.
    """

    path: Path
    mean: LazyRows
    std: LazyRows
    samples: LazyRows
    truth: LazyRows | None
    pinv: LazyRows | None
    diagnostics: dict[str, np.ndarray]
    config: dict[str, Any]
    items: list[int]
    unit: str
    complete: bool


def read_result(path: str | Path) -> ResultView:
    """Open a result file, or the `.partial.h5` of a run that was stopped.

    Raises:
        UserError: unreadable (see `open_readonly`), no result file, or a partial one without a finished item.
    """
    file_path = Path(path)
    if not file_path.exists() and partial_path(path).exists():
        raise UserError(f"{path}: is not finished; run the same command again, or look at {partial_path(path)}")
    with open_readonly(file_path) as file:
        missing = [name for name in ("mean", "std", "samples", "done") if name not in file]
        if "done" not in missing and not file["done"][:].any():
            raise UserError(f"{path}: no item of it is finished yet; run the same command again")
        if missing:
            inside = ", ".join(sorted(file)) or "nothing"
            raise UserError(
                f"{path}: is no result file: it lacks {', '.join(missing)} and holds {inside}; give a result file"
            )
        done = file["done"][:]
        group = file.get("diagnostics", {})
        diagnostics = {name: read(group[name])[done] for name in group if isinstance(group[name], h5py.Dataset)}
        config, unit, carried = stored_config(file), text(file.attrs.get("unit", "")), set(file)
    items = [int(i) for i in np.flatnonzero(done)]
    rows = {n: LazyRows(file_path, n, None if done.all() else items) for n in IMAGES if n in carried}
    return ResultView(
        path=file_path,
        mean=rows["mean"],
        std=rows["std"],
        samples=rows["samples"],
        truth=rows.get("truth"),
        pinv=rows.get("pinv"),
        diagnostics=diagnostics,
        config=config,
        items=items,
        unit=unit,
        complete=bool(done.all()),
    )
