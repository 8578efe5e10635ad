"""Scans as RTK writes them: the XML of its ThreeDCircularProjectionGeometry."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from invsolve.errors import UserError

#: Parameters of a projection, and what they are where the file does not say.
DEFAULTS = {
    "SourceToIsocenterDistance": 0.0,
    "SourceToDetectorDistance": 0.0,
    "GantryAngle": 0.0,
    "OutOfPlaneAngle": 0.0,
    "InPlaneAngle": 0.0,
    "SourceOffsetX": 0.0,
    "SourceOffsetY": 0.0,
    "ProjectionOffsetX": 0.0,
    "ProjectionOffsetY": 0.0,
    "RadiusCylindricalDetector": 0.0,
}
_ROOT = "RTKThreeDCircularGeometry"
_MOST = 100_000


def read(path: Path, text: bytes, more: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Geometry`; see `Geometry.from_file`.

    RTK's axis of rotation is y: slices of the image are along its y, rows along its z, columns along its x. The detector is
    not in such files, so `more` says it; its middle is RTK's physical origin of the projections, as RTK makes them.

    Raises:
        UserError: no such file, a detector that is not given, or a cylinder that is not around the source.
    """
    rows = _projections(path, text)
    missing = [name for name in ("image_size", "detectors", "detector_rows", "detector_spacing") if name not in more]
    if missing:
        raise UserError(
            f"{path}: RTK's files do not say image and detector: Geometry.from_file({path.name!r}, {missing[0]}=...) also needs "
            f"{', '.join(missing)}"
        )
    table = {name: np.array([row[name] for row in rows]) for name in DEFAULTS}
    radius, reach = table["RadiusCylindricalDetector"][0], table["SourceToDetectorDistance"]
    constant = [name for name in DEFAULTS if name != "GantryAngle" and np.ptp(table[name]) == 0]
    upright = not any(table[name].any() for name in ("OutOfPlaneAngle", "InPlaneAngle", "SourceOffsetY"))
    if (reach == 0).any() and (reach != 0).any():
        raise UserError(f"{path}: SourceToDetectorDistance is 0 (parallel) in some projections only; write it again")
    parallel = not reach.any()
    fields: dict[str, Any] = {"beam": "parallel" if parallel else "cone"}
    if len(constant) == len(DEFAULTS) - 1 and upright:
        spacing, high = float(more["detector_spacing"]), float(more.get("row_spacing") or more["detector_spacing"])
        offset_x, offset_y = table["ProjectionOffsetX"][0], table["ProjectionOffsetY"][0]
        fields |= {"angles": table["GantryAngle"].tolist()}
        fields |= {"centre": (more["detectors"] - 1) / 2 - offset_x / spacing}
        fields |= {"row_centre": (more["detector_rows"] - 1) / 2 - offset_y / high}
        if not parallel:
            source = float(table["SourceToIsocenterDistance"][0])
            fields |= {"source_distance": source, "detector_distance": float(reach[0]) - source}
            fields |= {"source_offset": float(table["SourceOffsetX"][0])}
        if radius:
            if abs(radius - reach[0]) > 1e-6 * reach[0] or offset_x:
                raise UserError(
                    f"{path}: only detectors on an arc around the source are known, got a radius of {radius:g}"
                )
            fields["curved"] = True
        return fields | more
    if radius:
        raise UserError(
            f"{path}: an arc that moves from view to view is not known here; resample it onto a flat detector"
        )
    fields["vectors"] = _vectors(table, more, parallel)
    return fields | {key: value for key, value in more.items() if key not in ("detector_spacing", "row_spacing")}


def _vectors(table: dict[str, np.ndarray], more: dict[str, Any], parallel: bool) -> np.ndarray:
    spacing, high = float(more["detector_spacing"]), float(more.get("row_spacing") or more["detector_spacing"])
    out = []
    for k in range(len(table["GantryAngle"])):
        value = {name: float(column[k]) for name, column in table.items()}
        gantry, out_of_plane, in_plane = (
            math.radians(value[name]) for name in ("GantryAngle", "OutOfPlaneAngle", "InPlaneAngle")
        )
        # The inverse of RTK's rotation: from the detector's axes to the fixed ones.
        turn = _turn("y", gantry) @ _turn("x", out_of_plane) @ _turn("z", in_plane)
        source = (value["SourceOffsetX"], value["SourceOffsetY"], value["SourceToIsocenterDistance"])
        depth = value["SourceToIsocenterDistance"] - value["SourceToDetectorDistance"]
        middle = (value["ProjectionOffsetX"], value["ProjectionOffsetY"], 0.0 if parallel else depth)
        parts = [(0, 0, -1) if parallel else source, middle, (spacing, 0, 0), (0, high, 0)]
        fixed = [turn @ np.array(part, dtype=np.float64) for part in parts]
        out.append(np.concatenate([(x, -z, y) for x, y, z in fixed]))
    return np.array(out)


def _turn(axis: str, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array(
        {
            "x": [[1, 0, 0], [0, cos, -sin], [0, sin, cos]],
            "y": [[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]],
            "z": [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]],
        }[axis]
    )


def _projections(path: Path, text: bytes) -> list[dict[str, float]]:
    """The parameters of each projection; what stands before the first holds for all."""
    common = dict(DEFAULTS)
    rows: list[dict[str, float]] = []
    stack: list[str] = []
    said: list[str] = []

    def check_type(name: str, system: str | None, public: str | None, inside: int) -> None:
        # RTK names a type. One that declares entities, or could elsewhere, which would then be left out without a word, is none.
        if system or public or inside:
            raise UserError(
                f"{path}: has a document type that declares XML entities, which are not followed; take it out"
            )

    def begin(name: str, attributes: dict[str, str]) -> None:
        if not stack and name != _ROOT:
            raise UserError(f"{path}: is XML of {name[:40]!r}, expected {_ROOT}; give the file that RTK writes")
        stack.append(name)
        said.clear()
        if len(stack) > 3:
            raise UserError(f"{path}: {name[:40]!r} lies too deep for a geometry of RTK; write it again")
        if name == "Projection":
            if len(rows) == _MOST:
                raise UserError(f"{path}: has more than {_MOST} projections; split it")
            rows.append(dict(common))

    def end(name: str) -> None:
        stack.pop()
        if name not in DEFAULTS:
            return
        value = "".join(said).strip()
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not math.isfinite(found):
            raise UserError(f"{path}: {name} is {value[:40]!r}, expected a number; write it again")
        target = rows[-1] if stack[-1:] == ["Projection"] else common
        target[name] = found

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = check_type
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = said.append
    try:
        parser.Parse(text, True)
    # An encoding that is not known is a LookupError, one that reads something else a ValueError.
    except (expat.ExpatError, LookupError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: is no XML ({error}); write it again") from None
    if not rows:
        raise UserError(f"{path}: has no Projection; give the file that RTK writes")
    return rows
