"""Layout "dxchange": parallel-beam tomography as synchrotrons write it, with flats, darks and angles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invsolve import hookimpl
from invsolve.contracts.layout import Layout, Measurement
from invsolve.contracts.noise import Gaussian
from invsolve.datasets._building import make_operator
from invsolve.datasets._centre import find_centre
from invsolve.datasets._counts import FLOOR, Frames, LineIntegrals, kept, noise_sigma
from invsolve.datasets._hdf5 import dataset, fingerprint, open_readonly, read, text
from invsolve.errors import UserError

_DATA, _WHITE, _DARK, _THETA = "/exchange/data", "/exchange/data_white", "/exchange/data_dark", "/exchange/theta"
# Rows that are looked at for the centre and the noise, whatever the size of the volume.
_LOOKED_AT = 16


class DXchange(Layout):
    """Parallel-beam projections; items are detector rows, y (rows, angles, detectors) is -log of the transmission.

    The noise is Gaussian with the root mean square, over rays, of what the scatter of flats and darks predicts. The
    image's pixels are as wide as the (binned) detector's. Which way the stage turns is not in such files: images of one
    that turns the other way come out mirrored.

    Args:
        thin: keep the first of each complete group of so many angles.
        bin: average the counts of so many neighbouring detector pixels.
        centre: detector pixel (0-based, unbinned, may be fractional) onto which the rotation axis projects; default
            search it.
        rows: [start, stop) of detector rows; default all.
        image_size: N, for N x N pixels; default the number of (binned) detector pixels.
        pixel_size: width of an unbinned detector pixel, in length_unit; default 1 pixel.
        length_unit: unit of pixel_size, such as "mm"; the image is in 1/length_unit.
        normalised: the data are transmissions already; flats and darks are not used and the noise is not known.
    """

    def __init__(
        self,
        thin: int = 1,
        bin: int = 1,
        centre: float | None = None,
        rows: list[int] | None = None,
        image_size: int | None = None,
        pixel_size: float | None = None,
        length_unit: str = "pixel",
        normalised: bool = False,
    ) -> None:
        for name, value in (("thin", thin), ("bin", bin), ("image_size", image_size), ("pixel_size", pixel_size)):
            if value is not None and not value > 0:
                raise UserError(f"layout 'dxchange': {name} must be > 0, got {value}")
        if pixel_size is None and length_unit != "pixel":
            raise UserError(
                f"layout 'dxchange': length_unit={length_unit!r} needs pixel_size=, the detector pixel in {length_unit}"
            )
        if pixel_size is not None and length_unit == "pixel":
            raise UserError(f"layout 'dxchange': pixel_size={pixel_size} needs length_unit=, such as 'mm'")
        self.thin, self.bin, self.centre, self.rows = thin, bin, centre, rows
        self.image_size, self.pixel_size, self.length_unit = image_size, pixel_size, length_unit
        self.normalised = normalised

    @classmethod
    def recognises(cls, file: Any) -> bool:
        return _DATA in file

    def open(self, path: Path) -> Measurement:
        path = Path(path)
        notes: list[str] = []
        with open_readonly(path) as file:
            data = _frames(file, path, _DATA, None)
            angles, height, width = (file[_DATA].shape[axis] for axis in data.order)
            degrees = _angles(file, path, angles, file[_DATA].shape, notes)
            white, dark = (None, None) if self.normalised else _fields(file, path, data, (height, width))
        start, stop = self._rows(path, height)
        if width < 2 * self.bin:
            raise UserError(f"{path}: bin={self.bin} leaves fewer than 2 of {width} detector pixels; lower it")
        y = LineIntegrals(data, white, dark, start, stop, self.thin, self.bin)
        left = degrees[kept(len(degrees), self.thin)]
        span = f"{left.min():.4g} to {left.max():.4g} degrees"
        notes.append(f"{len(left)} of {angles} angles kept ({span}), detector rows {start} to {stop - 1} as items")
        if width % self.bin:
            notes.append(f"bin={self.bin} drops the last {width % self.bin} of {width} detector pixels")
        looked = _Looked(y)
        notes += looked.notes()
        sigma = looked.sigma()
        notes.append(
            f"noise sigma {sigma:.4g}, from the scatter of the flats"
            if sigma
            else "noise not known from the file: give it"
        )
        centre = self._centre(path, looked, degrees, width, notes)
        count = width // self.bin
        parameters = {
            "image_size": self.image_size or count,
            "angles": left.tolist(),
            "detectors": count,
            "centre": (centre + 0.5) / self.bin - 0.5,
            "pixel_size": (self.pixel_size or 1.0) * self.bin,
        }
        return Measurement(
            y=y,
            operator=make_operator(self, "ct", parameters, str(path)),
            noise=Gaussian(sigma) if sigma else None,
            unit=f"1/{self.length_unit}",
            source=str(path),
            fingerprint=self._fingerprint(path),
            notes=notes,
        )

    def _rows(self, path: Path, height: int) -> tuple[int, int]:
        start, stop = (0, height) if self.rows is None else (self.rows if len(self.rows) == 2 else (-1, -1))
        if not 0 <= start < stop <= height:
            raise UserError(f"{path}: rows={self.rows} must be [start, stop) within the {height} detector rows")
        return start, stop

    def _centre(self, path: Path, looked: _Looked, degrees: np.ndarray, width: int, notes: list[str]) -> float:
        if self.centre is not None:
            if not 0 <= self.centre <= width - 1:
                raise UserError(
                    f"{path}: centre={self.centre} lies outside the {width} detector pixels, 0 to {width - 1} unbinned"
                )
            notes.append(f"rotation centre {self.centre:g}, given")
            return self.centre
        found, how = find_centre(
            looked.sinogram(), degrees, lambda given: make_operator(self, "ct", given, str(path)), str(path)
        )
        notes.append(f"rotation centre {found:.2f} found ({how}); centre= fixes it")
        return found

    def _fingerprint(self, path: Path) -> str:
        # Rows, thinning and binning change the items as much as another file would.
        options = hashlib.sha256(repr(sorted(vars(self).items())).encode()).hexdigest()
        return f"{fingerprint(path)}+options:{options[:16]}"


class _Looked:
    """Up to 16 detector rows spread over the selection: enough for the centre, the noise, and what is odd."""

    def __init__(self, y: LineIntegrals) -> None:
        self.y = y
        self.rows = np.unique(np.linspace(y.start, y.stop - 1, min(len(y), _LOOKED_AT)).round().astype(int)).tolist()
        parts = [y.corrected(row, row + 1) for row in self.rows]
        for row, part in zip(self.rows, parts, strict=True):
            if not np.isfinite(part.signal).all():
                raise UserError(
                    f"{y.data.path}: {_DATA} has NaN or infinite values in detector row {row}; leave it out with rows="
                )
        self.parts = parts

    def notes(self) -> list[str]:
        y, seen = self.y, f"in the {len(self.rows)} detector rows looked at"
        if y.white is None or y.dark is None:
            lines = ["the data are taken as transmissions, without flat and dark field"]
        else:
            flats, darks = (len(f.read(self.rows[0], self.rows[0] + 1)[0]) for f in (y.white, y.dark))
            lines = [f"flat field: mean of {flats} flats and {darks} darks"]
        if dead := sum(part.dead for part in self.parts):
            lines.append(f"{dead} dead detector pixels {seen}, filled from their neighbours")
        if floored := sum(part.floored for part in self.parts):
            total = sum(part.signal.size for part in self.parts)
            lines.append(f"{floored} of {total} transmissions {seen} were below {FLOOR:g} and set to it")
        return lines

    def sigma(self) -> float | None:
        if self.y.white is None or self.y.dark is None:
            return None
        white, dark = (np.concatenate([f.read(r, r + 1) for r in self.rows]) for f in (self.y.white, self.y.dark))
        together = self.parts[0]
        together.signal = np.concatenate([part.signal for part in self.parts])
        together.open = np.concatenate([part.open for part in self.parts])
        return noise_sigma(together, white, dark, self.y.bin)

    def sinogram(self) -> np.ndarray:
        """Mean over the rows, all angles and detector pixels."""
        fine = LineIntegrals(self.y.data, self.y.white, self.y.dark, self.y.start, self.y.stop)
        return np.mean([fine.corrected(row, row + 1).line_integrals()[0] for row in self.rows], axis=0)


def _frames(file: h5py.File, path: Path, name: str, default: tuple[int, int, int] | None) -> Frames:
    """Where a dataset's axes are: from its `axes` attribute, else the layout's theta:y:x, or the projections' order."""
    found = dataset(file, name)
    if found.ndim not in ((3,) if default is None else (2, 3)):
        raise UserError(
            f"{path}: {name} {found.shape}: expected 3 axes (theta, y, x); one detector row is data[:, None, :]"
        )
    axes = text(found.attrs.get("axes", ""))
    if not axes:
        if default is not None and found.ndim == 2:
            return Frames(path, name, (-1, 0, 1) if default[1] < default[2] else (-1, 1, 0))
        order = default or (0, 1, 2)
    else:
        names = [
            part.strip().split("_")[0].lower()
            for part in axes.replace(",", ":").replace(" ", ":").split(":")
            if part.strip()
        ]
        if sorted(names) != sorted(["theta", "y", "x"][3 - found.ndim :]) or len(names) != found.ndim:
            raise UserError(
                f"{path}: {name} {found.shape} has axes={axes!r}, expected an order of theta, y, x such as 'theta:y:x'"
            )
        order = (names.index("theta") if "theta" in names else -1, names.index("y"), names.index("x"))
    return Frames(path, name, order)


def _fields(file: h5py.File, path: Path, data: Frames, size: tuple[int, int]) -> tuple[Frames, Frames]:
    fields = []
    for name, kind in ((_WHITE, "flats"), (_DARK, "darks")):
        if name not in file:
            raise UserError(
                f"{path}: has no {kind} ({name}), needed to turn {_DATA} into attenuation; add them, or say "
                "normalised=true if the data are transmissions already"
            )
        frames = _frames(file, path, name, data.order)
        got = tuple(file[name].shape[axis] for axis in frames.order[1:])
        if got != size:
            raise UserError(
                f"{path}: {name} has frames of {got} (y, x), but {_DATA} has {size}; write them in one size"
            )
        fields.append(frames)
    return fields[0], fields[1]


def _angles(file: h5py.File, path: Path, count: int, shape: tuple[int, ...], notes: list[str]) -> np.ndarray:
    """Projection angles in degrees; never invented.

    Raises:
        UserError: missing, of another length, not finite, constant, or in a unit that is unknown or cannot be told.
    """
    if _THETA not in file:
        raise UserError(
            f"{path}: has no {_THETA} (projection angles), and angles are never invented; add it with units='degrees'"
        )
    found = dataset(file, _THETA)
    theta = read(found).astype(np.float64).ravel()
    if len(theta) != count:
        raise UserError(
            f"{path}: {_THETA} has {len(theta)} angles, but {_DATA} {shape} has {count} along its theta axis; if its "
            "axes are in another order, give it the attribute axes, such as 'y:theta:x'"
        )
    if not np.isfinite(theta).all():
        raise UserError(f"{path}: {_THETA} has NaN or infinite angles; write them again")
    if count > 1 and not np.ptp(theta) > 0:
        raise UserError(f"{path}: {_THETA} is {theta[0]:g} for all {count} projections; write the angles again")
    unit = text(found.attrs.get("units", found.attrs.get("unit", ""))).strip().lower()
    if unit in ("degree", "degrees", "deg", "°"):
        return theta
    if unit in ("radian", "radians", "rad"):
        return np.rad2deg(theta)
    if unit:
        raise UserError(f"{path}: {_THETA} has units={unit!r}; expected 'degrees' or 'radians'")
    span = np.ptp(theta)
    if not 6.5 < span <= 361:
        raise UserError(
            f"{path}: {_THETA} ({theta.min():.4g} to {theta.max():.4g}) has no units; add units='degrees' or 'radians'"
        )
    notes.append(f"theta has no units; taken as degrees, as its range is {theta.min():.4g} to {theta.max():.4g}")
    return theta


@hookimpl
def invsolve_layouts() -> Mapping[str, type]:
    return {"dxchange": DXchange}
