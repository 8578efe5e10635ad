"""Opening measurements and images with the layout that recognises them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invsolve import registry
from invsolve.api.loading import make
from invsolve.contracts.layout import Layout
from invsolve.contracts.measurement import Images, Measurement
from invsolve.datasets import hdf5
from invsolve.datasets.hdf5 import check_regular, fingerprint, is_matlab, open_readonly, shown, written_by_matlab
from invsolve.errors import UserError
from invsolve.registry.parameters import build, parameters


def find_layout(path: Path) -> list[str]:
    """Names of the registered layouts that recognise a file, or a folder.

    Raises:
        UserError: nothing recognises what is no HDF5, or the file cannot be opened.
    """
    known, path = registry.available("layout"), Path(path)
    check_regular(path)
    if path.exists():
        by_name = [name for name, cls in known.items() if cls.opens(path)]  # type: ignore[attr-defined]
        if by_name:
            return by_name
    with open_readonly(path) as file:
        # MATLAB's axes are in reverse: a variable with a known name is not what it is elsewhere.
        if written_by_matlab(file):
            return []
        return _recognising(known, file)


def _recognising(known: Mapping[str, type], file: Any) -> list[str]:
    """The layouts that recognise an open file.

    Raises:
        UserError: none does, and one was kept from looking by what it asked for.
    """
    names, refusals = [], []
    for name, cls in known.items():
        try:
            if cls.recognises(file):  # type: ignore[attr-defined]
                names.append(name)
        except UserError as error:
            refusals.append(error)
    if refusals and not names:
        raise refusals[0]
    return names


def open_measurement(path: Path, layout: str | None = None, options: Mapping[str, Any] | None = None) -> Measurement:
    """Open a measurement file with the layout that recognises it.

    Args:
        path: the file.
        layout: name of a registered layout; None asks each whether it recognises the file.
        options: the layout's parameters, such as {"thin": 4} for dxchange.

    Raises:
        UserError: unreadable, recognised by none, or wrong options.
    """
    check_regular(Path(path))
    if layout is None:
        fitting = find_layout(path)
        if not fitting:
            raise UserError(_unknown(path))
        layout = fitting[0]
    reader: Layout = build(registry.find("layout", layout), "layout", layout, dict(options or {}))
    return reader.open(Path(path), make)


def open_images(path: Path, layout: str | None = None, options: Mapping[str, Any] | None = None) -> Images:
    """Open images to simulate from, to train on or to compare with.

    Args:
        path: invsolve's own files (dataset x), or what a layout reads as images.
        layout: name of a registered layout; None asks each, and takes files that none knows as invsolve's own.
        options: the layout's parameters.

    Raises:
        UserError: unreadable, no images, or wrong options.
    """
    check_regular(Path(path))
    if layout is None:
        layout = next((n for n in find_layout(path) if registry.find("layout", n).images is not Layout.images), None)  # type: ignore[attr-defined]
    if layout is None:
        if options:
            raise UserError(f"{path}: --read needs --layout here, as no layout recognises the file; {_layouts()}")
        _refuse_others(path)
        x = hdf5.read_images(path)
        labels = hdf5.read_volumes(path, len(x))
        return Images(x, hdf5.images_unit(path), source=str(path), fingerprint=fingerprint(path), volumes=labels)
    reader: Layout = build(registry.find("layout", layout), "layout", layout, dict(options or {}))
    return reader.images(Path(path))


def _refuse_others(path: Path) -> None:
    """Without x there are no images of ours, and MATLAB's variable x, whose axes are in reverse, is none of them."""
    with open_readonly(path) as file:
        there = {} if "x" in file else hdf5.datasets(file)
        if there:
            listed = ", ".join(f"'{name}' {text}" for name, text in list(there.items())[:8])
            raise UserError(
                f"{path}: has no dataset 'x' of images; it has {listed}{', ...' if len(there) > 8 else ''}; name one, such as "
                f"--layout {plain_arrays()} --read dataset={shlex.quote(next(iter(there)))}; 'invsolve inspect' tells the rest"
            )
        if "x" in file and is_matlab(file["x"]):
            raise UserError(
                f"{path}: x was written by MATLAB, whose axes are in reverse {file['x'].shape}; say which is which: --layout "
                f"{plain_arrays()} --read dataset=x --read axes=item,column,row (the file's order)"
            )


def plain_arrays() -> str:
    """The layout that takes any array by the names of its axes."""
    for name, cls in registry.available("layout").items():
        if {"axes", "dataset"} <= {p.name for p in parameters(cls)}:
            return name
    return "NAME"


def _unknown(path: Path) -> str:
    quoted = shlex.quote(str(path))
    with open_readonly(path) as file:
        inside = ", ".join(sorted(shown(name) for name in file)) or "nothing"
        if "done" in file and ("config" in file.attrs or "config" in file):
            return (
                f"{path}: is a result, not a measurement; look at it with 'invsolve report {quoted} -o report.html', or give "
                "the scan that it was made from"
            )
        if "x" in file and "y" not in file:
            return (
                f"{path}: holds images (dataset x), not a measurement; measure them first: 'invsolve simulate {quoted} -o "
                "scan.h5 --operator NAME'"
            )
    return f"{path}: no known layout; the file holds {inside}. 'invsolve inspect {path}' says what it could be; {_layouts()}"


def _layouts() -> str:
    return f"--layout names one of {', '.join(registry.available('layout'))}"
