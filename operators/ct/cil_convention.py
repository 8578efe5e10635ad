"""Geometries as the Core Imaging Library (CIL) has them.

Its scans are stated for one position of the object, which then turns anticlockwise by each angle, around an axis that may be
off the origin. Rows of its images go up, along y, so that y changes its sign.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from invsolve.errors import UserError


def read(acquisition: Any, image: Any) -> dict[str, Any]:
    """The arguments of `Geometry`; see `Geometry.from_cil`."""
    kind = str(acquisition.geom_type)
    if kind not in ("parallel", "cone"):
        raise UserError(f"CIL geometry: type {kind!r} is not known here; known are parallel and cone")
    system, panel, angles = acquisition.config.system, acquisition.config.panel, acquisition.config.angles
    deep = len(np.ravel(system.detector.position)) == 3
    parts = _aligned(kind, system, deep)
    columns, rows = (int(n) for n in np.broadcast_to(panel.num_pixels, 2))
    wide, high = (float(n) for n in np.broadcast_to(panel.pixel_size, 2))
    origin = str(panel.origin)
    steps = [parts["u"] * (-wide if "right" in origin else wide)]
    if deep:
        steps.append(parts["v"] * (-high if "top" in origin else high))
    in_radians = "radian" in str(angles.angle_unit)
    turned = np.asarray(angles.angle_data, dtype=np.float64).ravel() + float(angles.initial_angle)
    vectors = []
    for angle in turned if in_radians else np.deg2rad(turned):
        # The object turns one way, so source and detector the other.
        turn = np.eye(3 if deep else 2)
        turn[:2, :2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        vectors.append(np.concatenate([turn @ part for part in (parts["source"], parts["middle"], *steps)]))
    table = np.stack(vectors)
    table[:, 1 :: 3 if deep else 2] *= -1
    fields: dict[str, Any] = {"beam": "parallel" if kind == "parallel" else "cone" if deep else "fan", "vectors": table}
    fields |= {"detectors": columns, "unit": _unit(acquisition)} | _image(image, deep)
    return fields | ({"detector_rows": rows} if deep else {})


def _unit(acquisition: Any) -> str:
    unit = str(getattr(acquisition.config.system, "units", ""))
    return "" if unit == "units distance" else unit


def _aligned(kind: str, system: Any, deep: bool) -> dict[str, np.ndarray]:
    """Source or ray, middle and axes of the detector, with the rotation axis as z and the rays along y."""

    def vector(value: Any) -> np.ndarray:
        return np.asarray(value, dtype=np.float64).ravel()

    axis, detector = vector(system.rotation_axis.position), system.detector
    middle, u = vector(detector.position) - axis, vector(detector.direction_x)
    source = vector(system.ray.direction) if kind == "parallel" else vector(system.source.position) - axis
    parts = {"source": source, "middle": middle, "u": u}
    if deep:
        parts["v"] = vector(detector.direction_y)
        upright = _rotation_to_z(vector(system.rotation_axis.direction))
        parts = {name: upright @ part for name, part in parts.items()}
    way = parts["source"] if kind == "parallel" else parts["middle"] - parts["source"]
    length = np.hypot(*way[:2])
    turn = np.eye(len(way))
    turn[:2, :2] = np.array([[way[1], -way[0]], [way[0], way[1]]]) / length
    return {name: turn @ part for name, part in parts.items()}


def _rotation_to_z(direction: np.ndarray) -> np.ndarray:
    """The shortest rotation that takes a direction to z."""
    x, y, z = direction / np.linalg.norm(direction)
    if z < -1 + 1e-12:
        return np.diag([1.0, -1.0, -1.0])
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + z)


def _image(image: Any, deep: bool) -> dict[str, Any]:
    side_x, side_y = float(image.voxel_size_x), float(image.voxel_size_y)
    if abs(side_x - side_y) > 1e-9 * abs(side_x):
        raise UserError(f"CIL geometry: pixels must be square, got {side_x:g} x {side_y:g}; change the ImageGeometry")
    middle = [float(getattr(image, "center_x", 0)), -float(getattr(image, "center_y", 0))]
    size: tuple[int, ...] = (int(image.voxel_num_y), int(image.voxel_num_x))
    if not deep:
        return {"image_size": size, "pixel_size": side_x, "image_offset": middle}
    middle.append(float(getattr(image, "center_z", 0)))
    thick = float(image.voxel_size_z)
    size = (int(image.voxel_num_z), *size)
    return {"image_size": size, "pixel_size": side_x, "slice_thickness": thick, "image_offset": middle}


def write(geometry: Any, view: Any) -> dict[str, Any]:
    """What CIL's constructors take; see `Geometry.to_cil`.

    Args:
        geometry: a circular scan.
        view: its view at 0 degrees, as `Geometry.views` gives it.
    """
    deep = geometry.dimensions == 3
    middle = view.middle[0] + view.a.mean() * view.u[0] + view.m.mean() * view.v[0]

    def mirrored(vector: np.ndarray) -> list[float]:
        return [float(value) * (-1 if k == 1 else 1) for k, value in enumerate(vector)]

    # Mirrored, source and detector turn clockwise as angles grow, which is the object turning anticlockwise. The rays then run
    # along -y; half a turn makes them run along y, and the columns against x, which is an origin at the right.
    half = np.diag([-1.0, -1.0, 1.0][: geometry.dimensions])

    def placed(vector: np.ndarray) -> list[float]:
        return (half @ np.asarray(mirrored(vector))).tolist()

    parallel = geometry.beam == "parallel"
    system: dict[str, Any] = {"detector_position": placed(middle), "detector_direction_x": placed(-view.u[0])}
    system["ray_direction" if parallel else "source_position"] = source = placed(view.source[0])
    # CIL turns all of it until the middle of the detector is behind the source along y.
    x, y = source[:2] if parallel else np.subtract(system["detector_position"], source)[:2]
    start = -180 + math.degrees(math.atan2(x, y))
    if deep:
        system["detector_direction_y"] = placed(view.v[0])
    if geometry.unit:
        system["units"] = geometry.unit
    shape, spacing = [geometry.detectors], [geometry.detector_spacing]
    if deep:
        shape, spacing = [*shape, geometry.detector_rows], [*spacing, geometry.row_spacing]
    x, y = geometry.image_offset[:2]
    image = {"voxel_num_x": geometry.columns, "voxel_num_y": geometry.rows, "center_x": x, "center_y": -y}
    image |= {"voxel_size_x": geometry.pixel_size, "voxel_size_y": geometry.pixel_size}
    if deep:
        image |= {
            "voxel_num_z": geometry.slices,
            "voxel_size_z": geometry.slice_thickness,
            "center_z": geometry.image_offset[2],
        }
    return {
        "create": f"create_{'Parallel' if parallel else 'Cone'}{'3D' if deep else '2D'}",
        "system": system,
        "angles": {"angles": list(geometry.angles), "initial_angle": start, "angle_unit": "degree"},
        "panel": {"num_pixels": shape, "pixel_size": spacing, "origin": "bottom-right"},
        "image": image,
    }
