"""Layout "dicom": a series of DICOM files in a folder, or one file, as images in its rescaled units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from invsolve.contracts.layout import Layout
from invsolve.contracts.measurement import Images
from invsolve.datasets.extras import need
from invsolve.datasets.hdf5 import OneByOne, fingerprint
from invsolve.datasets.tomography.projections import option_hash
from invsolve.errors import UserError

_HEADER = (
    "SeriesInstanceUID",
    "SeriesDescription",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "InstanceNumber",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
)


class DICOM(Layout):
    """Images of a DICOM series, one item a slice, sorted along the slice normal; CT in HU. Needs pydicom.

    Args:
        series: SeriesInstanceUID, or part of the SeriesDescription, where a folder holds several.
        unit: of the values; default HU for CT, else what the file says.
        slices: [start, stop) of the sorted slices; default all.
    """

    name = "dicom"

    def __init__(self, series: str | None = None, unit: str | None = None, slices: list[int] | None = None) -> None:
        self.series, self.unit, self.slices = series, unit, slices

    @classmethod
    def opens(cls, path: Path) -> bool:
        return _is_dicom(path) if path.is_file() else any(_is_dicom(p) for p in _files(path)[:20])

    def images(self, path: Path) -> Images:
        path = Path(path)
        pydicom = need("pydicom", "dicom", path)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
        places = self._series(_places(pydicom, path), path)
        sizes = {(p.head.Rows, p.head.Columns) for p in places}
        if len(sizes) > 1:
            raise UserError(f"{path}: its slices have {len(sizes)} sizes {sorted(sizes)}; choose a series with series=")
        places, notes = _sorted(places)
        start, stop = (0, len(places)) if self.slices is None else (self.slices if len(self.slices) == 2 else (-1, -1))
        if not 0 <= start < stop <= len(places):
            raise UserError(f"{path}: slices={self.slices} must be [start, stop) within the {len(places)} slices")
        places = places[start:stop]
        first = places[0].head
        said = getattr(first, "RescaleType", None) or ("HU" if getattr(first, "Modality", "") == "CT" else "")
        spacing = getattr(first, "PixelSpacing", None)
        unit = self.unit if self.unit is not None else str(said)
        return Images(
            OneByOne(len(places), (1, *sizes.pop()), lambda i: _pixels(pydicom, places[i])),
            unit=unit,
            spacing=(float(spacing[0]), float(spacing[1])) if spacing else None,
            spacing_unit="mm" if spacing else "",
            source=str(path),
            fingerprint="+".join([*(fingerprint(p.file) for p in places[:64]), f"options:{option_hash(self)}"]),
            notes=[f"{len(places)} slices, {getattr(first, 'Modality', '?')}", *notes],
            missing=[] if unit else ["unit of the values: --read unit=NAME"],
        )

    def _series(self, places: list[_Place], path: Path) -> list[_Place]:
        known: dict[str, list[_Place]] = {}
        for place in places:
            known.setdefault(str(getattr(place.head, "SeriesInstanceUID", "")), []).append(place)
        listed = "; ".join(f"{u} ({getattr(p[0].head, 'SeriesDescription', '')}, {len(p)})" for u, p in known.items())
        if self.series is not None:
            fitting = [
                p
                for u, p in known.items()
                if self.series == u or self.series in str(getattr(p[0].head, "SeriesDescription", ""))
            ]
            if len(fitting) != 1:
                raise UserError(f"{path}: {len(fitting)} series fit series={self.series!r}; there are {listed}")
            return fitting[0]
        if len(known) > 1:
            raise UserError(f"{path}: holds {len(known)} series; choose one with series=UID: {listed}")
        return places


@dataclass(frozen=True)
class _Place:
    """One slice: its file, its frame in it, and the header."""

    file: Path
    frame: int
    head: Any


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.is_file() else []
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _places(pydicom: Any, path: Path) -> list[_Place]:
    found = []
    for file in _files(path):
        if not _is_dicom(file):
            continue
        try:
            head = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_HEADER))
        except Exception as error:  # pydicom raises many kinds on damaged files
            raise UserError(
                f"{file}: cannot be read as DICOM ({type(error).__name__}: {' '.join(str(error).split())}); copy it again"
            ) from None
        if not hasattr(head, "Rows") or not hasattr(head, "Columns"):
            continue  # DICOMDIR, reports and the like
        if int(getattr(head, "SamplesPerPixel", 1)) != 1:
            raise UserError(f"{file}: is a colour image; expected one value a pixel")
        found += [_Place(file, k, head) for k in range(int(getattr(head, "NumberOfFrames", 1) or 1))]
    if not found:
        raise UserError(f"{path}: holds no DICOM image; give a DICOM file or a folder of them")
    return found


def _sorted(places: list[_Place]) -> tuple[list[_Place], list[str]]:
    """Along the slice normal; by instance number where positions are missing."""
    try:
        across = np.asarray(places[0].head.ImageOrientationPatient, float)
        normal = np.cross(across[:3], across[3:])
        where = [float(np.dot(normal, np.asarray(p.head.ImagePositionPatient, float))) for p in places]
        return [places[k] for k in np.lexsort(([p.frame for p in places], where))], []
    except (AttributeError, TypeError, ValueError):
        order = sorted(places, key=lambda p: (int(getattr(p.head, "InstanceNumber", 0) or 0), str(p.file), p.frame))
        return order, ["slices have no positions; sorted by instance number"] if len(places) > 1 else []


def _pixels(pydicom: Any, place: _Place) -> np.ndarray:
    try:
        pixels = np.asarray(pydicom.dcmread(place.file).pixel_array, np.float32)
    except Exception as error:
        raise UserError(
            f"{place.file}: its pixels cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]}); copy it "
            "again, or where it is compressed, install pylibjpeg or write it uncompressed"
        ) from None
    image = pixels[place.frame] if pixels.ndim == 3 else pixels
    slope, shift = (getattr(place.head, n, None) for n in ("RescaleSlope", "RescaleIntercept"))
    return (image * float(1 if slope is None else slope) + float(0 if shift is None else shift))[None]
