"""Frames of DICOM files: which files are DICOM, and what their headers say of each frame, classic or enhanced."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from invsolve.datasets.extras import head
from invsolve.datasets.hdf5.links import shown
from invsolve.errors import UserError

#: Read of each header; pixels, and what only they need (palettes, lookup tables), wait until a frame is wanted.
_TAGS = (
    *("SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "InstanceNumber"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "Units", "DoseGridScaling", "DoseUnits"),
    *("GridFrameOffsetVector", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "EchoNumbers", "DiffusionBValue"),
    *(
        "DiffusionGradientOrientation",
        "TriggerTime",
        "InversionTime",
        "FlipAngle",
        "ImageType",
        "KVP",
        "AcquisitionTime",
    ),
    "ModalityLUTSequence",
)
#: What tells phases, echoes and the like apart where several slices share a position; the surest first.
APART = (
    *("TemporalPositionIdentifier", "TemporalPositionIndex", "AcquisitionNumber", "StackID", "EchoTime"),
    *("EffectiveEchoTime", "EchoNumbers", "DiffusionBValue", "DiffusionGradientOrientation", "TriggerTime"),
    *(
        "NominalCardiacTriggerDelayTime",
        "InversionTime",
        "FlipAngle",
        "KVP",
        "ImageType",
        "FrameType",
        "AcquisitionTime",
    ),
)
#: Functional group of enhanced files in which an attribute lies.
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "StackID": "FrameContentSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "FrameType": "MRImageFrameTypeSequence",
}
#: Endings of names that only DICOM has.
SUFFIXES = (".dcm", ".dicom", ".ima")
#: A frame that is compressed takes at least the header of its item.
_LEAST_BYTES = 8
#: Deflate packs at most about so well.
_DEFLATED = 1100


@dataclass(frozen=True)
class Place:
    """One frame: where it is, and what its header says of it.

    Attributes:
        file, frame: where its pixels are.
        size: rows and columns.
        number: of the instance, for frames without a position.
        uid: of the instance and frame, the same for copies.
        position: of the first pixel's centre, mm, in the patient (x to the left, y to the back, z to the head); or None.
        across: direction cosines of growing columns and of growing rows (6,); or None.
        spacing: between rows and between columns, mm; or None.
        rescale: slope and intercept; None where there are none.
        kind: what the rescaled values are, such as "HU"; "" where the file does not say.
        apart: what could tell it from other frames at its position.
        head: the file's header.
    """

    file: Path
    frame: int
    size: tuple[int, int]
    number: int
    uid: str
    position: np.ndarray | None
    across: np.ndarray | None
    spacing: tuple[float, float] | None
    rescale: tuple[float, float] | None
    kind: str
    head: Any = field(repr=False)
    apart: dict[str, str] = field(default_factory=dict)


def files_of(path: Path) -> Iterator[Path]:
    """The regular files of a folder and its subfolders in order of name, hidden ones left out; or the file itself."""
    if not path.is_dir():
        return iter([path] if path.is_file() else [])
    return iter(sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: with its preamble, or one of the old kind that begin with their first element."""
    start = head(path, 132)
    return start[128:] == b"DICM" or _bare(start)


def _bare(start: bytes) -> bool:
    """Whether bytes begin with two elements of the groups that come first, 0002 and 0008, as files without a preamble do."""
    if len(start) < 20:
        return False
    for order in ("<", ">"):
        group, element = (int(v) for v in np.frombuffer(start[:4], f"{order}u2"))
        if start[4:6] in (b"OB", b"OW"):
            begin, length = 12, int(np.frombuffer(start[8:12], f"{order}u4")[0])
        elif start[4:6].isalpha() and start[4:6].isupper():
            begin, length = 8, int(np.frombuffer(start[6:8], f"{order}u2")[0])
        else:
            begin, length = 8, int(np.frombuffer(start[4:8], f"{order}u4")[0])
        following = start[begin + length : begin + length + 4]
        if group in (2, 8) and element < 0x100 and len(following) == 4:
            after = tuple(int(v) for v in np.frombuffer(following, f"{order}u2"))
            if after > (group, element) and after[0] in (2, 8):
                return True
    return False


def places_of(pydicom: Any, path: Path, notes: list[str]) -> list[Place]:
    """Every frame of every DICOM file below a path.

    Args:
        pydicom: the package.
        path: a file or a folder.
        notes: told of files that are left out, and of what pydicom finds odd in headers.

    Raises:
        UserError: no image there, a damaged header or a file named as DICOM that is none, or more frames claimed than the file
            has bytes for.
    """
    places: list[Place] = []
    others: dict[str, list[str]] = {"no DICOM": [], "DICOM without an image": []}
    odd: list[str] = []
    for file in files_of(path):
        if not is_dicom(file):
            if file.suffix.lower() in SUFFIXES:
                raise UserError(
                    f"{file}: is named as DICOM, but does not begin as such a file does; copy it again, or move it elsewhere"
                )
            others["no DICOM"].append(shown(file.name))
            continue
        try:
            header = _header(pydicom, file, odd)
            if not header.get("Rows") or not header.get("Columns"):
                others["DICOM without an image"].append(shown(file.name))  # DICOMDIR, reports and the like
                continue
            places += _frames(header, file)
        except UserError:
            raise
        except Exception as error:  # pydicom raises many kinds on damaged files
            raise UserError(
                f"{file}: cannot be read as DICOM ({type(error).__name__}: {' '.join(str(error).split())}); copy it again"
            ) from None
    if not places:
        raise UserError(f"{path}: holds no DICOM image; give a DICOM file or a folder of them")
    for what, names in others.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            verb = "is" if len(names) == 1 else "are"
            notes.append(f"left out: {', '.join(names[:3])}{more}, which {verb} {what}")
    if odd:
        notes.append(f"{len(odd)} headers are not as the standard wants them, such as {odd[0]}")
    return places


def _header(pydicom: Any, file: Path, odd: list[str]) -> Any:
    """The header of a file, every value of it read; what pydicom warns of goes to `odd`, one line a file."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
        for _ in header:
            pass
    if told:
        odd.append(f"{shown(file.name)}: {shown(' '.join(str(told[0].message).split()))}")
    return header


def _frames(header: Any, file: Path) -> list[Place]:
    count = int(header.get("NumberOfFrames") or 1)
    size = (int(header.Rows), int(header.Columns))
    _check_count(header, file, count, size)
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    if per_frame and len(per_frame) != count:
        raise UserError(
            f"{file}: describes {len(per_frame)} of {count} frames (PerFrameFunctionalGroupsSequence); copy it again"
        )
    offsets = [float(v) for v in _listed(header.get("GridFrameOffsetVector"))]
    places = []
    for k in range(count):
        groups = [g for g in (per_frame[k] if per_frame else None, shared) if g is not None]

        def value_of(name: str, groups: list[Any] = groups) -> Any:
            for group in groups:
                for item in (group.get(_GROUPS.get(name, "")) or [])[:1]:
                    if item.get(name) is not None:
                        return item.get(name)
            return header.get(name)

        across = _numbers(value_of("ImageOrientationPatient"), 6)
        position = _numbers(value_of("ImagePositionPatient"), 3)
        if count > 1 and not any(g.get("PlanePositionSequence") for g in groups):
            # One position for the file is that of its first frame; dose grids say how far the others are from it.
            if position is not None and across is not None and len(offsets) == count:
                position = position + np.cross(across[:3], across[3:]) * offsets[k]
            else:
                position = None
        spacing = _numbers(value_of("PixelSpacing"), 2)
        slope, shift = value_of("RescaleSlope"), value_of("RescaleIntercept")
        # One without the other is no rescaling, to pydicom neither.
        rescale = None if slope is None or shift is None else (float(slope), float(shift))
        if rescale is None and header.get("DoseGridScaling") is not None:
            rescale = (float(header.DoseGridScaling), 0.0)
        places.append(
            Place(
                file,
                k,
                size,
                int(header.get("InstanceNumber") or 0),
                f"{header.get('SOPInstanceUID', file)}:{k}",
                position,
                across,
                None if spacing is None else (float(spacing[0]), float(spacing[1])),
                rescale,
                _kind(header, value_of("RescaleType"), rescale is not None),
                header,
                {name: str(value_of(name)) for name in APART if value_of(name) is not None},
            )
        )
    return places


def _check_count(header: Any, file: Path, count: int, size: tuple[int, int]) -> None:
    """Refuse more frames than the file can hold, before a list of them is made."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
    bytes_ = file.stat().st_size
    one = size[0] * size[1] * int(header.get("SamplesPerPixel") or 1) * int(header.get("BitsAllocated") or 8) / 8
    if syntax is not None and syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        one = _LEAST_BYTES
    packed = _DEFLATED if syntax == DeflatedExplicitVRLittleEndian else 1
    if count < 1 or count * one > bytes_ * packed:
        raise UserError(
            f"{file}: claims {count} frames of {size[0]} x {size[1]}, which its {bytes_} bytes cannot hold; copy or export it "
            "again"
        )


def _kind(header: Any, rescaled: Any, has_rescale: bool) -> str:
    """What the values are once they are rescaled; "" where they are not, or nobody says."""
    modality = header.get("Modality", "")
    if header.get("ModalityLUTSequence"):
        kind = str(header.ModalityLUTSequence[0].get("ModalityLUTType", ""))
    elif not has_rescale:
        kind = ""
    elif header.get("DoseGridScaling") is not None:
        kind = str(header.get("DoseUnits") or "").title()
    else:
        kind = str(rescaled or (header.get("Units") if modality == "PT" else "") or ("HU" if modality == "CT" else ""))
    return "" if kind.upper() in ("US", "UNSPECIFIED", "NONE") else kind


def _listed(value: Any) -> list[Any]:
    return (
        [] if value is None else list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    )


def _numbers(value: Any, count: int) -> np.ndarray | None:
    """So many finite numbers, or None."""
    try:
        numbers = np.asarray([float(v) for v in _listed(value)])
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None
