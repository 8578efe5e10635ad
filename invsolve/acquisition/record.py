"""What a session knows, and the HDF5 file in which it survives a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.datasets import hdf5
from invsolve.errors import UserError

#: What the file is, and the version of its layout.
FORMAT = "invsolve-acquisition/1"


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
    """

    y: Tensor
    order: Tensor
    sequence: list[int] = field(default_factory=list)
    pending: list[int] | None = None
    rounds: int = 0
    particles: Tensor | None = None
    drawn_after: int = -1

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
    attribute `drawn_after`, from which the next ones go on; attributes `format`, `settings` (JSON) and `settings_sha256`.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = json.dumps(settings, sort_keys=True, default=str)
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
            y = hdf5.to_tensor(hdf5.read(hdf5.dataset(file, "y")))
            order = hdf5.read(hdf5.dataset(file, "acquired_at"))
            sequence = [int(g) for g in file["sequence"][()]] if "sequence" in file else []
            pending = [int(g) for g in file["pending"][()]] if "pending" in file else None
            particles, drawn_after = None, -1
            if "particles" in file:
                particles = hdf5.to_tensor(hdf5.read(hdf5.dataset(file, "particles")))
                drawn_after = int(file["particles"].attrs["drawn_after"])
        groups = len(blank.order)
        damaged = (
            tuple(y.shape) != tuple(blank.y.shape)
            or order.shape != (groups,)
            or sorted(sequence) != np.flatnonzero(order >= 0).tolist()
            or not all(0 <= g < groups for g in pending or ())
        )
        if damaged:
            raise UserError(
                f"{self.path}: its datasets do not fit one another or this instrument; begin another session"
            )
        rounds = int(order.max(initial=-1)) + 1
        return Record(
            y.to(blank.y.dtype),
            torch.as_tensor(order.astype(np.int32)),
            sequence,
            pending,
            rounds,
            particles,
            drawn_after,
        )

    def write(self, record: Record) -> None:
        """Store what is known now; on disk when this returns."""
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


def _difference(before: str, now: str) -> str:
    """The settings that differ, by name."""
    try:
        old, new = json.loads(before), json.loads(now)
        return ", ".join(key for key in new if not isinstance(old, dict) or old.get(key) != new[key]) or "unknown"
    except ValueError:
        return "unreadable"
