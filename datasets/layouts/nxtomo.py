"""Layout "nxtomo": tomography in NeXus files, found by NX_class and definition; flats and darks told by image_key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invsolve.datasets.hdf5 import dataset, doubles, read, shown, text
from invsolve.datasets.tomography.counts import Frames
from invsolve.datasets.tomography.frame_checks import Monitor
from invsolve.datasets.tomography.projections import Projections, Scan, angles_in_degrees
from invsolve.errors import UserError

_PROJECTION, _FLAT, _DARK = 0, 1, 2
_PREFIXES = {"": 1e3, "centi": 10.0, "milli": 1.0, "micro": 1e-3, "nano": 1e-6}
_IN_MM = {
    "m": 1e3,
    "cm": 10.0,
    "mm": 1.0,
    "um": 1e-3,
    "µm": 1e-3,
    "μm": 1e-3,
    "micron": 1e-3,
    "nm": 1e-6,
    "angstrom": 1e-7,
    **{f"{prefix}{name}": size for prefix, size in _PREFIXES.items() for name in ("meter", "metre")},
    "inch": 25.4,
    "in": 25.4,
}
# How deep below the root an entry, and below an entry a detector, is looked for.
_DEPTH = 4


class NXtomo(Projections):
    """Parallel-beam projections of a NeXus file; y (rows, angles, detectors) is -log of the transmission.

    Groups are found by their NX_class and the entry's definition, not by name. Frames with image_key 0 are projections, 1
    flats, 2 darks, others are left out; so are the angles of what is no projection. Noise, centre and units are as in
    layout "dxchange".
    """

    name = "nxtomo"

    @classmethod
    def recognises(cls, file: Any) -> bool:
        return any(_definition(group) == "NXtomo" for group in _of_class(file, "NXentry", "NXsubentry"))

    def find(self, file: h5py.File, path: Path) -> Scan:
        entry = self._entry(file, path)
        detector = _detector(entry, path)
        notes: list[str] = []
        name = f"{detector.name}/data"
        data = dataset(file, name, real=True)
        if data.ndim != 3 or not data.size:
            raise UserError(f"{path}: {name} {data.shape}: expected (frames, rows, columns)")
        count, height, width = data.shape
        key = _image_key(file, path, f"{detector.name}/image_key", count)
        key, moved = _without_alignment(file, detector, path, key)
        if moved:
            notes.append(f"{moved} alignment frames (image_key_control) are no projections, and are left out")
        frames = {kind: tuple(np.flatnonzero(key == kind).tolist()) for kind in (_PROJECTION, _FLAT, _DARK)}
        if not frames[_PROJECTION]:
            raise UserError(f"{path}: {detector.name}/image_key marks no frame as a projection (0); write it again")
        fields: list[Frames | None] = []
        for kind, what in ((_FLAT, "flats (image_key 1)"), (_DARK, "darks (image_key 2)")):
            if self.normalised:
                fields.append(None)
                continue
            if not frames[kind]:
                raise UserError(
                    f"{path}: {detector.name} has no {what}, needed to turn {name} into attenuation; add them, or say "
                    "normalised=true if the data are transmissions already"
                )
            fields.append(Frames(path, name, (0, 1, 2), frames[kind]))
        if left_out := count - moved - sum(len(f) for f in frames.values()):
            notes.append(f"{left_out} of {count} frames are neither projection, flat nor dark, and are left out")
        degrees = _angles(entry, path, name, count, frames[_PROJECTION], notes, self.angle_unit)
        missing: list[str] = []
        return Scan(
            data=Frames(path, name, (0, 1, 2), frames[_PROJECTION]),
            white=fields[0],
            dark=fields[1],
            degrees=degrees,
            height=height,
            width=width,
            centre=_stored_centre(detector, width, missing if self.centre is None else []),
            pixel=_pixel(detector, missing if self.pixel_size is None else []),
            monitor=self._monitor(entry, path, count, frames, missing),
            notes=notes,
            missing=missing,
        )

    def _monitor(
        self, entry: h5py.Group, path: Path, count: int, frames: dict[int, tuple[int, ...]], missing: list[str]
    ) -> Monitor | None:
        """The beam frame by frame: from the entry's control or another NXmonitor, or the dataset that is asked for.

        Raises:
            UserError: the one that is asked for does not fit the frames.
        """
        if self.monitor == "off" or self.normalised:
            return None
        asked = self.monitor != "auto"
        if asked:
            names = [self.monitor]
        else:
            groups = list(_of_class(entry, "NXmonitor"))
            control = _member(entry, "control")
            groups = [*([control] if isinstance(control, h5py.Group) else []), *groups]
            names = [f"{g.name}/data" for g in groups if isinstance(_member(g, "data"), h5py.Dataset)][:1]
        for name in names:
            values = doubles(read(dataset(entry.file, name, real=True))).ravel()
            if len(values) == count:
                return Monitor(name, values[list(frames[_PROJECTION])], values[list(frames[_FLAT])])
            line = f"{name} has {len(values)} values for {count} frames, flats and darks among them"
            if asked:
                raise UserError(f"{path}: {line}; expected one a frame")
            if len(values) > 1:
                missing.append(f"beam monitor: {line}, and is not used")
        return None

    def _entry(self, file: h5py.File, path: Path) -> h5py.Group:
        entries = [g for g in _of_class(file, "NXentry", "NXsubentry") if _definition(g) == "NXtomo"]
        names = ", ".join(g.name for g in entries)
        if self.entry is not None:
            picked = [g for g in entries if g.name.strip("/") == self.entry.strip("/")]
            if not picked:
                raise UserError(f"{path}: has no NXtomo entry {self.entry!r}; it has {names or 'none'}")
            return picked[0]
        if not entries:
            raise UserError(
                f"{path}: has no group with NX_class NXentry and definition NXtomo; if it is one without them, add them"
            )
        if len(entries) > 1:
            raise UserError(f"{path}: holds {len(entries)} NXtomo entries ({names}); choose one with entry=NAME")
        return entries[0]


def _of_class(
    group: Any, *classes: str, depth: int = _DEPTH, seen: dict[tuple[int, int], int] | None = None
) -> Iterator[h5py.Group]:
    """Groups below (not beyond another match) whose NX_class is one of these; links that cannot be followed are passed over.

    Args:
        group: where to begin.
        classes: values of NX_class.
        depth: levels to go down.
        seen: levels below each group that were looked at: links to one of them would lead round and round.
    """
    seen = {} if seen is None else seen
    for name in group:
        try:
            child = group[name]
            if not isinstance(child, h5py.Group):
                continue
            info = h5py.h5o.get_info(child.id)
            matches = text(child.attrs.get("NX_class", "")) in classes
        except (KeyError, OSError, RuntimeError, UserError):
            continue
        before = seen.get((info.fileno, info.addr), 0)
        if before >= (1 if matches else depth):
            continue
        seen[info.fileno, info.addr] = depth
        if matches:
            yield child
            if "NXsubentry" in classes:
                yield from _of_class(child, "NXsubentry", depth=1, seen=seen)
        elif depth > 1:
            yield from _of_class(child, *classes, depth=depth - 1, seen=seen)


def _definition(group: h5py.Group) -> str:
    try:
        definition = group["definition"]
        return text(definition[()]).strip() if isinstance(definition, h5py.Dataset) else ""
    except (KeyError, OSError, RuntimeError):
        return ""


def _detector(entry: h5py.Group, path: Path) -> h5py.Group:
    detectors = [g for g in _of_class(entry, "NXdetector") if "image_key" in g]
    if len(detectors) != 1:
        got = f"{len(detectors)} of them ({', '.join(g.name for g in detectors)})" if detectors else "none"
        raise UserError(
            f"{path}: {entry.name} must hold one NXdetector with an image_key, it has {got}; write it again"
        )
    return detectors[0]


def _image_key(file: h5py.File, path: Path, name: str, count: int) -> np.ndarray:
    key = read(dataset(file, name, real=True)).ravel()
    if len(key) != count:
        raise UserError(f"{path}: {name} has {len(key)} entries for {count} frames; write it again")
    whole = np.round(key)
    if not np.array_equal(whole, key) or not (np.abs(whole) < 2**31).all():
        raise UserError(f"{path}: {name} holds values that are no whole numbers; expected 0, 1, 2 or 3")
    return whole.astype(np.int64)


def _angles(
    entry: h5py.Group, path: Path, data: str, count: int, projections: tuple[int, ...], notes: list[str], unit: str
) -> np.ndarray:
    """Angles of the projections, in degrees; those of flats and darks mean nothing."""
    names = [f"{g.name}/rotation_angle" for g in _of_class(entry, "NXsample") if "rotation_angle" in g]
    names += [f"{g.name}/rotation_angle" for g in _of_class(entry, "NXdata") if "rotation_angle" in g]
    if not names:
        raise UserError(
            f"{path}: {entry.name} has no NXsample with a rotation_angle, and angles are never invented; add it with "
            "units='degree'"
        )
    stored = dataset(entry.file, names[0], real=True)
    if stored.size not in (count, len(projections)):
        raise UserError(
            f"{path}: {names[0]} has {stored.size} angles, but {data} has {count} frames, {len(projections)} of them "
            "projections; write it again"
        )
    which = projections if stored.size == count else None
    return angles_in_degrees(stored, path, names[0], "rotation_angle", notes, unit, which)


def _member(group: h5py.Group, name: str) -> Any:
    """What a group holds under a name; None where there is nothing, or a broken link."""
    try:
        return group.get(name)
    except (KeyError, OSError, RuntimeError):
        return None


def _without_alignment(file: h5py.File, detector: h5py.Group, path: Path, key: np.ndarray) -> tuple[np.ndarray, int]:
    """The image key without the frames that image_key_control marks as alignment (-1), and how many those are.

    They were taken after the scan, to see whether the sample had moved: image_key calls them projections.
    """
    if _member(detector, "image_key_control") is None:
        return key, 0
    control = _image_key(file, path, f"{detector.name}/image_key_control", len(key))
    moved = (control < 0) & (key == _PROJECTION)
    return np.where(moved, -1, key), int(moved.sum())


def _number(group: h5py.Group, name: str, missing: list[str]) -> float | None:
    """The only number of a dataset; None where there is none, which `missing` says where something else is there."""
    dset = _member(group, name)
    if not isinstance(dset, h5py.Dataset):
        return None
    if dset.size != 1 or dset.dtype.kind not in "fiu":
        missing.append(f"{name}: {dset.shape} of {shown(str(dset.dtype))} is not the number that was expected")
        return None
    return float(read(dset).ravel()[0])


def _stored_centre(detector: h5py.Group, width: int, missing: list[str]) -> float | None:
    """NeXus gives the axis relative to the detector's middle, in pixels."""
    position = _number(detector, "x_rotation_axis_pixel_position", missing)
    if position is None:
        return None
    centre = (width - 1) / 2 + position
    return centre if 0 <= centre <= width - 1 else None


def _pixel(detector: h5py.Group, missing: list[str]) -> tuple[float, str] | None:
    size = _number(detector, "x_pixel_size", missing)
    if size is None:
        return None
    # NeXus takes metres where nothing is said.
    unit = text(detector["x_pixel_size"].attrs.get("units", "m")).strip()
    factor = _IN_MM.get(unit) or _IN_MM.get(unit.lower().removesuffix("s"))
    if not (np.isfinite(size) and size > 0):
        missing.append(f"pixel size: x_pixel_size is {size:g}, which is none")
        return None
    if factor is None:
        missing.append(
            f"pixel size: x_pixel_size is {size:g} {shown(unit)!r}, which is no length unit that is known here"
        )
        return None
    return size * factor, "mm"
