"""Pixels of DICOM frames: each decoded once, then rescaled, mapped and inverted by what the header says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from invsolve.datasets.dicom.frames import Place
from invsolve.errors import UserError

#: Files below this many bytes stay in memory while their frames are read; of larger ones each frame is fetched anew.
_MEMORY = 2**30
#: What padding becomes in CT: the lowest value of its usual scale, a little below air.
AIR = -1024.0
#: Nothing attenuates so little: scanners write such values outside their circular field of view.
NOTHING = -1500.0


class Pixels:
    """Values of frames, float64 (rows, columns); the file that was read last is kept.

    Args:
        pydicom: the package.
        padding: value of pixels that the file marks as padding.
    """

    def __init__(self, pydicom: Any, padding: float | None) -> None:
        self.pydicom, self.padding = pydicom, padding
        self._kept: tuple[Path, Any] | None = None

    def __call__(self, place: Place) -> np.ndarray:
        """One frame, as the file says what its numbers mean.

        Raises:
            UserError: it cannot be decoded, or is a colour image.
        """
        try:
            with warnings.catch_warnings():
                # Bytes beyond the last frame are no harm, and what is odd in headers was said when they were read.
                warnings.simplefilter("ignore", UserWarning)
                data = self._file(place.file)
                stored = self._frame(data, place)
                return self._values(data, place, stored)
        except UserError:
            raise
        except Exception as error:  # pydicom raises many kinds on damaged files
            raise UserError(
                f"{place.file}: its pixels cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
                "copy it again, or where it is compressed, install pylibjpeg or write it uncompressed"
            ) from None

    def _file(self, file: Path) -> Any:
        if self._kept is None or self._kept[0] != file:
            small = file.stat().st_size <= _MEMORY
            data = self.pydicom.dcmread(file, force=True, stop_before_pixels=not small)
            if not getattr(data.file_meta, "TransferSyntaxUID", None):
                implicit, little = data.original_encoding
                uid = self.pydicom.uid
                data.file_meta.TransferSyntaxUID = (
                    uid.ImplicitVRLittleEndian
                    if implicit
                    else uid.ExplicitVRLittleEndian
                    if little
                    else uid.ExplicitVRBigEndian
                )
            self._kept = (file, data)
        return self._kept[1]

    def _frame(self, data: Any, place: Place) -> np.ndarray:
        from pydicom.pixels import pixel_array

        small = any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
        return np.asarray(pixel_array(data if small else place.file, index=place.frame))

    def _values(self, data: Any, place: Place, stored: np.ndarray) -> np.ndarray:
        from pydicom.pixels import apply_color_lut, apply_modality_lut

        padded = _padded(place.head, stored)
        light = str(data.get("PhotometricInterpretation", ""))
        low, high = _stored_range(data)
        if light == "PALETTE COLOR":
            colours = apply_color_lut(stored, data)
            if colours.ndim != 3 or np.any(colours[..., :3] != colours[..., :1]):
                raise UserError(f"{place.file}: is a colour image (by its palette); expected one value a pixel")
            values = colours[..., 0].astype(np.float64)
        elif data.get("ModalityLUTSequence"):
            # The table's index must hold negative numbers and those beyond an 8-bit image's.
            values = apply_modality_lut(stored.astype(np.int32), data).astype(np.float64)
            low, high = 0.0, 2.0 ** int(data.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
        else:
            slope, shift = place.rescale or (1.0, 0.0)
            values = stored.astype(np.float64) * slope + shift
            low, high = sorted((low * slope + shift, high * slope + shift))
        if light == "MONOCHROME1" and not place.kind:
            values = low + high - values
        outside = (AIR if place.kind == "HU" else 0.0) if self.padding is None else self.padding
        if place.kind == "HU":
            padded = padded | (values < NOTHING)
        return np.where(padded, outside, values)


def _stored_range(head: Any) -> tuple[float, float]:
    bits = int(head.get("BitsStored") or head.get("BitsAllocated") or 8)
    if int(head.get("PixelRepresentation") or 0):
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _padded(head: Any, stored: np.ndarray) -> np.ndarray:
    """Where the stored values are padding."""
    value, limit = head.get("PixelPaddingValue"), head.get("PixelPaddingRangeLimit")
    if value is None or not np.issubdtype(stored.dtype, np.integer):
        return np.zeros(stored.shape, bool)
    ends = sorted(_signed(int(v), head) for v in (value, value if limit is None else limit))
    return (stored.astype(np.int64) >= ends[0]) & (stored <= ends[1])


def _signed(value: int, head: Any) -> int:
    """A padding value as the pixels are: writers often give -2000 as 63536, or the other way round."""
    whole = 2 ** int(head.get("BitsAllocated") or 16)
    if int(head.get("PixelRepresentation") or 0):
        return value - whole if value >= whole // 2 else value
    return value + whole if value < 0 else value
