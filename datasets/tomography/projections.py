"""What parallel-beam layouts share: from detector frames to a Measurement; each layout says only where things are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invsolve.contracts.layout import Layout, Make, make_for
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Gaussian
from invsolve.datasets.hdf5 import fingerprint, open_readonly, read, text
from invsolve.datasets.tomography.centre import find_centre
from invsolve.datasets.tomography.counts import FLOOR, Frames, LineIntegrals, kept, noise_sigma
from invsolve.errors import UserError

# Rows that are looked at for the centre and the noise, whatever the size of the volume.
_LOOKED_AT = 16


@dataclass
class Scan:
    """Where a file keeps what.

    Attributes:
        data: projections.
        white, dark: flats and darks; None when the data are transmissions already.
        degrees: of each projection.
        height, width: detector rows and columns.
        centre: detector column (0-based) onto which the axis projects, if the file says.
        pixel: width of a detector pixel and its length unit, if the file says.
        others: further files that hold the data (external links).
        notes: one line each.
    """

    data: Frames
    white: Frames | None
    dark: Frames | None
    degrees: np.ndarray
    height: int
    width: int
    centre: float | None = None
    pixel: tuple[float, str] | None = None
    others: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Projections(Layout):
    """Parallel-beam projections; items are detector rows, y (rows, angles, detectors) is -log of the transmission."""

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
        rings: int = 0,
        entry: str | None = None,
    ) -> None:
        """Reading options.

        Args:
            thin: keep the first of each complete group of so many angles.
            bin: average the counts of so many neighbouring detector pixels.
            centre: detector pixel (0-based, unbinned, may be fractional) onto which the rotation axis projects; default
                search it.
            rows: [start, stop) of detector rows; default all.
            image_size: N, for N x N pixels; default the number of (binned) detector pixels.
            pixel_size: width of an unbinned detector pixel, in length_unit; default the file's, else 1 pixel.
            length_unit: unit of pixel_size, such as "mm"; the image is in 1/length_unit.
            normalised: the data are transmissions already; flats and darks are not used and the noise is not known.
            rings: suppress ring artefacts: width in (binned) detector pixels, such as 9, of the median filter over sorted
                projections (Vo et al. 2018); 0 leaves the data as they are.
            entry: group of the scan, where a file holds several.
        """
        for name, value in (("thin", thin), ("bin", bin), ("image_size", image_size), ("pixel_size", pixel_size)):
            if value is not None and not value > 0:
                raise UserError(f"layout {self.name!r}: {name} must be > 0, got {value}")
        if pixel_size is None and length_unit != "pixel":
            raise UserError(
                f"layout {self.name!r}: length_unit={length_unit!r} needs pixel_size=, the detector pixel in {length_unit}"
            )
        if pixel_size is not None and length_unit == "pixel":
            raise UserError(f"layout {self.name!r}: pixel_size={pixel_size} needs length_unit=, such as 'mm'")
        if rings and (rings < 3 or rings % 2 == 0):
            raise UserError(f"layout {self.name!r}: rings must be 0 or an odd width of 3 or more pixels, got {rings}")
        self.thin, self.bin, self.centre, self.rows = thin, bin, centre, rows
        self.image_size, self.pixel_size, self.length_unit = image_size, pixel_size, length_unit
        self.normalised, self.rings, self.entry = normalised, rings, entry

    def find(self, file: h5py.File, path: Path) -> Scan:
        """Say where the file keeps what; without flats and darks when `self.normalised`.

        Raises:
            UserError: something is missing or contradictory.
        """
        raise NotImplementedError

    def open(self, path: Path, make: Make) -> Measurement:
        path = Path(path)
        make = make_for(path, make)
        with open_readonly(path) as file:
            scan = self.find(file, path)
        notes, degrees, missing = scan.notes, scan.degrees, []
        start, stop = self._rows(path, scan.height)
        if scan.width < 2 * self.bin:
            raise UserError(f"{path}: bin={self.bin} leaves fewer than 2 of {scan.width} detector pixels; lower it")
        y = LineIntegrals(scan.data, scan.white, scan.dark, start, stop, self.thin, self.bin, self.rings)
        left = degrees[kept(len(degrees), self.thin)]
        span = f"{left.min():.4g} to {left.max():.4g} degrees"
        notes.append(
            f"{len(left)} of {len(degrees)} angles kept ({span}), detector rows {start} to {stop - 1} as items"
        )
        if scan.width % self.bin:
            notes.append(f"bin={self.bin} drops the last {scan.width % self.bin} of {scan.width} detector pixels")
        looked = _Looked(y)
        notes += looked.notes()
        sigma = looked.sigma()
        notes.append(
            f"noise sigma {sigma:.4g}, from the scatter of the flats"
            if sigma
            else "noise not known from the file: give it"
        )
        if not sigma:
            missing.append("noise level: too few flats to tell; give --noise gaussian:SIGMA")
        centre = self._centre(path, looked, scan, missing, make)
        size, unit = (self.pixel_size, self.length_unit) if self.pixel_size else (scan.pixel or (1.0, "pixel"))
        if unit == "pixel":
            missing.append(
                "pixel size: the image is in 1/pixel; give --read pixel_size=0.005 --read length_unit=mm (with your value)"
            )
        elif self.pixel_size is None:
            notes.append(f"detector pixel {size:g} {unit}, from the file")
        count = scan.width // self.bin
        parameters = {
            "image_size": self.image_size or count,
            "angles": left.tolist(),
            "detectors": count,
            "centre": (centre + 0.5) / self.bin - 0.5,
            "pixel_size": size * self.bin,
        }
        return Measurement(
            y=y,
            operator=make("ct", **parameters),
            noise=Gaussian(sigma) if sigma else None,
            unit=f"1/{unit}",
            source=str(path),
            fingerprint=self._fingerprint(path, scan.others),
            notes=notes,
            missing=missing,
            axes="row angle detector",
        )

    def _rows(self, path: Path, height: int) -> tuple[int, int]:
        start, stop = (0, height) if self.rows is None else (self.rows if len(self.rows) == 2 else (-1, -1))
        if not 0 <= start < stop <= height:
            raise UserError(f"{path}: rows={self.rows} must be [start, stop) within the {height} detector rows")
        return start, stop

    def _centre(self, path: Path, looked: _Looked, scan: Scan, missing: list[str], make: Make) -> float:
        if self.centre is not None:
            if not 0 <= self.centre <= scan.width - 1:
                raise UserError(
                    f"{path}: centre={self.centre} lies outside the {scan.width} detector pixels, 0 to {scan.width - 1} "
                    "unbinned"
                )
            scan.notes.append(f"rotation centre {self.centre:g}, given")
            return self.centre
        says = "" if scan.centre is None else f"; the file says {scan.centre:g}"
        try:
            found, how = find_centre(looked.sinogram(), scan.degrees, lambda given: make("ct", **given), str(path))
        except UserError:
            if scan.centre is None:
                raise
            scan.notes.append(f"rotation centre {scan.centre:g}, from the file; the data do not tell it")
            return scan.centre
        scan.notes.append(f"rotation centre {found:.2f} found ({how}){says}; centre= fixes it")
        if scan.centre is None:
            missing.append(f"rotation centre: searched, {found:.2f}; --read centre={found:.2f} fixes it")
        return found

    def _fingerprint(self, path: Path, others: list[Path]) -> str:
        # Rows, thinning and binning change the items as much as another file would.
        options = hashlib.sha256(repr(sorted(vars(self).items())).encode()).hexdigest()
        linked = "".join(f"+{fingerprint(other)}" for other in others)
        return f"{fingerprint(path)}{linked}+options:{options[:16]}"


class _Looked:
    """Up to 16 detector rows spread over the selection: enough for the centre, the noise, and what is odd."""

    def __init__(self, y: LineIntegrals) -> None:
        self.y = y
        self.rows = np.unique(np.linspace(y.start, y.stop - 1, min(len(y), _LOOKED_AT)).round().astype(int)).tolist()
        parts = [y.corrected(row, row + 1) for row in self.rows]
        for row, part in zip(self.rows, parts, strict=True):
            if not np.isfinite(part.signal).all():
                raise UserError(
                    f"{y.data.path}: {y.data.name} has NaN or infinite values in detector row {row}; leave it out with "
                    "rows="
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
        if y.rings:
            lines.append(f"rings suppressed: sorted projections, median over {y.rings} detector pixels")
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


def check_fields(
    file: h5py.File, path: Path, data: Frames, fields: tuple[Frames, Frames], size: tuple[int, int]
) -> None:
    """Refuse flats and darks of another size than the projections."""
    for frames in fields:
        got = tuple(file[frames.name].shape[axis] for axis in frames.order[1:])
        if got != size:
            raise UserError(
                f"{path}: {frames.name} has frames of {got} (y, x), but {data.name} has {size}; write them in one size"
            )


def angles_in_degrees(found: h5py.Dataset, path: Path, name: str, kind: str, notes: list[str]) -> np.ndarray:
    """Angles of a dataset, in degrees, from its units; never invented.

    Args:
        found: the dataset.
        path, name: for messages.
        kind: what the file calls them, for notes.
        notes: told when the unit was taken from the range.

    Raises:
        UserError: not finite, constant, or in a unit that is unknown or cannot be told.
    """
    theta = read(found).astype(np.float64).ravel()
    if not np.isfinite(theta).all():
        raise UserError(f"{path}: {name} has NaN or infinite angles; write them again")
    if len(theta) > 1 and not np.ptp(theta) > 0:
        raise UserError(f"{path}: {name} is {theta[0]:g} for all {len(theta)} projections; write the angles again")
    unit = text(found.attrs.get("units", found.attrs.get("unit", ""))).strip().lower()
    if unit in ("degree", "degrees", "deg", "°"):
        return theta
    if unit in ("radian", "radians", "rad"):
        return np.rad2deg(theta)
    if unit:
        raise UserError(f"{path}: {name} has units={unit!r}; expected 'degrees' or 'radians'")
    span = np.ptp(theta)
    if not 6.5 < span <= 361:
        raise UserError(
            f"{path}: {name} ({theta.min():.4g} to {theta.max():.4g}) has no units; add units='degrees' or 'radians'"
        )
    notes.append(f"{kind} has no units; taken as degrees, as its range is {theta.min():.4g} to {theta.max():.4g}")
    return theta


def linked_files(found: h5py.Dataset, path: Path) -> list[Path]:
    """The other files in which a dataset's numbers lie, by an external link or as a virtual dataset."""
    files = {Path(found.file.filename)}
    if found.is_virtual:
        folder = Path(found.file.filename).parent
        files |= {folder / s.file_name for s in found.virtual_sources() if s.file_name != "."}
    return sorted(f for f in files if f.exists() and f.resolve() != path.resolve())


def option_hash(layout: Any) -> str:
    """A short hash of a layout's options, for the fingerprint."""
    return hashlib.sha256(repr(sorted(vars(layout).items())).encode()).hexdigest()[:16]
