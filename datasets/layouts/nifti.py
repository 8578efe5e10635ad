"""Layout "nifti": slices of NIfTI volumes (.nii, .nii.gz), turned to the orientation in which radiologists see them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from invsolve.contracts.layout import Layout
from invsolve.contracts.measurement import Images
from invsolve.datasets.extras import need
from invsolve.datasets.hdf5 import OneByOne, fingerprint
from invsolve.datasets.tomography.projections import option_hash
from invsolve.errors import UserError

# Of a RAS+ volume (x to the right, y to the front, z up): the axis of the slices, then image rows and columns with their
# direction. Rows run from front to back or from top to bottom, columns from the patient's right to left.
_VIEWS: dict[str, tuple[int, tuple[int, int], tuple[int, int]]] = {
    "axial": (2, (1, -1), (0, -1)),
    "coronal": (1, (2, -1), (0, -1)),
    "sagittal": (0, (2, -1), (1, -1)),
}
#: Compressed volumes are unpacked once below this many bytes: reading slices of them is slow.
_MEMORY = 2**30


class NIfTI(Layout):
    """Images from a NIfTI file, one item a slice, values after scl_slope and scl_inter. Needs nibabel.

    Args:
        view: axial, coronal or sagittal slices, whatever the order in the file; its affine tells.
        volume: number of the volume in a 4-D file; default the only one.
        unit: of the values, which such files do not say.
        slices: [start, stop) along the slice axis (from the feet, the back or the left); default all.
    """

    name = "nifti"

    def __init__(
        self,
        view: Literal["axial", "coronal", "sagittal"] = "axial",
        volume: int | None = None,
        unit: str = "",
        slices: list[int] | None = None,
    ) -> None:
        self.view, self.volume, self.unit, self.slices = view, volume, unit, slices

    @classmethod
    def opens(cls, path: Path) -> bool:
        name = path.name.lower()
        return path.is_file() and name.endswith((".nii", ".nii.gz", ".hdr", ".img"))

    def images(self, path: Path) -> Images:
        path = Path(path)
        nibabel = need("nibabel", "nifti", path)
        if not path.is_file():
            raise UserError(f"{path}: no such file; check the path")
        _refuse_pointer(path)
        try:
            image = nibabel.load(path)
            shape, affine, dtype = image.shape, image.affine, image.get_data_dtype()
            zooms = [float(z) for z in image.header.get_zooms()[:3]]
            units = image.header.get_xyzt_units()[0]
        except Exception as error:  # nibabel raises many kinds on damaged files
            raise UserError(
                f"{path}: cannot be read as NIfTI ({type(error).__name__}: {' '.join(str(error).split())}); copy it again"
            ) from None
        if dtype.names or len(shape) not in (3, 4) or not all(shape):
            raise UserError(
                f"{path}: holds {shape} {dtype}, expected a volume of numbers (x, y, z), or several (x, y, z, n)"
            )
        if affine is None or not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
            raise UserError(f"{path}: its affine is no orientation; write the file again with its sform or qform")
        volume = self._volume(path, shape)
        orientation = nibabel.io_orientation(affine)
        # World axis -> axis of the array, and its direction.
        stored = {int(world): (k, int(sign)) for k, (world, sign) in enumerate(orientation)}
        along, row, column = _VIEWS[self.view]
        count = shape[stored[along][0]]
        start, stop = (0, count) if self.slices is None else (self.slices if len(self.slices) == 2 else (-1, -1))
        if not 0 <= start < stop <= count:
            raise UserError(f"{path}: slices={self.slices} must be [start, stop) within the {count} {self.view} slices")
        axes = (stored[row[0]][0], stored[column[0]][0])
        flips = (row[1] * stored[row[0]][1], column[1] * stored[column[0]][1])
        values = _values(image, path)

        def read(item: int) -> np.ndarray:
            axis, sign = stored[along]
            position = start + item
            selection: list[Any] = [slice(None)] * len(shape)
            selection[axis] = position if sign > 0 else count - 1 - position
            if len(shape) == 4:
                selection[3] = volume
            try:
                found = np.asarray(values()[tuple(selection)])
            except (OSError, EOFError, ValueError) as error:
                raise UserError(
                    f"{path}: slice {position} cannot be read ({' '.join(str(error).split())}); copy the file again"
                ) from None
            return (found if axes[0] < axes[1] else found.T)[:: flips[0], :: flips[1]][None]

        size = (1, shape[axes[0]], shape[axes[1]])
        return Images(
            OneByOne(stop - start, size, read, dtype.kind == "c"),
            unit=self.unit,
            spacing=(zooms[axes[0]], zooms[axes[1]]),
            spacing_unit="mm" if units == "unknown" else units,
            source=str(path),
            fingerprint=f"{fingerprint(path)}+options:{option_hash(self)}",
            notes=[f"{stop - start} {self.view} slices of {size[1]} x {size[2]}"],
            missing=[] if self.unit else ["unit of the values: --read unit=NAME"],
        )

    def _volume(self, path: Path, shape: tuple[int, ...]) -> int:
        volumes = shape[3] if len(shape) == 4 else 1
        if self.volume is None and volumes > 1:
            raise UserError(f"{path}: holds {volumes} volumes {shape}; choose one with volume=0 to {volumes - 1}")
        wanted = self.volume or 0
        if not 0 <= wanted < volumes:
            raise UserError(f"{path}: volume={wanted} must be 0 to {volumes - 1}")
        return wanted


def _values(image: Any, path: Path) -> Any:
    """The scaled values: read from the file slice by slice, or unpacked once where it is compressed and not too large."""
    packed = path.name.lower().endswith(".gz")
    small = int(np.prod(image.shape, dtype=np.int64)) * 8 <= _MEMORY

    @cache
    def unpacked() -> np.ndarray:
        return np.asarray(image.dataobj)

    return unpacked if packed and small else lambda: image.dataobj


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(64)
    if not start:
        raise UserError(f"{path}: is empty (0 bytes); copy or write it again")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a git-LFS pointer, not the data; fetch the data with 'git lfs pull'")
