"""What was acquired and in which order, as an instrument takes it: a list of lines as text, and the mask for NumPy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from invsolve.acquisition.record import FORMAT, is_stored
from invsolve.datasets import hdf5
from invsolve.errors import UserError

#: What a list may end in.
ENDINGS = (".csv", ".txt", ".npy", ".npz")
#: The columns before the coordinates.
_FIRST = ("order", "round", "group")
#: What a coordinate may be called: nothing that a spreadsheet or a shell would take for more than a name.
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Listing:
    """What was acquired.

    Args:
        sequence: groups in the order in which they were told.
        acquired_at: (groups,) integers, the round of each, -1 never.
        mask: boolean, shaped like one measurement.
        coordinates: of all groups, by name, (groups,) float64 each.
    """

    sequence: Sequence[int]
    acquired_at: np.ndarray
    mask: np.ndarray
    coordinates: Mapping[str, Tensor]

    def rows(self) -> list[dict[str, float]]:
        """One per group that was told, in order: "order" from 0, "round", "group", then its coordinates."""
        columns = self.columns()
        return [
            dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)
        ]

    def columns(self) -> dict[str, np.ndarray]:
        """The same by column: (told,) each, int64 where all are whole numbers, else float64."""
        told = np.array(self.sequence, np.int64)
        first = dict(zip(_FIRST, (np.arange(len(told)), self.acquired_at[told].astype(np.int64), told), strict=True))
        return first | {name: _whole(values.numpy())[told] for name, values in self.coordinates.items()}

    def write(self, path: Path, overwrite: bool = False) -> None:
        """Write a list, .csv with commas or .txt with blanks and a heading after "#", the mask, .npy, or all of it, .npz.

        Raises:
            UserError: another ending, or the file exists or cannot be written.
        """
        check_ending(path)
        hdf5.check_name(path)
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; give --overwrite (in Python overwrite=True) to replace it")
        columns = self.columns()
        # A name with a suffix that NumPy knows is left as it is.
        unfinished = path.with_name(f"{path.stem}.partial{path.suffix}")
        try:
            if path.suffix == ".npy":
                np.save(unfinished, self.mask)
            elif path.suffix == ".npz":
                arrays: dict[str, Any] = {"mask": self.mask, "acquired_at": self.acquired_at, **columns}
                np.savez(unfinished, **arrays)
            else:
                comma = path.suffix == ".csv"
                heading = ("," if comma else " ").join(columns)
                lines = [heading if comma else f"# {heading}"]
                lines += [("," if comma else " ").join(map(_text, row.values())) for row in self.rows()]
                unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
            unfinished.replace(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None
        finally:
            unfinished.unlink(missing_ok=True)


def check_ending(path: Path) -> None:
    """Refuse a name that does not say what a list is written as."""
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}: the name of a list must end in {', '.join(ENDINGS)}")


def read_listing(path: Path) -> Listing:
    """What a session file says was acquired, finished or not; neither operator nor prior is needed.

    Raises:
        UserError: no session, or its datasets do not fit one another.
    """
    with hdf5.open_readonly(path) as file:
        if hdf5.text(file.attrs.get("format", "")) != FORMAT:
            raise UserError(f"{path}: is no session of invsolve acquire")
        found = _read(file, path)
    if found is None:
        raise UserError(f"{path}: its datasets do not fit one another; begin another session")
    return found


def _read(file: h5py.File, path: Path) -> Listing | None:
    y, order, told, index = (hdf5.dataset(file, n) for n in ("y", "acquired_at", "sequence", "group_index"))
    if not is_stored(y, path) or any(part.dtype.kind != "i" for part in (order, told, index)):
        return None
    if order.ndim != 1 or told.ndim != 1 or len(told) > len(order) or index.size > y.size:
        return None
    acquired_at, sequence, groups = hdf5.read(order), hdf5.read(told), hdf5.read(index)
    inside = ((sequence >= 0) & (sequence < len(acquired_at))).all() and (groups < len(acquired_at)).all()
    if not inside or sorted(sequence.tolist()) != np.flatnonzero(acquired_at >= 0).tolist():
        return None
    try:
        mask = np.broadcast_to((acquired_at[np.maximum(groups, 0)] >= 0) & (groups >= 0), y.shape).copy()
    except ValueError:
        return None
    coordinates = {}
    for name in file.get("group_coordinates", ()):
        part = hdf5.dataset(file, f"group_coordinates/{name}")
        if not _NAME.fullmatch(name) or name in _FIRST or part.shape != acquired_at.shape or part.dtype.kind != "f":
            return None
        coordinates[name] = torch.as_tensor(hdf5.read(part))
    return Listing(sequence.tolist(), acquired_at, mask, coordinates)


def _whole(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int64) if np.isfinite(values).all() and (values == np.rint(values)).all() else values


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.10g}"
