"""What parallel-beam layouts share: from detector frames to a Measurement; each layout says only where things are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from invsolve.contracts.layout import Layout, Make, make_for
from invsolve.contracts.measurement import Measurement, Rows
from invsolve.contracts.noise import Gaussian, Noise
from invsolve.datasets.hdf5 import doubles, fingerprint, open_readonly, read, shown, text
from invsolve.datasets.tomography.centre import find_centre
from invsolve.datasets.tomography.counts import Frames, LineIntegrals, Treatment
from invsolve.datasets.tomography.frame_checks import Monitor
from invsolve.datasets.tomography.looking import Looked, cut_off, picked_frames
from invsolve.datasets.tomography.raw_counts import RawCounts
from invsolve.errors import UserError

# Off-centre by this part of the detector, a full turn shows more than the detector is wide.
_OFF_CENTRE = 0.1
# A full turn in radians is 6.28; so few degrees, in more than a few angles, make no tomography.
_SPAN_OF_RADIANS = 6.5
_FEW_ANGLES = 8


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
        monitor: what the beam was frame by frame, if the file says.
        notes: one line each on what was done.
        missing: one line each on what the file does not say.
    """

    data: Frames
    white: Frames | None
    dark: Frames | None
    degrees: np.ndarray
    height: int
    width: int
    centre: float | None = None
    pixel: tuple[float, str] | None = None
    monitor: Monitor | None = None
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


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
        flats: Literal["robust", "mean"] = "robust",
        bad_frames: bool = True,
        zingers: bool = True,
        dead_pixels: bool = True,
        monitor: str = "auto",
        air: int = 0,
        angle_unit: Literal["file", "degrees", "radians"] = "file",
        counts: bool = False,
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
            flats: "robust" leaves outliers (zingers, a frame without beam) out of the mean of flats and darks, "mean" takes
                all.
            bad_frames: leave out projections, flats and darks that have no beam, or one that they should not have.
            zingers: replace single values that no neighbouring projection shows, too bright or too dark.
            dead_pixels: fill detector pixels that flats or projections show to be weak, stuck or flickering; those without
                any beam are always filled.
            monitor: normalise by the beam's measured intensity: "auto" takes the file's where the data agree, "off" none, or
                the name of a dataset with one number per frame.
            air: normalise each projection by so many columns at both edges of the detector, which see no object.
            angle_unit: unit of the angles, where the file's is missing or wrong.
            counts: hand over the counts, with noise "transmission" that knows the flat field, instead of line integrals: for
                few photons and opaque objects. Strategies for Gaussian noise do not take them.
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
        for name, choice, choices in (
            ("flats", flats, ("robust", "mean")),
            ("angle_unit", angle_unit, ("file", "degrees", "radians")),
        ):
            if choice not in choices:
                raise UserError(f"layout {self.name!r}: {name} must be one of {', '.join(choices)}, got {choice!r}")
        if air < 0:
            raise UserError(f"layout {self.name!r}: air must be 0 or a number of detector columns, got {air}")
        self.flats, self.bad_frames, self.zingers, self.dead_pixels = flats, bad_frames, zingers, dead_pixels
        self.monitor, self.air, self.angle_unit, self.counts = monitor, air, angle_unit, counts
        for name, set_ in (("normalised", normalised), ("rings", rings > 0), ("air", air > 0)):
            if counts and set_:
                raise UserError(
                    f"layout {self.name!r}: counts=true keeps the counts as they are, which {name}= changes; leave one out"
                )

    def find(self, file: h5py.File, path: Path) -> Scan:
        """Say where the file keeps what; without flats and darks when `self.normalised`.

        Raises:
            UserError: something is missing or contradictory.
        """
        raise NotImplementedError

    # What is not finite is looked for in the outcome, and named with its row.
    @np.errstate(all="ignore")
    def open(self, path: Path, make: Make) -> Measurement:
        path = Path(path)
        make = make_for(path, make)
        with open_readonly(path) as file:
            scan = self.find(file, path)
        notes, degrees, missing = scan.notes, scan.degrees, scan.missing
        start, stop = self._rows(path, scan.height)
        if scan.width < 2 * self.bin:
            raise UserError(f"{path}: bin={self.bin} leaves fewer than 2 of {scan.width} detector pixels; lower it")
        if 2 * self.air >= scan.width:
            raise UserError(
                f"{path}: air={self.air} at both edges is all of the {scan.width} detector pixels; lower it"
            )
        looked = Looked(
            scan.data,
            scan.white,
            scan.dark,
            (start, stop),
            degrees,
            Treatment(self.flats, self.zingers, self.dead_pixels, self.air),
            scan.monitor,
            self.monitor not in ("auto", "off"),
            self.bad_frames,
        )
        picked = picked_frames(len(degrees), self.thin, looked.good)
        if not picked:
            raise UserError(f"{path}: thin={self.thin} leaves no projection with beam; lower it")
        y = LineIntegrals(
            scan.data, looked.white, looked.dark, start, stop, picked, self.bin, self.rings, looked.treatment
        )
        angles = degrees[picked]
        span = f"{angles.min():.4g} to {angles.max():.4g} degrees"
        notes.append(
            f"{len(angles)} of {len(degrees)} angles kept ({span}), detector rows {start} to {stop - 1} as items"
        )
        if scan.width % self.bin:
            notes.append(f"bin={self.bin} drops the last {scan.width % self.bin} of {scan.width} detector pixels")
        looked.rows_of(y)
        rows, noise = self._rows_and_noise(path, y, looked, notes, missing, make)
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
            "image_size": self.image_size or self._image_size(looked, centre, scan.width, notes),
            "angles": angles.tolist(),
            "detectors": count,
            "centre": (centre + 0.5) / self.bin - 0.5,
            "pixel_size": size * self.bin,
        }
        return Measurement(
            y=rows,
            operator=make("ct", **parameters),
            noise=noise,
            unit=f"1/{unit}",
            source=str(path),
            fingerprint=self._fingerprint(path),
            notes=notes,
            missing=missing,
            axes="row angle detector",
        )

    def _rows_and_noise(
        self, path: Path, y: LineIntegrals, looked: Looked, notes: list[str], missing: list[str], make: Make
    ) -> tuple[Rows, Noise | None]:
        """Line integrals or counts, and how they scatter."""
        sigma = looked.sigma()
        notes += looked.notes
        if not self.counts:
            if sigma:
                notes.append(f"noise sigma {sigma:.4g}, from the scatter of the flats")
            else:
                notes.append("noise not known from the file: give it")
                missing.append("noise level: too few flats to tell; give --noise gaussian:SIGMA")
            return y, Gaussian(sigma) if sigma else None
        if looked.white is None or looked.dark is None:
            raise UserError(f"{path}: counts=true needs flats and darks, and the file has transmissions; leave it out")
        raw = RawCounts(y, looked.scatter)
        if looked.scatter is None:
            missing.append(
                "photons per count: too few flats to tell, a count is taken for a photon; counts=false does without"
            )
        notes.append(
            f"counts kept: {raw.gain:.4g} photons per count, open beam {float(np.median(raw.i0)):.4g} counts (median), "
            f"scatter of the darks as a background of {raw.background:.3g} counts"
        )
        return raw, make_for(path, make).noise("transmission", **raw.parameters())

    def _rows(self, path: Path, height: int) -> tuple[int, int]:
        start, stop = (0, height) if self.rows is None else (self.rows if len(self.rows) == 2 else (-1, -1))
        if not 0 <= start < stop <= height:
            raise UserError(f"{path}: rows={self.rows} must be [start, stop) within the {height} detector rows")
        return start, stop

    def _centre(self, path: Path, looked: Looked, scan: Scan, missing: list[str], make: Make) -> float:
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
            centre, how = find_centre(
                looked.sinogram(),
                scan.degrees[looked.good],
                lambda parameters: make("ct", **parameters),
                str(path),
            )
        except UserError:
            if scan.centre is None:
                raise
            scan.notes.append(f"rotation centre {scan.centre:g}, from the file; the data do not tell it")
            return scan.centre
        scan.notes.append(f"rotation centre {centre:.2f} found ({how}){says}; centre= fixes it")
        if scan.centre is None:
            missing.append(f"rotation centre: searched, {centre:.2f}; --read centre={centre:.2f} fixes it")
        return centre

    def _image_size(self, looked: Looked, centre: float, width: int, notes: list[str]) -> int:
        """As many pixels as detector pixels, or as the scan shows in all: a full turn around an axis near the edge shows more."""
        count, reach = width // self.bin, max(centre, width - 1 - centre)
        away = abs(centre - (width - 1) / 2) / width
        if away > _OFF_CENTRE and full_turn(looked.degrees[looked.good]):
            size = int(np.ceil((2 * reach + 1) / self.bin))
            notes.append(
                f"half acquisition: the axis lies {away:.0%} of the detector off its middle and the scan is a full turn; "
                f"images of {size} pixels cover what it shows, image_size={count} the detector's width"
            )
            return size
        if share := cut_off(looked.sinogram()):
            notes.append(
                f"the object reaches beyond the detector: its edges see {share:.0%} of the strongest ray. Back-projection "
                "goes on with a disc there, values near the rim are unsure; image_size=N covers more than the detector"
            )
        return count

    def _fingerprint(self, path: Path) -> str:
        # Rows, thinning and binning change the items as much as another file would.
        options = hashlib.sha256(repr(sorted(vars(self).items())).encode()).hexdigest()
        return f"{fingerprint(path)}+options:{options[:16]}"


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


def full_turn(degrees: np.ndarray) -> bool:
    """Whether the angles go all around, without a gap of more than a few steps."""
    ordered = np.unique(np.mod(degrees, 360).round(6))
    if len(ordered) < 4:
        return False
    gaps = np.diff(np.concatenate([ordered, ordered[:1] + 360]))
    return bool(gaps.max() < min(max(5 * np.median(gaps), 4.0), 30.0))


def angles_in_degrees(
    dset: h5py.Dataset,
    path: Path,
    name: str,
    kind: str,
    notes: list[str],
    angle_unit: str = "file",
    which: Sequence[int] | None = None,
) -> np.ndarray:
    """Angles of a dataset, in degrees, from its units; never invented.

    Args:
        dset: the dataset.
        path, name: for messages.
        kind: what the file calls them, for notes.
        notes: told when the unit was taken from the range, or from the user.
        angle_unit: the unit as the user gives it; "file" for the file's own.
        which: positions that are projections, of which the unit is judged; default all.

    Raises:
        UserError: not finite, constant, or in a unit that is unknown, cannot be told, or contradicts the values.
    """
    every = doubles(read(dset)).ravel()
    theta = every if which is None else every[list(which)]
    if not np.isfinite(theta).all():
        raise UserError(f"{path}: {name} has NaN or infinite angles; write them again")
    if len(theta) > 1 and not np.ptp(theta) > 0:
        raise UserError(f"{path}: {name} is {theta[0]:g} for all {len(theta)} projections; write the angles again")
    span, unit = np.ptp(theta), text(dset.attrs.get("units", dset.attrs.get("unit", ""))).strip().lower()
    if angle_unit != "file":
        notes.append(f"{kind} is in {angle_unit}, as given{f' (the file says {shown(unit)})' if unit else ''}")
        return theta if angle_unit == "degrees" else np.rad2deg(theta)
    if unit in ("degree", "degrees", "deg", "°"):
        if len(theta) >= _FEW_ANGLES and span < _SPAN_OF_RADIANS:
            raise UserError(
                f"{path}: {name} has units={unit!r}, but spans {span:.4g} ({theta.min():.4g} to {theta.max():.4g}), as radians "
                "do; say angle_unit=radians, or angle_unit=degrees if that is all the stage turned"
            )
        return theta
    if unit in ("radian", "radians", "rad"):
        if len(theta) >= _FEW_ANGLES and any(
            abs(span + span / (len(theta) - 1) * k - t) < 1e-3 * t for k in (0, 1) for t in (180, 360)
        ):
            raise UserError(
                f"{path}: {name} has units={unit!r}, but goes from {theta.min():.4g} to {theta.max():.4g}, as degrees do; say "
                "angle_unit=degrees, or angle_unit=radians if the stage turned that far"
            )
        return np.rad2deg(theta)
    if unit:
        raise UserError(
            f"{path}: {name} has units={shown(unit)!r}; expected 'degrees' or 'radians', or say angle_unit=degrees"
        )
    if not _SPAN_OF_RADIANS < span <= 361:
        raise UserError(
            f"{path}: {name} ({theta.min():.4g} to {theta.max():.4g}) has no units; add units='degrees' or 'radians', or say "
            "angle_unit=degrees"
        )
    notes.append(f"{kind} has no units; taken as degrees, as its range is {theta.min():.4g} to {theta.max():.4g}")
    return theta


def option_hash(layout: Any) -> str:
    """A short hash of a layout's options, for the fingerprint."""
    return hashlib.sha256(repr(sorted(vars(layout).items())).encode()).hexdigest()[:16]
