"""What a session knows, and the HDF5 file in which it survives a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from invsolve.datasets import hdf5
from invsolve.errors import UserError

#: What the file is, and the version of its layout.
FORMAT = "invsolve-acquisition/1"


@dataclass(frozen=True)
class Moment:
    """What was known when a choice was made, or at the end.

    Attributes:
        told: how many groups had been told.
        mean, std: (C, *spatial), physical units, over the particles.
        scores: (groups,) float64, what each group seemed worth, by the policy's score; NaN where there is none.
    """

    told: int
    mean: Tensor
    std: Tensor
    scores: Tensor


@dataclass
class Record:
    """What was measured so far.

    Attributes:
        y: one measurement, zero where nothing was measured.
        order: (groups,) int32, the round in which a group was told; -1 never.
        sequence: the groups in the order in which they were told.
        pending: groups that were asked for and not told yet; None when nothing was asked since the last were told.
        rounds: how often `tell` was called.
        particles: (particles, C, *spatial), physical units, those drawn last; None when none were.
        drawn_after: how many groups had been told when they were drawn.
        history: a moment for each time that they were drawn.
        index: the operator's `group_index`, for pictures of the mask.
        coordinates: the operator's `group_coordinates`.
    """

    y: Tensor
    order: Tensor
    sequence: list[int] = field(default_factory=list)
    pending: list[int] | None = None
    rounds: int = 0
    particles: Tensor | None = None
    drawn_after: int = -1
    history: list[Moment] = field(default_factory=list)
    index: Tensor | None = None
    coordinates: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def blank(cls, like: Tensor, groups: int) -> Record:
        """Nothing measured, of a measurement like this one."""
        return cls(torch.zeros_like(like).cpu(), torch.full((groups,), -1, dtype=torch.int32))

    def take(self, groups: Sequence[int], values: Tensor, index: Tensor) -> None:
        """Add the entries of these groups of a measurement."""
        places = index.cpu().expand(self.y.shape)
        taken = torch.isin(places, torch.as_tensor(list(groups)))
        self.y = torch.where(taken, values, self.y)
        self.order = self.order.clone()
        self.order[list(groups)] = self.rounds
        self.sequence += list(groups)
        self.rounds += 1
        if self.pending is not None:
            left_over = [group for group in self.pending if group not in groups]
            self.pending = left_over or None


class SessionFile:
    """A session on disk: written whole and renamed at every step, so that a kill leaves the one before or the one after.

    Datasets: `y`, `acquired_at` (int32, the round of each group, -1 never), `sequence`, `pending`, and `particles` with the
    attribute `drawn_after`, from which the next ones go on; `group_index`; the group `history`, with a row of `told`, `mean`,
    `std` and `scores` for each time that particles were drawn; attributes `format`, `settings` (JSON) and `settings_sha256`.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = json.dumps(settings, sort_keys=True, default=str)
        self._state: tuple[int, int] | None = None
        hdf5.check_target(path)

    def begin(self, blank: Record) -> Record:
        """The record that the file holds, or the blank one, which is then written.

        Raises:
            UserError: the file is of another kind, of other settings, or damaged.
        """
        if not self.path.exists():
            self.write(blank)
            return blank
        with hdf5.open_readonly(self.path) as file:
            if hdf5.text(file.attrs.get("format", "")) != FORMAT:
                raise UserError(f"{self.path}: is no session of invsolve acquire; give another name")
            stored = hdf5.text(file.attrs.get("settings", ""))
            if stored != self._settings:
                raise UserError(
                    f"{self.path}: is a session with other settings ({_difference(stored, self._settings)}); give those, or "
                    "another file"
                )
            record = self._read(file, blank)
            self._state = self._now()
        if record is None:
            raise UserError(
                f"{self.path}: its datasets do not fit one another or this instrument; begin another session"
            )
        return record

    def _read(self, file: h5py.File, blank: Record) -> Record | None:
        """What the datasets say; None where they do not fit. Their sizes are looked at before anything is read."""
        groups = len(blank.order)
        like = blank.y.numpy()
        y, order, sequence = (hdf5.dataset(file, name) for name in ("y", "acquired_at", "sequence"))
        pending = hdf5.dataset(file, "pending") if "pending" in file else None
        numbers = [order, sequence, *([] if pending is None else [pending])]
        if (y.shape, y.dtype.kind, order.shape) != (like.shape, like.dtype.kind, (groups,)) or any(
            part.dtype.kind != "i" or part.ndim != 1 or len(part) > groups for part in numbers
        ):
            return None
        values, at = hdf5.read(y), hdf5.read(order)
        told = [int(g) for g in hdf5.read(sequence)]
        asked = None if pending is None else [int(g) for g in hdf5.read(pending)]
        rounds = sorted(set(at[at >= 0].tolist()))
        fits = (
            np.isfinite(values).all()
            and rounds == list(range(len(rounds)))
            and sorted(told) == np.flatnonzero(at >= 0).tolist()
            and (np.diff(at[told]) >= 0).all()
            and all(0 <= g < groups and at[g] < 0 for g in asked or ())
        )
        if not fits:
            return None
        particles, drawn_after = None, -1
        if "particles" in file:
            drawn = hdf5.dataset(file, "particles")
            if not is_stored(drawn, self.path):
                return None
            particles, drawn_after = hdf5.to_tensor(hdf5.read(drawn)), int(drawn.attrs.get("drawn_after", -1))
        history = read_history(file)
        y_ = torch.as_tensor(np.ascontiguousarray(values)).to(blank.y.dtype)
        order_ = torch.as_tensor(at.astype(np.int32))
        return replace(
            blank,
            y=y_,
            order=order_,
            sequence=told,
            pending=asked,
            rounds=len(rounds),
            particles=particles,
            drawn_after=drawn_after,
            history=history,
        )

    def write(self, record: Record) -> None:
        """Store what is known now; on disk when this returns.

        Raises:
            UserError: another process has written the file since; what that one was told would be lost.
        """
        if self._now() != self._state:
            raise UserError(f"{self.path}: another process goes on with this session; stop one of the two")
        with hdf5.atomic(self.path) as file:
            file.attrs["format"] = FORMAT
            file.attrs["settings"] = self._settings
            file.attrs["settings_sha256"] = hashlib.sha256(self._settings.encode()).hexdigest()
            file["y"] = record.y.numpy()
            file["acquired_at"] = record.order.numpy()
            file["sequence"] = np.array(record.sequence, np.int32)
            if record.pending is not None:
                file["pending"] = np.array(record.pending, np.int32)
            if record.particles is not None:
                file["particles"] = record.particles.numpy()
                file["particles"].attrs["drawn_after"] = record.drawn_after
            if record.index is not None:
                file["group_index"] = record.index.cpu().numpy()
            for name, values in record.coordinates.items():
                file[f"group_coordinates/{name}"] = values.numpy()
            if record.history:
                group = file.create_group("history")
                group["told"] = np.array([moment.told for moment in record.history], np.int32)
                for name in ("mean", "std", "scores"):
                    group[name] = torch.stack([getattr(moment, name) for moment in record.history]).numpy()
        self._state = self._now()

    def _now(self) -> tuple[int, int] | None:
        """What changes when the file is written; None where there is none."""
        try:
            state = self.path.stat()
        except OSError:
            return None
        return state.st_ino, state.st_mtime_ns


def is_stored(part: h5py.Dataset, path: Path) -> bool:
    """Whether finite numbers that the file itself holds, and no more of them than it has room for."""
    return bool(part.dtype.kind in "fc" and part.size * part.dtype.itemsize <= path.stat().st_size)


def read_history(file: Any) -> list[Moment]:
    """The moments that an open session file holds."""
    if "history" not in file:
        return []
    parts = {name: hdf5.dataset(file, f"history/{name}") for name in ("told", "mean", "std", "scores")}
    path = Path(file.filename)
    if not all(
        len(part) == len(parts["told"]) and (name == "told" or is_stored(part, path)) for name, part in parts.items()
    ):
        raise UserError(f"{path}: its history does not fit itself; begin another session")
    arrays = {name: hdf5.read(part) for name, part in parts.items()}
    rows = zip(*arrays.values(), strict=True)
    return [Moment(int(told), *(torch.as_tensor(part) for part in parts)) for told, *parts in rows]


def _difference(before: str, now: str) -> str:
    """The settings that differ, by name."""
    try:
        old, new = json.loads(before), json.loads(now)
        return ", ".join(key for key in new if not isinstance(old, dict) or old.get(key) != new[key]) or "unknown"
    except ValueError:
        return "unreadable"
