"""Layout "dxchange": parallel-beam tomography as synchrotrons write it, with flats, darks and angles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invsolve.datasets.hdf5 import dataset, doubles, read, text
from invsolve.datasets.tomography.counts import Frames
from invsolve.datasets.tomography.frame_checks import Monitor
from invsolve.datasets.tomography.projections import Projections, Scan, angles_in_degrees, check_fields
from invsolve.errors import UserError


class DXchange(Projections):
    """Parallel-beam projections; items are detector rows, y (rows, angles, detectors) is -log of the transmission.

    The noise is Gaussian with the root mean square, over rays, of what the scatter of flats and darks predicts. The
    image's pixels are as wide as the (binned) detector's. Which way the stage turns is not in such files: images of one
    that turns the other way come out mirrored.
    """

    name = "dxchange"

    @classmethod
    def recognises(cls, file: Any) -> bool:
        return "/exchange/data" in file

    def find(self, file: h5py.File, path: Path) -> Scan:
        group = f"/{(self.entry or 'exchange').strip('/')}"
        notes: list[str] = []
        data = _frames(file, path, f"{group}/data", None)
        shape = file[data.name].shape
        angles, height, width = (shape[axis] for axis in data.order)
        degrees = _angles(file, path, f"{group}/theta", data.name, angles, notes, self.angle_unit)
        white, dark = (None, None) if self.normalised else _fields(file, path, group, data, (height, width))
        monitor = None
        if self.monitor not in ("auto", "off") and white is not None:
            flats = file[white.name].shape[white.order[0]] if white.order[0] >= 0 else 1
            monitor = _monitor(file, path, self.monitor, angles, flats)
        return Scan(
            data,
            white,
            dark,
            degrees,
            height,
            width,
            monitor=monitor,
            notes=notes,
        )


def _frames(file: h5py.File, path: Path, name: str, default: tuple[int, int, int] | None) -> Frames:
    """Where a dataset's axes are: from its `axes` attribute, else the layout's theta:y:x, or the projections' order."""
    dset = dataset(file, name, real=True)
    if not dset.size:
        raise UserError(f"{path}: {name} {dset.shape} is empty; write it again with its frames")
    if dset.ndim not in ((3,) if default is None else (2, 3)):
        raise UserError(
            f"{path}: {name} {dset.shape}: expected 3 axes (theta, y, x); one detector row is data[:, None, :]"
        )
    axes = text(dset.attrs.get("axes", ""))
    if not axes:
        if default is not None and dset.ndim == 2:
            return Frames(path, name, (-1, 0, 1) if default[1] < default[2] else (-1, 1, 0))
        order = default or (0, 1, 2)
    else:
        names = [
            part.strip().split("_")[0].lower()
            for part in axes.replace(",", ":").replace(" ", ":").split(":")
            if part.strip()
        ]
        if sorted(names) != sorted(["theta", "y", "x"][3 - dset.ndim :]) or len(names) != dset.ndim:
            raise UserError(
                f"{path}: {name} {dset.shape} has axes={axes!r}, expected an order of theta, y, x such as 'theta:y:x'"
            )
        order = (names.index("theta") if "theta" in names else -1, names.index("y"), names.index("x"))
    return Frames(path, name, order)


def _fields(file: h5py.File, path: Path, group: str, data: Frames, size: tuple[int, int]) -> tuple[Frames, Frames]:
    for name, kind in ((f"{group}/data_white", "flats"), (f"{group}/data_dark", "darks")):
        if name not in file:
            raise UserError(
                f"{path}: has no {kind} ({name}), needed to turn {data.name} into attenuation; add them, or say "
                "normalised=true if the data are transmissions already"
            )
    fields = tuple(_frames(file, path, f"{group}/{name}", data.order) for name in ("data_white", "data_dark"))
    check_fields(file, path, data, (fields[0], fields[1]), size)
    return fields[0], fields[1]


def _angles(file: h5py.File, path: Path, name: str, data: str, count: int, notes: list[str], unit: str) -> np.ndarray:
    """Projection angles in degrees; never invented.

    Raises:
        UserError: missing, of another length, or unusable (see `angles_in_degrees`).
    """
    if name not in file:
        raise UserError(
            f"{path}: has no {name} (projection angles), and angles are never invented; add it with units='degrees'"
        )
    angles = dataset(file, name, real=True)
    if angles.size != count:
        raise UserError(
            f"{path}: {name} has {angles.size} angles, but {data} {file[data].shape} has {count} along its theta axis; if "
            "its axes are in another order, give it the attribute axes, such as 'y:theta:x'"
        )
    return angles_in_degrees(angles, path, name, "theta", notes, unit)


def _monitor(file: h5py.File, path: Path, name: str, projections: int, flats: int) -> Monitor:
    """The beam by a dataset of projections, or of flats and then projections; DXchange itself keeps none.

    Raises:
        UserError: of another length.
    """
    values = doubles(read(dataset(file, name, real=True))).ravel()
    if len(values) == projections + flats:
        return Monitor(name, values[flats:], values[:flats])
    if len(values) != projections:
        raise UserError(
            f"{path}: {name} has {len(values)} values for {projections} projections and {flats} flats; expected one a "
            "projection, or one a flat and then one a projection"
        )
    # Flats are taken just before the first projection, or so it is hoped; the note says which monitor was used.
    return Monitor(name, values, np.full(flats, values[0]))
