"""Snapshots of a training and its loss curve, kept so that a kill at any moment costs minutes and no digit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from invsolve.datasets.hdf5 import differences, replace
from invsolve.errors import UserError

_FORMAT = 2


def write_snapshot(path: Path, config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Replace a snapshot in one step.

    Args:
        path: the file.
        config: of the training, as `Settings.config` gives it.
        state: tensors, numbers and nested dicts of them.

    Raises:
        UserError: the disk is full or the folder not writable.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        torch.save({"format": _FORMAT, "config": json.dumps(config), **state}, temporary)
        replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot be written ({' '.join(str(error).split())[:200]}); check space and permissions"
        ) from None


def read_snapshot(path: Path, config: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Read the snapshot of a run with this configuration; None when there is none, or it is to be replaced.

    Raises:
        UserError: unless overwrite, when it is damaged or of another configuration; says what differs.
    """
    if not path.exists():
        return None
    anew = "give --overwrite to start anew, or another output name"
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        stored = json.loads(saved["config"])
        if saved["format"] != _FORMAT or not {"network", "optimiser", "ema", "step"} <= saved.keys():
            raise ValueError("its parts are not those of a training")
    except Exception as error:
        if overwrite:
            return None
        reason = " ".join(str(error).split(". ")[0].split())[:120] or type(error).__name__
        raise UserError(f"{path}: cannot be continued, it is no snapshot of a training ({reason}); {anew}") from None
    plain = json.loads(json.dumps(config))
    changes = [line for key in {**stored, **plain} for line in differences(key, stored.get(key), plain.get(key))]
    if not changes:
        return saved
    if overwrite:
        return None
    raise UserError(f"{path}: was begun with another configuration ({'; '.join(changes[:4])}); {anew}")


def remove(path: Path) -> None:
    """Remove a snapshot and what a kill may have left beside it."""
    for file in (path, path.with_name(f"{path.name}.tmp")):
        with suppress(FileNotFoundError):
            file.unlink()


class LossCurve:
    """JSON lines, each with a `step`; lines after the snapshot's step are dropped on resuming.

    No line holds a time, so that the file of an interrupted run is that of an uninterrupted one.

    Args:
        path: the file.
        step: last step to keep; 0 starts anew.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if step and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                # A kill may have cut the last line.
                with suppress(json.JSONDecodeError, KeyError, TypeError):
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._path = path

    def write(self, values: Mapping[str, Any]) -> None:
        """Add a line; on the disk before a later snapshot is."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())
