"""Geometries of tomographic scans: parallel, fan and cone beams in 2-D and 3-D, in the words of other packages, and as text."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from invsolve.errors import UserError, suggestion
from invsolve.operators.ct import astra_convention, cil_convention, nikon, rtk
from invsolve.operators.ct.scan import Scan

#: Of files that `Geometry.from_file` reads.
SUFFIXES = (".json", ".toml", ".xtekct", ".xml")
_LARGEST_FILE = 64 * 10**6


class Geometry(Scan):
    """A tomographic scan. Two that are equal measure the same.

    x runs to the right, y up, z with the slices; the origin is on the rotation axis, which is z. At angle a the source is at
    source_distance * (sin a, -cos a), and the detector's columns run along (cos a, sin a), its rows along z. Rays of a
    parallel beam are x cos a + y sin a = s. `docs/tomography.md` has pictures of it.

    Args:
        beam: "parallel" (image of 2 or 3 axes), "fan" (2) or "cone" (3).
        image_size: N for N x N pixels, [rows, columns], or [slices, rows, columns].
        angles: degrees, one a view, or a count: equally spaced on [0, 180) for parallel beams, on [0, 360) for others.
        detectors: detector pixels a view, or a row of it; default covers the circle around the image.
        detector_spacing: from one to the next, in a length of your choice (along the arc, if curved); default the image's
            pixel, as it appears on the detector.
        pixel_size: side of an image pixel, in the same length.
        centre: detector index (0-based, may be fractional) onto which the rotation axis projects, seen at right angles to the
            detector; default the middle, (detectors - 1) / 2.
        source_distance: from source to axis; infinite for parallel beams.
        detector_distance: from axis to detector.
        source_offset: of the source along the detector's columns.
        curved: whether the detector is an arc around the source.
        detector_rows, row_spacing, row_centre: the same for rows; default those of the columns.
        slice_thickness: side of a voxel along z; default pixel_size.
        roll: degrees by which the detector is turned in its plane, anticlockwise.
        tilt: degrees by which source and detector are lifted out of the plane across the axis (laminography).
        feed: length by which source and detector climb along z in a turn (helix); they pass z = 0 at the middle angle.
        image_offset: where the middle of the image is, (x, y) or (x, y, z).
        unit: name of the length, such as "mm".
        vectors: instead of all that places source and detector, one row a view, as ASTRA has it: source (ray, for parallel
            beams), middle of the detector, step from one column to the next, and in 3-D from one row to the next;
            (views, 6) or (views, 12), in the axes above.

    Raises:
        UserError: what cannot be such a scan: sizes that are not positive, a source inside the image, a fan of volumes.
    """

    @classmethod
    def from_astra(cls, projection: Mapping[str, Any], volume: Mapping[str, Any], unit: str = "") -> Geometry:
        """The geometry of ASTRA's dictionaries: an array that ASTRA projects is projected alike.

        Args:
            projection: as `astra.create_proj_geom` makes it: parallel, fanflat, parallel3d, cone, or one of them with `_vec`.
            volume: as `astra.create_vol_geom` makes it, with square pixels.
            unit: of its lengths.

        Raises:
            UserError: another type, an entry that is missing, or pixels that are not square.
        """
        return cls(**astra_convention.read(projection, volume), unit=unit)

    def to_astra(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """ASTRA's projection and volume geometry, as dictionaries that its functions take.

        Measurements of ASTRA in 3-D are (detector rows, views, detectors).

        Raises:
            UserError: a curved detector, which ASTRA does not know.
        """
        if self.curved:
            raise UserError("geometry: ASTRA has no curved detectors; resample the measurement onto a flat one")
        views = self.views()
        # A step of one pixel; centred, as ASTRA wants it.
        steps = (views.a[1:] - views.a[:-1]).mean() if self.detectors > 1 else self.detector_spacing
        rises = (views.m[1:] - views.m[:-1]).mean() if self.detector_rows > 1 else self.row_spacing
        middle = views.middle + views.a.mean() * views.u + views.m.mean() * views.v
        parts = [views.source, middle, steps * views.u, rises * views.v]
        table = np.concatenate(parts[: 2 + self.dimensions - 1], 1)
        sides = (self.columns * self.pixel_size, self.rows * self.pixel_size, self.slices * self.slice_thickness)
        return astra_convention.write(
            self.beam, table, self.detectors, self.detector_rows, self.image_size, sides, self.image_offset
        )

    @classmethod
    def from_cil(cls, acquisition: Any, image: Any) -> Geometry:
        """The geometry of CIL's `AcquisitionGeometry` and `ImageGeometry`, or of objects with their attributes.

        Arrays keep their meaning: rows of CIL's images, which go up, are the rows here.

        Raises:
            UserError: pixels that are not square, or a kind that is not known.
        """
        return cls(**cil_convention.read(acquisition, image))

    def to_cil(self) -> dict[str, Any]:
        """What CIL's constructors take: {"create": name, "system": {...}, "angles": {...}, "panel": {...}, "image": {...}}.

        With it, `getattr(AcquisitionGeometry, d["create"])(**d["system"]).set_angles(**d["angles"]).set_panel(**d["panel"])`
        and `ImageGeometry(**d["image"])` are the same scan.

        Raises:
            UserError: vectors, a helix, a curved detector: what turns in no circle, or CIL has no name for.
        """
        if self.vectors or self.feed or self.curved:
            raise UserError("geometry: CIL describes circular scans with flat detectors; use to_astra for this one")
        one = replace(self, angles=(0.0,)).views()
        return cil_convention.write(self, one)

    def to_text(self) -> str:
        """JSON, which `ct` takes as `geometry=` and `Geometry.from_text` reads."""
        values = {key: value for key, value in asdict(self).items() if value not in ((), math.inf)}
        return json.dumps(values)

    @classmethod
    def from_text(cls, text: str) -> Geometry:
        """A geometry from JSON of its arguments, or from the path of a file that `from_file` reads.

        Raises:
            UserError: no such file, no JSON, or an argument that is not known.
        """
        if text.lower().endswith(SUFFIXES):
            return cls.from_file(text)
        return cls.from_table(_table("geometry", text), "geometry")

    def to_file(self, path: str | Path) -> None:
        """Write the arguments, as JSON or TOML by the file's suffix.

        Raises:
            UserError: another suffix.
        """
        path = Path(path)
        text = self.to_text()
        if path.suffix.lower() == ".toml":
            # Numbers, strings and arrays are written alike in both.
            text = "".join(
                f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in json.loads(text).items()
            )
        elif path.suffix.lower() != ".json":
            raise UserError(f"{path}: geometries are written as .json or .toml; give one of these suffixes")
        path.write_text(text, encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | Path, **more: Any) -> Geometry:
        """A geometry from a file: .json and .toml as `to_file` writes them, Nikon's .xtekct, RTK's .xml.

        Nikon: the projections as the machine stores them; slices of the image run down, as the detector's rows. RTK
        (ThreeDCircularProjectionGeometry): the file says neither image nor detector, so give `image_size`, `detectors`,
        `detector_rows` and `detector_spacing`; slices run along RTK's y, which is the axis, rows along z, columns along x.

        Args:
            path: of the file, at most 64 MB; other files that it names are not read.
            more: arguments of `Geometry` that the file leaves out, or that are to replace what it says.

        Raises:
            UserError: no such file, one that is none of these, or too large; an argument that is not known.
        """
        path = Path(path)
        suffix, content = path.suffix.lower(), _content(path)
        if suffix == ".xml":
            return cls.from_table(rtk.read(path, content, more), str(path))
        try:
            # Nikon writes comments in the code page of the machine.
            text = content.decode("utf-8", errors="replace" if suffix == ".xtekct" else "strict")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is no text ({error}); give a file that Geometry.to_file wrote") from None
        values = nikon.read(path, text) if suffix == ".xtekct" else _table(str(path), text, suffix == ".toml")
        return cls.from_table(values | more, str(path))

    @classmethod
    def from_table(cls, values: Mapping[str, Any], where: str = "geometry") -> Geometry:
        """A geometry from its arguments.

        Args:
            values: of the arguments, by name.
            where: they are from, for messages.

        Raises:
            UserError: an argument that is not known or not of its kind, or what the geometry itself refuses.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"{where}: unknown entry {key!r}.{suggestion(key, known)}")
        if "image_size" not in values:
            raise UserError(f"{where}: image_size is missing; give N, [rows, columns] or [slices, rows, columns]")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}: {str(error).removeprefix('geometry: ')}") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: holds something that is no number where one belongs ({error})") from None

    def __str__(self) -> str:
        """One line, for tables and messages."""
        unit = f" {self.unit}" if self.unit else ""
        size = " x ".join(map(str, self.image_size))
        detector = f"{self.detector_rows} x {self.detectors}" if self.dimensions == 3 else str(self.detectors)
        parts = [f"{self.beam} beam{' on an arc' if self.curved else ''}: {size} pixels of {self.pixel_size:g}{unit}"]
        span = f"{min(self.angles):g} to {max(self.angles):g} degrees"
        parts.append(f"{len(self.angles)} views" + (" by vectors" if self.vectors else f" from {span}"))
        parts.append(f"{detector} detectors of {self.detector_spacing:g}{unit}")
        if not self.vectors:
            parts.append(f"axis at {self.centre:g}")
            if self.beam != "parallel":
                parts.append(
                    f"source {self.source_distance:g}{unit} and detector {self.detector_distance:g}{unit} away"
                )
            parts += [f"{name} {getattr(self, name):g}" for name in ("roll", "tilt", "feed") if getattr(self, name)]
        return ", ".join(parts)

    def plot(self, ax: Any = None, views: Sequence[int] = (0,)) -> Any:
        """Draw image, sources and detectors, seen along the axis; returns matplotlib's axes.

        Args:
            ax: where to draw; default a new figure.
            views: whose detector and outermost rays are drawn.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        all_views, (x, y) = self.views(), self.image_offset[:2]
        width, height = self.columns * self.pixel_size, self.rows * self.pixel_size
        ax.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, alpha=0.3))
        ax.plot(0, 0, "k+")
        for view in views:
            place = all_views.pixels(view)[0, :, :2]
            source = all_views.source[view, :2]
            ax.plot(*place.T, lw=3)
            for end in (place[0], place[-1]):
                start = end - 4 * self.radius * source if self.beam == "parallel" else source
                ax.plot(*np.stack([start, end]).T, "0.5", lw=0.8)
        if self.beam != "parallel":
            ax.plot(*all_views.source[:, :2].T, ".", ms=3)
        ax.set_aspect("equal")
        ax.set_xlabel(f"x{f' / {self.unit}' if self.unit else ''}")
        ax.set_ylabel(f"y{f' / {self.unit}' if self.unit else ''}")
        return ax


def _content(path: Path) -> bytes:
    """What is in a regular file of a kind that is known, and not too large for a geometry."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: geometries are read from {', '.join(SUFFIXES)}; give one of these files")
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(f"{path}: has {path.stat().st_size} bytes, too many for a geometry; check the path")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); check the path") from None


def _table(where: str, text: str, toml: bool = False) -> dict[str, Any]:
    kind = "TOML" if toml else "JSON"
    try:
        values = tomllib.loads(text) if toml else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: is no {kind} ({error}); write it with Geometry.to_{'file' if toml else 'text'}()"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f'{where}: must be a JSON object such as {{"beam": "fan", ...}}, got {type(values).__name__}')
    return values
