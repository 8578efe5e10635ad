"""invsolve's own files: scans (layout "invsolve"), images, and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from invsolve import hookimpl
from invsolve.contracts.layout import Layout, Measurement, Rows
from invsolve.contracts.noise import MODELS, Noise
from invsolve.contracts.operator import Operator
from invsolve.datasets._building import make_operator
from invsolve.datasets._hdf5 import LazyRows, dataset, fingerprint, open_readonly, read, text
from invsolve.datasets._joining import Part, glance, join_results
from invsolve.datasets._result_view import ResultView, read_result
from invsolve.datasets._results import ResultFile, partial_path
from invsolve.datasets._writing import atomic, check_target, image_axes, to_numpy
from invsolve.errors import UserError, suggestion

__all__ = [
    "OwnLayout",
    "Part",
    "ResultFile",
    "ResultView",
    "glance",
    "join_results",
    "partial_path",
    "read_images",
    "read_result",
    "read_volumes",
    "write_images",
    "write_scan",
]

# HDF5 takes attributes up to 64 kB; longer text becomes a dataset.
_ATTRIBUTE_LIMIT = 60_000


class OwnLayout(Layout):
    """Scan files as `write_scan` and `invsolve simulate` write them: `y`, `operator`, `noise`, perhaps `truth`."""

    @classmethod
    def recognises(cls, file: Any) -> bool:
        group = file.get("operator")
        return isinstance(group, h5py.Group) and "name" in group.attrs

    def open(self, path: Path) -> Measurement:
        with open_readonly(path) as file:
            group = file.get("operator")
            if not isinstance(group, h5py.Group) or "name" not in group.attrs:
                raise UserError(f"{path}: has no group 'operator' with an attribute 'name'; write it with write_scan")
            name, given = text(group.attrs["name"]), _read_parameters(group)
            noise = _read_noise(file, path)
            unit = text(file.attrs.get("image_unit", ""))
            has_truth = "truth" in file
        y = LazyRows(path, "y")
        if len(y.shape) < 2:
            raise UserError(f"{path}: dataset 'y' {y.shape}: expected (items, *measurement); one item is y[None]")
        truth = LazyRows(path, "truth") if has_truth else None
        if truth is not None and (len(truth.shape) < 3 or len(truth) != len(y)):
            raise UserError(
                f"{path}: dataset 'truth' {truth.shape}: expected ({len(y)}, channels, *spatial), as 'y' {y.shape}"
            )
        volumes = read_volumes(path, len(y))
        operator = make_operator(self, name, given, f"{path}: group 'operator'")
        return Measurement(
            y=y,
            operator=operator,
            noise=noise,
            truth=truth,
            unit=unit or operator.image_unit,
            source=str(path),
            fingerprint=fingerprint(path),
            volumes=volumes,
        )


def images_unit(path: str | Path) -> str:
    """The physical unit that an image file states, of its dataset `x` or of the file; empty when it states none."""
    with open_readonly(path) as file:
        attributes = {**file.attrs, **file["x"].attrs}
    return text(attributes.get("units", attributes.get("unit", "")))


def read_volumes(path: Path, items: int) -> list[int] | None:
    """The volume that each of so many items is a slice of (dataset `volume`); None where the file does not say.

    Raises:
        UserError: there is not one whole number an item.
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


def _read_parameters(group: h5py.Group) -> dict[str, Any]:
    """Attributes as Python values, datasets as tensors."""
    given: dict[str, Any] = {}
    for key, value in group.attrs.items():
        if key == "name":
            continue
        if isinstance(value, np.ndarray):
            given[key] = text(value) if value.dtype.kind in "OSU" else torch.from_numpy(np.ascontiguousarray(value))
        else:
            given[key] = text(value) if isinstance(value, bytes | str) else value.item()
    for key, stored in group.items():
        if isinstance(stored, h5py.Dataset) and stored.dtype.kind in "OSU":
            given[key] = text(stored[()])
            continue
        values = read(dataset(group.file, f"{group.name}/{key}"))
        given[key] = torch.from_numpy(np.ascontiguousarray(values)) if values.ndim else values.item()
    return given


def _read_noise(file: h5py.File, path: Path) -> Noise | None:
    group = file.get("noise")
    if not isinstance(group, h5py.Group):
        return None
    name = text(group.attrs.get("name", ""))
    if name not in MODELS:
        raise UserError(
            f"{path}: group 'noise' has the name {name!r}, which is no noise model.{suggestion(name, MODELS)}"
        )
    wanted = [f.name for f in fields(MODELS[name])]
    given = _read_parameters(group)
    if sorted(given) != sorted(wanted):
        got = ", ".join(sorted(given)) or "nothing"
        raise UserError(
            f"{path}: group 'noise' ({name}) has {got}, expected the attribute {', '.join(wanted)}; write it again"
        )
    try:
        return MODELS[name](**given)
    except (UserError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: group 'noise': {' '.join(str(error).split())}") from None


def write_scan(
    path: str | Path,
    y: Rows | np.ndarray,
    operator: Operator,
    noise: Noise | None,
    truth: Rows | np.ndarray | None = None,
    unit: str = "",
    extra_attrs: Mapping[str, Any] | None = None,
    volumes: Sequence[int] | None = None,
) -> None:
    """Write a scan file; it appears under its name only when it is complete, and replaces an older one then.

    Args:
        path: the file.
        y: (N, *measurement), real or complex.
        operator: made by `invsolve.operator(name, ...)`, so that its name and parameters are known.
        noise: how y scatters; None leaves it out.
        truth: (N, C, *spatial), physical units.
        unit: of the image; default the operator's.
        extra_attrs: further attributes of the file.
        volumes: which volume each item is a slice of, a number an item; None for one volume.

    Raises:
        UserError: the operator was made directly, a parameter cannot be stored, or the path cannot be written.
    """
    target = Path(path)
    check_target(target)
    if operator.parameters_given is None or not operator.name:
        kind = type(operator).__name__
        raise UserError(
            f"{path}: the operator {kind} was made directly, so its name and parameters are not known; make it with "
            f"invsolve.operator({operator.name or 'NAME'!r}, ...); a class of your own must be registered for that"
        )
    if volumes is not None and len(volumes) != len(y):
        raise UserError(f"{path}: there are {len(volumes)} volume labels for {len(y)} items; give one an item")
    if truth is not None and len(truth) != len(y):
        raise UserError(f"{path}: truth has {len(truth)} items, y has {len(y)}; they must agree")
    with atomic(target) as file:
        file.attrs.update({"image_unit": unit or operator.image_unit, **(extra_attrs or {})})
        _write_rows(file, {"y": y} | ({} if truth is None else {"truth": truth}))
        if volumes is not None:
            file["volume"] = np.asarray(volumes, dtype=np.int64)
        _write_parameters(file.create_group("operator"), operator.name, operator.parameters_given, path)
        if noise is not None:
            _write_parameters(file.create_group("noise"), noise.name, vars(noise), path)


def _write_rows(file: h5py.File, given: Mapping[str, Rows | np.ndarray]) -> None:
    """Write datasets item by item, side by side, so that what they are made from need be read only once."""
    for name, rows in given.items():
        first = to_numpy(rows[0:1])
        if not first.size:
            raise UserError(f"{file.filename}: {name} {first.shape} is empty; give at least one item")
        shape = (len(rows), *first.shape[1:])
        stored = file.create_dataset(name, shape, first.dtype, chunks=first.shape, fletcher32=True)
        # The axes of a measurement are its operator's business; those of an image have names.
        measured = " ".join(["item", *("measurement",) * (stored.ndim - 1)])
        stored.attrs["axes"] = measured if name == "y" else image_axes(stored.ndim, "item", "channel")
    for item in range(len(next(iter(given.values())))):
        for name, rows in given.items():
            file[name][item] = to_numpy(rows[item : item + 1])[0]


def _write_parameters(group: h5py.Group, name: str, given: Mapping[str, Any], path: str | Path) -> None:
    group.attrs["name"] = name
    for key, value in given.items():
        if value is None:
            continue
        if isinstance(value, Tensor | np.ndarray | list | tuple):
            try:
                array = to_numpy(value)
            except (ValueError, TypeError):
                array = np.empty(0, object)
            if array.dtype.kind not in "biufc":
                raise UserError(
                    f"{path}: {group.name[1:]} parameter {key!r} is a list of mixed things; use numbers of one shape"
                )
            group[key] = array
        elif isinstance(value, str) and len(value.encode()) > _ATTRIBUTE_LIMIT:
            group[key] = value
        elif isinstance(value, bool | int | float | complex | str):
            group.attrs[key] = value
        else:
            raise UserError(
                f"{path}: {group.name[1:]} parameter {key!r} is a {type(value).__name__}, which a file cannot hold; "
                "use numbers, text or arrays"
            )


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
) -> None:
    """Write images as dataset `x`; the file appears under its name only when it is complete.

    Args:
        path: the file.
        images: (N, C, rows, columns), or with a third spatial axis.
        unit: physical unit of the values.
        overwrite: replace an existing file.
        attributes: of the file, such as where the images came from.

    Raises:
        UserError: the path cannot be written or exists, or the images have no channel axis.
    """
    target = Path(path)
    check_target(target)
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; give --overwrite to replace it")
    shape = (len(images), *images[0:1].shape[1:])
    if len(shape) < 4:
        raise UserError(
            f"{target}: images {shape}: expected (items, channels, rows, columns); add the axis that is missing"
        )
    with atomic(target) as file:
        file.attrs["unit"] = unit
        for name, value in (attributes or {}).items():
            file.attrs[name] = value
        _write_rows(file, {"x": images})


@hookimpl
def invsolve_layouts() -> Mapping[str, type]:
    return {"invsolve": OwnLayout}
