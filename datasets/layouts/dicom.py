"""Layout "dicom": a series of DICOM files in a folder, or one file, as images in its rescaled units."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from invsolve.contracts.layout import Layout
from invsolve.contracts.measurement import Images, Rows
from invsolve.datasets.dicom.frames import SUFFIXES, Place, files_of, is_dicom, places_of
from invsolve.datasets.dicom.pixels import AIR, NOTHING, Pixels
from invsolve.datasets.dicom.stack import Stack, regular
from invsolve.datasets.extras import check_regular, need
from invsolve.datasets.hdf5.reading import fingerprint
from invsolve.datasets.hdf5.rows import OneByOne
from invsolve.datasets.hdf5.square_pixels import is_square, squared
from invsolve.datasets.tomography.projections import option_hash
from invsolve.errors import UserError

#: Files of a folder whose first bytes are looked at, beyond those whose name says what they are.
_LOOKED_AT = 5000


class DICOM(Layout):
    """Images of a DICOM series, one item a slice, sorted from the feet, the back or the left; CT in HU. Needs pydicom.

    Values are those after rescaling, modality tables and grey palettes. Slices look as in radiology, whatever their order
    in the file. Images in which the least value is white are inverted, unless the values have a physical unit.

    Args:
        series: SeriesInstanceUID, or part of the SeriesDescription, where a folder holds several.
        unit: of the values; default HU for CT, else what the file says.
        slices: [start, stop) of the sorted slices; default all.
        stack: number of the stack, where a series holds several: other sizes, orientations, pixel sizes or phases.
        padding: value of pixels outside the scanner's field of view; default -1024 in HU, else 0.
        square: make pixels that are not square so, as wide as their shorter side, by linear interpolation.
    """

    name = "dicom"

    def __init__(
        self,
        series: str | None = None,
        unit: str | None = None,
        slices: list[int] | None = None,
        stack: int | None = None,
        padding: float | None = None,
        square: bool = False,
    ) -> None:
        self.series, self.unit, self.slices = series, unit, slices
        self.stack, self.padding, self.square = stack, padding, square

    @classmethod
    def opens(cls, path: Path) -> bool:
        if not path.is_dir():
            return is_dicom(path)
        named = any(p.suffix.lower() in SUFFIXES and is_dicom(p) for p in files_of(path))
        return named or any(is_dicom(p) for p in islice(files_of(path), _LOOKED_AT))

    def images(self, path: Path) -> Images:
        path = Path(path)
        pydicom = need("pydicom", "dicom", path)
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
        check_regular(path)
        left_out: list[str] = []
        places = self._series(places_of(pydicom, path, left_out), path)
        for place in places:
            if int(place.head.get("SamplesPerPixel") or 1) != 1:
                raise UserError(f"{place.file}: is a colour image; expected one value a pixel")
        stack = regular(places, self.stack, path)
        count = len(stack.places)
        start, stop = (0, count) if self.slices is None else (self.slices if len(self.slices) == 2 else (-1, -1))
        if not 0 <= start < stop <= count:
            raise UserError(f"{path}: slices={self.slices} must be [start, stop) within the {count} slices")
        stack = stack.part(start, stop)
        first = stack.places[0]
        unit = self.unit if self.unit is not None else first.kind
        spacing, notes = _spacing(first, stack.turn.transpose), [*self._notes(first, stack), *left_out]
        rows: Rows = _rows(stack, Pixels(pydicom, self.padding))
        if self.square and spacing is not None:
            rows, spacing = squared(rows, spacing, notes)
        files = list(dict.fromkeys(p.file for p in stack.places))
        return Images(
            rows,
            unit=unit,
            spacing=spacing,
            spacing_unit="mm" if spacing and _has_size(first) else "",
            source=str(path),
            fingerprint="+".join(
                [*(fingerprint(f) for f in files[:64]), f"{len(files)}", f"options:{option_hash(self)}"]
            ),
            notes=notes,
            missing=[] if unit else ["unit of the values: --read unit=NAME"],
            volumes=stack.volumes,
        )

    def _notes(self, first: Place, stack: Stack) -> list[str]:
        head = first.head
        notes = [f"{len(stack.places)} slices, {head.get('Modality', '?')}", *stack.notes]
        if first.rescale is None and (head.get("RescaleSlope") is None) != (head.get("RescaleIntercept") is None):
            notes.append("a rescaling of slope or intercept alone is none; values are as stored")
        elif head.get("Modality") == "CT" and not first.kind and first.rescale is None:
            notes.append("no rescaling to HU in the file; values are as stored")
        if head.get("PhotometricInterpretation") == "MONOCHROME1":
            notes.append(
                f"MONOCHROME1 (the least value is white): not inverted, as the values are in {first.kind}"
                if first.kind
                else "MONOCHROME1 (the least value is white): inverted, so that larger is brighter"
            )
        value = AIR if self.padding is None and first.kind == "HU" else self.padding or 0.0
        if first.kind == "HU":
            notes.append(f"padding, and values below {NOTHING:g} HU, which nothing has, are set to {value:g}")
        elif head.get("PixelPaddingValue") is not None:
            notes.append(f"padding ({head.PixelPaddingValue} as stored) is set to {value:g}")
        if head.get("PixelSpacing") is None and first.spacing is None and head.get("ImagerPixelSpacing") is not None:
            notes.append("pixel sizes are those at the detector")
        if not _has_size(first) and (aspect := _spacing(first, stack.turn.transpose)):
            notes.append(
                f"pixels are not square, {aspect[0]:g} high to {aspect[1]:g} wide, of a size that is not said; --read "
                "square=true makes them so"
            )
        return notes

    def _series(self, places: list[Place], path: Path) -> list[Place]:
        groups: dict[str, list[Place]] = {}
        for place in places:
            groups.setdefault(str(place.head.get("SeriesInstanceUID", "")), []).append(place)
        listed = "; ".join(f"{u} ({p[0].head.get('SeriesDescription', '')}, {len(p)})" for u, p in groups.items())
        if self.series is not None:
            fitting = [
                p
                for u, p in groups.items()
                if self.series == u or self.series in str(p[0].head.get("SeriesDescription", ""))
            ]
            if len(fitting) != 1:
                raise UserError(f"{path}: {len(fitting)} series fit series={self.series!r}; there are {listed}")
            return fitting[0]
        if len(groups) > 1:
            raise UserError(f"{path}: holds {len(groups)} series; choose one with series=UID: {listed}")
        return places


def _rows(stack: Stack, pixels: Pixels) -> OneByOne:
    rows, columns = stack.places[0].size
    size = (columns, rows) if stack.turn.transpose else (rows, columns)

    def read(item: int) -> np.ndarray:
        return stack.turn(pixels(stack.places[item]))[None]

    return OneByOne(len(stack.places), (1, *size), read)


def _spacing(place: Place, transpose: bool) -> tuple[float, float] | None:
    spacing: Any = place.spacing or place.head.get("ImagerPixelSpacing")
    if not spacing:
        aspect = [float(v) for v in place.head.get("PixelAspectRatio") or ()]
        # A ratio that is no pair of lengths, or 1, says nothing.
        spacing = aspect if len(aspect) == 2 and min(aspect) > 0 and not is_square((aspect[0], aspect[1])) else None
    if not spacing:
        return None
    rows, columns = float(spacing[0]), float(spacing[1])
    return (columns, rows) if transpose else (rows, columns)


def _has_size(place: Place) -> bool:
    """Whether the spacing of pixels is a length, and no mere ratio."""
    return place.spacing is not None or place.head.get("ImagerPixelSpacing") is not None
