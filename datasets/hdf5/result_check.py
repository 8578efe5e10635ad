"""What a result file must be before anything is made of it: datasets that fit one another, and a record of the right kinds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invsolve.datasets.hdf5.links import shown
from invsolve.datasets.hdf5.reading import dataset, read, text
from invsolve.errors import UserError

#: Datasets of images, those that every finished item has first.
_IMAGES = ("mean", "std", "samples", "truth", "linear")
#: Entries of the record that others read, and their kinds; any may be absent or null.
_RECORD: dict[str, type] = {
    **dict.fromkeys(("strategy", "prior", "operator", "noise", "scale", "input", "versions"), dict),
    **dict.fromkeys(("notes", "compared"), list),
}
#: Diagnostics that are read by what they mean, and their axes: (item), (item, sample) or (item, sample, step).
_AXES = {
    **dict.fromkeys(("network_calls", "vjp_calls", "operator_calls", "seconds"), 1),
    **dict.fromkeys(("discrepancy", "discrepancy_dof"), 2),
    "residual": 3,
}
_TEXTS = ("name", "file", "fingerprint")


@dataclass(frozen=True)
class Outline:
    """What the datasets of a result file say of its items.

    Attributes:
        done: (N,) boolean, which items are finished.
        items: the input's item of each row; neighbours.
        input_items: how many items the input has.
    """

    done: np.ndarray
    items: list[int]
    input_items: int


def outline(file: h5py.File, where: str | Path) -> Outline:
    """Read which items a result file, finished or partial, is for, and check that its datasets fit that.

    Args:
        file: the open file.
        where: how a message begins.

    Raises:
        UserError: `done`, `items` or `input_items` is not what a run writes, or a dataset has another number of rows.
    """
    again = "copy it again, or remove it and run again"
    stored = dataset(file, "done")
    if stored.ndim != 1 or stored.dtype != np.bool_ or not stored.size:
        raise UserError(
            f"{where}: dataset 'done' {stored.shape} of {stored.dtype}: expected one boolean per item; {again}"
        )
    count = len(stored)
    first = 0
    if "items" in file:
        which = dataset(file, "items")
        if which.shape != (count,) or which.dtype.kind not in "iu":
            raise UserError(
                f"{where}: dataset 'items' {which.shape} of {which.dtype}: expected one whole number for each of {count} "
                f"items; {again}"
            )
        numbers = read(which)
        first = int(numbers[0])
        if first < 0 or not np.array_equal(numbers - numbers[0], np.arange(count)):
            raise UserError(f"{where}: dataset 'items' does not count up by one from an item of the input; {again}")
    given = file.attrs.get("input_items", first + count)
    if not isinstance(given, int | np.integer) or given < first + count:
        raise UserError(
            f"{where}: input_items is {str(given)[:40]}, expected {first + count} or more, as it has items {first}:"
            f"{first + count}; {again}"
        )
    done = read(stored)
    missing = [name for name in _IMAGES[:3] if name not in file]
    if missing and done.any():
        inside = ", ".join(sorted(map(shown, file)))
        raise UserError(
            f"{where}: is no result file: it lacks {', '.join(missing)} and holds {inside}; give a result file"
        )
    for name in _IMAGES:
        if name in file:
            _check_images(file, name, count, f"{where}: dataset {name!r}", again)
    _check_diagnostics(file, count, where, again)
    return Outline(done, list(range(first, first + count)), int(given))


def _check_images(file: h5py.File, name: str, count: int, where: str, again: str) -> None:
    stored = dataset(file, name)
    shape = stored.shape
    if stored.dtype.kind not in ("fiuc" if name == "truth" else "fiu"):
        raise UserError(f"{where} {shape}: holds {stored.dtype}, expected real numbers; {again}")
    least = 4 if name == "samples" else 3
    if len(shape) < least or shape[0] != count or not math.prod(shape):
        axes = "items, samples, channels" if name == "samples" else "items, channels"
        raise UserError(f"{where} {shape}: expected ({axes}, *spatial) of {count} items; {again}")
    if name == "mean" or "mean" not in file:
        return
    mean = dataset(file, "mean").shape
    image = shape[2:] if name == "samples" else shape[1:]
    # Magnitudes, or complex numbers, may be known of complex images, which have two channels.
    if image != mean[1:] and not (name == "truth" and image == (1, *mean[2:])):
        raise UserError(f"{where} {shape}: its images do not fit those of 'mean' {mean}; {again}")


def _check_diagnostics(file: h5py.File, count: int, where: str | Path, again: str) -> None:
    if "diagnostics" not in file:
        return
    group = file["diagnostics"]
    if not isinstance(group, h5py.Group):
        raise UserError(f"{where}: 'diagnostics' is a dataset, expected a group; {again}")
    for name in group:
        if not isinstance(name, str):
            raise UserError(f"{where}: 'diagnostics' holds '{shown(name)}', which is no name in UTF-8; {again}")
        stored = dataset(file, f"diagnostics/{name}")
        if (axes := _AXES.get(name)) and "samples" in file:
            start = (count, dataset(file, "samples").shape[1])
            if stored.ndim != axes or stored.shape[: min(axes, 2)] != start[: min(axes, 2)] or not stored.size:
                raise UserError(
                    f"{where}: dataset {stored.name!r} {stored.shape}: expected {axes} axes that begin with {start[:axes]}; "
                    f"{again}"
                )
        if not stored.ndim or stored.shape[0] != count or stored.dtype.kind not in "fiub":
            raise UserError(
                f"{where}: dataset {stored.name!r} {stored.shape} of {stored.dtype}: expected real numbers for each of {count} "
                f"items; {again}"
            )


def stored_config(file: h5py.File, where: str | Path) -> dict[str, Any]:
    """The record of the run; empty when there is none.

    Raises:
        UserError: it is no JSON object, or an entry that others read is of another kind.
    """
    again = "copy it again, or remove it and run again"
    if "config" in file:
        found = file["config"]
        stored = found[()] if isinstance(found, h5py.Dataset) and found.shape == () else ""
    else:
        stored = file.attrs.get("config", "{}")
    try:
        config = json.loads(text(stored))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{where}: its record of the run (config) is no JSON object; {again}")
    for name, kind in _RECORD.items():
        entry = config.get(name)
        good = entry is None or isinstance(entry, kind)
        if good and isinstance(entry, dict):
            good = all(isinstance(entry.get(key), str | None) for key in _TEXTS)
            good = good and isinstance(entry.get("parameters"), dict | None)
        if not good:
            what = "an object" if kind is dict else "a list"
            raise UserError(
                f"{where}: its record of the run says {name} = {json.dumps(entry)[:40]}, expected {what}; {again}"
            )
    return config
