"""invsolve's image files: dataset `x`, written item by item and read when sliced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from invsolve.contracts.measurement import Rows
from invsolve.datasets.hdf5.reading import dataset, open_readonly, read, text
from invsolve.datasets.hdf5.rows import LazyRows
from invsolve.datasets.hdf5.writing import atomic, check_target, image_axes, to_numpy
from invsolve.errors import UserError


def images_unit(path: str | Path) -> str:
    """The physical unit that an image file states, of its dataset `x` or of the file; empty when it states none."""
    with open_readonly(path) as file:
        attributes = {**file.attrs, **file["x"].attrs}
    return text(attributes.get("units", attributes.get("unit", "")))


def read_volumes(path: Path, items: int) -> list[int] | None:
    """The volume that each of so many items is a slice of (dataset `volume`); None where the file does not say.

    Raises:
        UserError: there is not one whole number per item.
    """
    with open_readonly(path) as file:
        if "volume" not in file:
            return None
        labels = read(dataset(file, "volume"))
    if labels.shape != (items,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: dataset 'volume' {labels.shape} of {labels.dtype}: expected one whole number for each of {items} items"
        )
    return [int(label) for label in labels]


def write_rows(file: h5py.File, columns: Mapping[str, Rows | np.ndarray]) -> None:
    """Write datasets item by item, side by side, so that what they are made from need be read only once."""
    for name, rows in columns.items():
        first = to_numpy(rows[0:1])
        if not first.size:
            raise UserError(f"{file.filename}: {name} {first.shape} is empty; give at least one item")
        shape = (len(rows), *first.shape[1:])
        stored = file.create_dataset(name, shape, first.dtype, chunks=first.shape, fletcher32=True)
        # The axes of a measurement are its operator's business; those of an image have names.
        measured = " ".join(["item", *("measurement",) * (stored.ndim - 1)])
        stored.attrs["axes"] = measured if name == "y" else image_axes(stored.ndim, "item", "channel")
    for item in range(len(next(iter(columns.values())))):
        for name, rows in columns.items():
            file[name][item] = to_numpy(rows[item : item + 1])[0]


def read_images(path: str | Path, dataset: str | None = None) -> LazyRows:
    """Open images, such as truth or training data: (N, C, *spatial), read when sliced.

    Args:
        path: the file.
        dataset: where in it; default "x". "mean" reads a result file, "truth" a scan's.

    Raises:
        UserError: unreadable (see `open_readonly`), or without a channel axis: axes are never guessed.
    """
    name = dataset or "x"
    with open_readonly(path) as file:
        if dataset is None and "x" not in file and "mean" in file and "done" in file:
            raise UserError(f"{path}: is a result file, without a dataset 'x'; read its images with dataset 'mean'")
        named = text(file[name].attrs.get("axes", "")).split()[:2] if name in file else []
    rows = LazyRows(path, name)
    if len(rows.shape) < 3 or (len(rows.shape) == 3 and named != ["item", "channel"]):
        raise UserError(
            f"{path}: dataset {name!r} {rows.shape}: expected (items, channels, rows, columns); add the axis that is "
            "missing, for grey images with x[:, None] (1-D signals: set the attribute axes = 'item channel position')"
        )
    return rows


def write_images(
    path: str | Path,
    images: Rows | np.ndarray,
    unit: str = "",
    overwrite: bool = False,
    attributes: Mapping[str, str | int] | None = None,
    signals: bool = False,
) -> None:
    """Write images as dataset `x`; the file appears under its name only when it is complete.

    Args:
        path: the file.
        images: (N, C, rows, columns), or with a third spatial axis.
        unit: physical unit of the values.
        overwrite: replace an existing file.
        attributes: of the file, such as where the images came from.
        signals: the images have one spatial axis, (N, C, positions).

    Raises:
        UserError: the path cannot be written or exists, or the images have no channel axis.
    """
    target = Path(path)
    check_target(target)
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; give --overwrite to replace it")
    shape = (len(images), *images[0:1].shape[1:])
    if len(shape) < (3 if signals else 4):
        raise UserError(
            f"{target}: images {shape}: expected (items, channels, rows, columns); add the axis that is missing"
        )
    with atomic(target) as file:
        file.attrs["unit"] = unit
        for name, value in (attributes or {}).items():
            file.attrs[name] = value
        write_rows(file, {"x": images})
