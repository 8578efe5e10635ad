"""Scans of Nikon's X-Tek machines: the text file .xtekct beside the projections."""

from __future__ import annotations

import configparser
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from invsolve.errors import UserError
from invsolve.operators.ct import cil_convention

_LARGEST = 10**6


def read(path: Path, text: str) -> dict[str, Any]:
    """The arguments of `Geometry` for the projections as the machine stores them, rows from top to bottom.

    Conventions are those that CIL reads such files by: the object turns by `InitialAngle + k * AngularStep` clockwise, seen
    from above. Slices of the image run from top to bottom, as the rows of the detector. Files of older machines say the
    axis' place on the detector (`CentreOfRotationTop`, `Bottom`), of newer ones the object's (`ObjectOffsetX`, `ObjectRoll`).
    The image is centred on the axis; `OffsetX` and so on, of a reconstruction made on the machine, are left out.

    Raises:
        UserError: no such file, or an entry that is missing or no number.
    """
    entries = _entries(path, text)

    def number(name: str, default: float = math.nan) -> float:
        value = entries.get(name.lower())
        if value is None or not value.strip():
            if math.isnan(default):
                raise UserError(f"{path}: entry {name} is missing from [XTekCT]; export the scan again")
            return default
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not math.isfinite(found):
            raise UserError(f"{path}: {name}={value.strip()[:40]!r} is no number; export the scan again")
        return found

    def count(name: str, default: float = math.nan) -> int:
        found = number(name, default)
        if found != int(found) or not 0 < found <= _LARGEST:
            raise UserError(f"{path}: {name}={found:g} must be a whole number from 1 to {_LARGEST}")
        return int(found)

    source, detector = number("SrcToObject"), number("SrcToDetector")
    if not 0 < source <= detector:
        raise UserError(f"{path}: SrcToObject={source:g} and SrcToDetector={detector:g} must be above 0, in this order")
    columns, rows = count("DetectorPixelsX"), count("DetectorPixelsY")
    wide, high = number("DetectorPixelSizeX"), number("DetectorPixelSizeY")
    if wide <= 0 or (rows > 1 and high <= 0):
        raise UserError(f"{path}: DetectorPixelSizeX={wide:g} and DetectorPixelSizeY={high:g} must be above 0")
    top, bottom = number("CentreOfRotationTop", 0.0), number("CentreOfRotationBottom", 0.0)
    offset = number("ObjectOffsetX", (top + bottom) / 2 * source / detector)
    roll = number("ObjectRoll", -math.degrees(math.atan2(top - bottom, rows * high)) if rows * high else 0.0)
    tilt = number("ObjectTilt", 0.0)
    initial, step = number("InitialAngle", 0.0), number("AngularStep")
    angles = [180 - initial - step * k for k in range(count("Projections"))]
    deep = rows > 1
    side = number("VoxelSizeX", wide * source / detector)
    size = [count("VoxelsY", columns), count("VoxelsX", columns)]
    fields: dict[str, Any] = {
        "detectors": columns,
        "pixel_size": side,
        "unit": entries.get("units", "mm").strip() or "mm",
    }
    if deep:
        fields["detector_rows"] = rows
        fields["slice_thickness"] = number("VoxelSizeZ", side)
        size = [count("VoxelsZ", rows), *size]
    fields |= {"image_size": size, "beam": "cone" if deep else "fan"}
    if roll or tilt:
        turned = {"roll": roll, "tilt": tilt, "offset": offset, "source": source, "detector": detector}
        return fields | _by_vectors(turned, angles, (columns, rows), (wide, high))
    fields |= {"angles": angles, "source_distance": source, "detector_distance": detector - source}
    fields |= {"detector_spacing": wide, "source_offset": -offset, "centre": (columns - 1) / 2 + offset / wide}
    return fields | ({"row_spacing": high} if deep else {})


def _entries(path: Path, text: str) -> dict[str, str]:
    """The section [XTekCT], names in small letters."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=(), allow_no_value=True)
    try:
        parser.read_string(text.removeprefix("\ufeff"))
    except configparser.Error as error:
        raise UserError(
            f"{path}: is no .xtekct file ({str(error).splitlines()[0][:80]}); export the scan again"
        ) from None
    found = next((name for name in parser.sections() if name.lower() == "xtekct"), None)
    if found is None:
        raise UserError(f"{path}: has no section [XTekCT]; give the .xtekct file of the scan")
    return {key: value or "" for key, value in parser[found].items()}


def _by_vectors(
    placed: dict[str, float], angles: list[float], pixels: tuple[int, int], spacing: tuple[float, float]
) -> dict[str, Any]:
    """The views around an axis that is not upright, through CIL's way to say them."""
    tilt, roll = -math.radians(placed["tilt"]), math.radians(placed["roll"])
    upright = (math.sin(roll), -math.sin(tilt) * math.cos(roll), math.cos(tilt) * math.cos(roll))
    system = SimpleNamespace(
        detector=SimpleNamespace(position=(0, placed["detector"], 0), direction_x=(1, 0, 0), direction_y=(0, 0, 1)),
        rotation_axis=SimpleNamespace(position=(-placed["offset"], placed["source"], 0), direction=upright),
        source=SimpleNamespace(position=(0, 0, 0)),
    )
    config = SimpleNamespace(
        system=system,
        panel=SimpleNamespace(num_pixels=pixels, pixel_size=spacing, origin="top-right"),
        angles=SimpleNamespace(angle_data=angles, initial_angle=0.0, angle_unit="degree"),
    )
    image = SimpleNamespace(
        voxel_num_x=1, voxel_num_y=1, voxel_num_z=1, voxel_size_x=1.0, voxel_size_y=1.0, voxel_size_z=1.0
    )
    found = cil_convention.read(SimpleNamespace(geom_type="cone", config=config), image)
    # There arrays are CIL's, here slices run down and rows away from the source: half a turn around CIL's y, unmirrored.
    return {"vectors": -found["vectors"]}
