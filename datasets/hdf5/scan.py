"""invsolve's scan files: the measurement, its operator and its noise, written and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.arguments import ARRAY_FILES
from invsolve.contracts.layout import Make, make_for
from invsolve.contracts.measurement import Rows
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.datasets.hdf5.images import write_rows
from invsolve.datasets.hdf5.links import shown
from invsolve.datasets.hdf5.reading import dataset, native, read, text
from invsolve.datasets.hdf5.writing import atomic, check_target, to_numpy
from invsolve.errors import UserError
from invsolve.operators.ct.geometry import SUFFIXES

# HDF5 takes attributes up to 64 kB; longer text becomes a dataset.
_ATTRIBUTE_LIMIT = 60_000


def read_parameters(group: h5py.Group) -> dict[str, Any]:
    """The parameters of an operator or a noise: attributes as Python values, datasets as tensors.

    Raises:
        UserError: one is neither numbers nor text, or names another file, which a file from elsewhere must not.
    """
    where = f"{group.file.filename}: group {group.name!r}"
    parameters: dict[str, Any] = {}
    for key in group.attrs:
        if key != "name":
            parameters[key] = _parameter(_attribute(group, key, where), f"{where}: {shown(key)}")
    for key in group:
        stored = group[key]
        if isinstance(stored, h5py.Dataset) and stored.dtype.kind in "OSU":
            value = stored[()] if stored.shape == () else None
        else:
            value = read(dataset(group.file, f"{group.name}/{key}"))
        parameters[key] = _parameter(value, f"{where}: {shown(key)}")
    return parameters


def _attribute(group: h5py.Group, key: str, where: str) -> Any:
    try:
        return group.attrs[key]
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {shown(key)} cannot be read ({shown(str(error))}); write it again") from None


def _parameter(value: Any, where: str) -> Any:
    if isinstance(value, bytes | str) or (isinstance(value, np.ndarray) and value.dtype.kind in "OSU"):
        said = text(value)
        # Of every file that a parameter reads when it is given by name: arrays, geometries.
        if said.lower().endswith((*ARRAY_FILES, *SUFFIXES)):
            raise UserError(
                f"{where} names the file '{shown(said)}', which is not followed; store the numbers themselves"
            )
        return said
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        return torch.from_numpy(native(value)) if value.ndim else native(value).item()
    raise UserError(f"{where} holds {type(value).__name__}, expected numbers or text; write it again")


def read_noise(file: h5py.File, path: Path, make: Make) -> Noise | None:
    """The noise of a scan file, from its group `noise`: an attribute `name`, and the parameters.

    Args:
        file: the open file.
        path: its path, for errors.
        make: as handed to `Layout.open`.

    Returns:
        The noise; None where the file has no such group.

    Raises:
        UserError: a name that is not registered, or wrong parameters.
    """
    group = file.get("noise")
    if not isinstance(group, h5py.Group):
        return None
    name, parameters = text(group.attrs.get("name", "")), read_parameters(group)
    return make_for(f"{path}: group 'noise'", make).noise(name, **parameters)


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
        volumes: which volume each item is a slice of, one number per item; None for one volume.

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
        raise UserError(f"{path}: there are {len(volumes)} volume labels for {len(y)} items; give one per item")
    if truth is not None and len(truth) != len(y):
        raise UserError(f"{path}: truth has {len(truth)} items, y has {len(y)}; they must agree")
    with atomic(target) as file:
        file.attrs.update({"image_unit": unit or operator.image_unit, **(extra_attrs or {})})
        write_rows(file, {"y": y} | ({} if truth is None else {"truth": truth}))
        if volumes is not None:
            file["volume"] = np.asarray(volumes, dtype=np.int64)
        _write_parameters(file.create_group("operator"), operator.name, operator.parameters_given, path)
        if noise is not None:
            _write_parameters(file.create_group("noise"), noise.name, noise.settings(), path)


def _write_parameters(group: h5py.Group, name: str, parameters: Mapping[str, Any], path: str | Path) -> None:
    group.attrs["name"] = name
    for key, value in parameters.items():
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
