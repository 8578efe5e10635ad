"""Geometries as ASTRA's dictionaries have them.

In ASTRA's 2-D images row 0 is at the largest y, as here; in its 3-D volumes at the smallest. Arrays keep their meaning, so
y changes its sign in 3-D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invsolve.errors import UserError

_TYPES = ("parallel", "fanflat", "parallel3d", "cone")
_BEAMS = {"parallel": "parallel", "fanflat": "fan", "parallel3d": "parallel", "cone": "cone"}


def read(projection: Mapping[str, Any], volume: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Geometry`; see `Geometry.from_astra`."""
    try:
        return _read(projection, volume)
    except KeyError as missing:
        raise UserError(f"ASTRA geometry: entry {missing} is missing; make it with astra.create_proj_geom") from None


def _read(projection: Mapping[str, Any], volume: Mapping[str, Any]) -> dict[str, Any]:
    given = str(projection["type"])
    kind, by_vectors = given.removesuffix("_vec"), given.endswith("_vec")
    if kind not in _TYPES:
        known = ", ".join(_TYPES)
        raise UserError(f"ASTRA geometry: type {given!r} is not known here; known are {known}, and those with _vec")
    deep = kind in ("parallel3d", "cone")
    table = np.array(projection["Vectors"], dtype=np.float64) if by_vectors else _vectors(kind, projection)
    fields = _image(volume, deep) | {"beam": _BEAMS[kind]}
    if deep:
        table[:, 1::3] *= -1
        rows, columns = int(projection["DetectorRowCount"]), int(projection["DetectorColCount"])
        return fields | {"detector_rows": rows, "detectors": columns, "vectors": table}
    fields["detectors"] = int(projection["DetectorCount"])
    if by_vectors:
        return fields | {"vectors": table}
    fields |= {
        "angles": np.rad2deg(projection["ProjectionAngles"]),
        "detector_spacing": float(projection["DetectorWidth"]),
    }
    if kind == "fanflat":
        fields["source_distance"] = float(projection["DistanceOriginSource"])
        fields["detector_distance"] = float(projection["DistanceOriginDetector"])
    return fields


def _vectors(kind: str, projection: Mapping[str, Any]) -> np.ndarray:
    """Of a circular scan, as the documentation of ASTRA states them; none for 2-D, where angles say the same."""
    if kind not in ("parallel3d", "cone"):
        return np.empty((0, 6))
    angle = np.asarray(projection["ProjectionAngles"], dtype=np.float64)
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    way = np.stack([np.sin(angle), -np.cos(angle), zero], 1)
    source, middle = way, 0 * way
    if kind == "cone":
        source = way * float(projection["DistanceOriginSource"])
        middle = -way * float(projection["DistanceOriginDetector"])
    u = np.stack([np.cos(angle), np.sin(angle), zero], 1) * float(projection["DetectorSpacingX"])
    v = np.stack([zero, zero, one], 1) * float(projection["DetectorSpacingY"])
    return np.concatenate([source, middle, u, v], 1)


def _image(volume: Mapping[str, Any], deep: bool) -> dict[str, Any]:
    rows, columns = int(volume["GridRowCount"]), int(volume["GridColCount"])
    window = volume.get("option", {})
    counts, axes = [columns, rows], "XY"
    if deep:
        counts, axes = [*counts, int(volume["GridSliceCount"])], "XYZ"
    ends = [
        (float(window.get(f"WindowMin{axis}", -count / 2)), float(window.get(f"WindowMax{axis}", count / 2)))
        for axis, count in zip(axes, counts, strict=True)
    ]
    sides = [(high - low) / count for (low, high), count in zip(ends, counts, strict=True)]
    if abs(sides[0] - sides[1]) > 1e-9 * abs(sides[0]):
        raise UserError(f"ASTRA geometry: pixels must be square, got {sides[0]:g} x {sides[1]:g}; change the window")
    middle = [(low + high) / 2 for low, high in ends]
    if not deep:
        return {"image_size": (rows, columns), "pixel_size": sides[0], "image_offset": middle}
    middle[1] *= -1
    size = (counts[2], rows, columns)
    return {"image_size": size, "pixel_size": sides[0], "slice_thickness": sides[2], "image_offset": middle}


def write(
    beam: str,
    vectors: np.ndarray,
    detectors: int,
    detector_rows: int,
    image_size: tuple[int, ...],
    sides: Sequence[float],
    offset: Sequence[float],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """ASTRA's projection and volume geometry; see `Geometry.to_astra`.

    Args:
        beam: of the geometry.
        vectors: (views, 6) or (views, 12), in the axes of the geometry.
        detectors, detector_rows, image_size: counts.
        sides: of the image, along x, y, z.
        offset: middle of the image, x, y (, z).
    """
    deep, middle = len(image_size) == 3, list(offset)
    if deep:
        vectors = vectors.copy()
        vectors[:, 1::3] *= -1
        middle[1] *= -1
    ends = {
        f"Window{end}{axis}": middle[k] + sign * sides[k] / 2
        for k, axis in enumerate("XYZ"[: len(image_size)])
        for end, sign in (("Min", -1), ("Max", 1))
    }
    volume: dict[str, Any] = {"GridRowCount": image_size[-2], "GridColCount": image_size[-1], "option": ends}
    if deep:
        volume["GridSliceCount"] = image_size[0]
        kind = {"parallel": "parallel3d_vec", "cone": "cone_vec"}[beam]
        counts = {"DetectorRowCount": detector_rows, "DetectorColCount": detectors}
    else:
        kind = {"parallel": "parallel_vec", "fan": "fanflat_vec"}[beam]
        counts = {"DetectorCount": detectors}
    return {"type": kind, "Vectors": vectors, **counts}, volume
