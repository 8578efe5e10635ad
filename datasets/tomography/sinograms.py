"""Sinograms in plain arrays: their angles by count, range or list; counts to line integrals by flat field and air."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from invsolve.datasets.hdf5.arrays import open_array
from invsolve.datasets.hdf5.reading import doubles
from invsolve.datasets.tomography.counts import FLOOR
from invsolve.errors import UserError


def degrees_of(angles: int | str | Tensor | None, count: int, path: Path, unit: str | None = None) -> np.ndarray:
    """One angle a projection, in degrees.

    Args:
        angles: a count, on [0, 180); "START:STOP" in degrees without STOP; or each.
        count: projections.
        path: the scan, for messages.
        unit: of angles given one by one: degrees or radians; None refuses those that look like radians.

    Raises:
        UserError: not given, of another number, not finite, or perhaps in radians.
    """
    if angles is None:
        raise UserError(
            f"{path}: angles are never invented: angles={count} spaces them equally on [0, 180) degrees, angles=0:360 on "
            "[0, 360), or give each one in degrees, as a list or a .npy file"
        )
    if isinstance(angles, str):
        first, colon, last = angles.partition(":")
        try:
            start, stop = float(first), float(last if colon else "")
        except ValueError:
            raise UserError(
                f"{path}: angles={angles!r}: write START:STOP in degrees, such as 0:360, a count, or a .npy file"
            ) from None
        degrees = start + np.arange(count) * (stop - start) / count
        if start == stop:
            raise UserError(
                f"{path}: angles={angles!r} is one angle for {count} projections; give START:STOP in degrees"
            )
    elif isinstance(angles, int):
        degrees = np.arange(angles) * 180 / max(angles, 1)
    else:
        degrees = angles.double().flatten().numpy()
        if unit == "radians":
            degrees = np.rad2deg(degrees)
        elif unit is None and len(degrees) >= 8 and 0 < np.ptp(degrees) < 6.5:
            raise UserError(
                f"{path}: the angles span {np.ptp(degrees):.4g}, as radians do; say angle_unit=radians, or "
                "angle_unit=degrees if that is all that was turned"
            )
    if len(degrees) != count or not np.isfinite(degrees).all():
        raise UserError(f"{path}: {len(degrees)} angles are given for {count} projections; give one finite angle each")
    return degrees


class Beam:
    """What the detector sees without the object, from files, from columns that see air, or both.

    Args:
        path: the scan, for messages.
        flat, dark: files of frames (columns,), (rows, columns) or (frames, ..., columns); None are not given.
        air: so many outermost columns at each side see air in every projection; 0 for none.
        rows, columns: of the detector.
    """

    def __init__(
        self, path: Path, flat: str | None, dark: str | None, air: int, rows: int, columns: int, notes: list[str]
    ) -> None:
        self.air, self.path = air, path
        self.dark = np.zeros((rows, columns)) if dark is None else _frames(path, "dark", dark, rows, columns, notes)
        self.flat = None if flat is None else _frames(path, "flat", flat, rows, columns, notes) - self.dark
        if not 0 <= 2 * air < columns:
            raise UserError(f"{path}: air={air} must leave some of the {columns} detector columns between both sides")
        if self.flat is not None:
            _mend(self.flat, path, notes)
        if air:
            notes.append(f"each projection is divided by the line between its outer {air} columns at both sides")

    def transmission(self, values: np.ndarray, row: int) -> np.ndarray:
        """Transmissions (angles, columns) of one detector row, from its counts or transmissions."""
        values = values - self.dark[row]
        if self.flat is not None:
            values = values / self.flat[row]
        if self.air:
            left, right = (part.mean(1, keepdims=True) for part in (values[:, : self.air], values[:, -self.air :]))
            if not ((left > 0) & (right > 0)).all():
                raise UserError(
                    f"{self.path}: air={self.air}: the outer columns see no beam in some projections; lower it"
                )
            middle = (self.air - 1) / 2
            share = (np.arange(values.shape[1]) - middle) / (values.shape[1] - 1 - 2 * middle)
            values = values / (left + (right - left) * share)
        return values


def _frames(path: Path, name: str, file: str, rows: int, columns: int, notes: list[str]) -> np.ndarray:
    """The median over the frames of a file: (rows, columns)."""
    if not Path(file).exists():
        raise UserError(f"{path}: {name}={file}: no such file")
    source = open_array(Path(file), None)
    values = doubles(source.read((slice(None),) * len(source.shape)))
    size = (rows, columns) if rows > 1 and values.ndim > 1 else (columns,)
    if values.shape[-len(size) :] != size or not np.isfinite(values).all():
        raise UserError(
            f"{path}: {name}={file} holds {values.shape}, expected finite frames (..., {', '.join(map(str, size))}), as "
            "the scan's detector"
        )
    frames = values.reshape(-1, *size)
    notes.append(f"{name} field: median of {len(frames)} frames of {Path(file).name}")
    return np.broadcast_to(np.median(frames, axis=0), (rows, columns)).copy()


def _mend(flat: np.ndarray, path: Path, notes: list[str]) -> None:
    """Fill pixels without beam in the flat field from their neighbours along the columns, in place."""
    dead = ~(flat > 0)
    if dead.all(1).any():
        raise UserError(
            f"{path}: the flat field is not brighter than the dark field in a whole detector row; check both"
        )
    columns = np.arange(flat.shape[1])
    for row in np.flatnonzero(dead.any(1)):
        flat[row, dead[row]] = np.interp(columns[dead[row]], columns[~dead[row]], flat[row, ~dead[row]])
    if dead.any():
        notes.append(f"{dead.sum()} detector pixels without beam in the flat field, filled from their neighbours")


def line_integrals(transmissions: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(transmissions, FLOOR))


def reader(
    read: Callable[[int], np.ndarray], values: str, beam: Beam | None, row_of: Callable[[int], int]
) -> Callable[[int], np.ndarray]:
    """A function from the item to its line integrals (angles, columns), float64.

    Args:
        read: item -> stored numbers (angles, columns).
        values: integrals, transmissions or counts.
        beam: what they are divided by.
        row_of: item -> detector row.
    """

    def integrals(item: int) -> np.ndarray:
        stored = doubles(read(item))
        if beam is not None:
            stored = beam.transmission(stored, row_of(item))
        return stored if values == "integrals" else line_integrals(stored)

    return integrals
