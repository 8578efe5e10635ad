"""Small DICOM files of every sort, written by pydicom."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = [1, 0, 0, 0, 1, 0]


def dicom_file(path: Path, pixels: np.ndarray, series: str = "1.2.3", **elements: Any) -> Path:
    """Write unsigned or signed integers (rows, columns) or (frames, rows, columns); elements by their keyword."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = elements.pop("SOPInstanceUID", generate_uid())
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.Modality = series, "CT"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    for name, value in elements.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def stack(folder: Path, values: list[int], heights: list[float], each: Any = None, **elements: Any) -> Path:
    """A folder of constant 4 x 5 slices at these heights; `each(k)` gives elements of slice k."""
    folder.mkdir()
    for k, (value, z) in enumerate(zip(values, heights, strict=True)):
        own = {"ImagePositionPatient": [0, 0, z], "InstanceNumber": k + 1} | (each(k) if each else {})
        common: dict[str, Any] = {
            "ImageOrientationPatient": AXIAL,
            "PixelSpacing": [1, 1],
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
        }
        dicom_file(folder / f"{k:03d}", np.full((4, 5), value, np.uint16), **(common | elements | own))
    return folder


def nested(**groups: dict[str, Any]) -> Dataset:
    """A functional group: sequence name -> elements of its only item."""
    group = Dataset()
    for name, elements in groups.items():
        item = Dataset()
        for key, value in elements.items():
            setattr(item, key, value)
        setattr(group, name, [item])
    return group


def by_pydicom(path: Path) -> np.ndarray:
    """What pydicom's own pipeline makes of a file: stored pixels through the modality transformation."""
    data = pydicom.dcmread(path, force=True)
    return np.asarray(pydicom.pixels.apply_modality_lut(data.pixel_array, data))
