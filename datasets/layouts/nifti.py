"""Layout "nifti": slices of NIfTI volumes (.nii, .nii.gz), turned to the orientation in which radiologists see them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from invsolve.contracts.layout import Layout
from invsolve.contracts.measurement import Images, Rows
from invsolve.datasets.extras import check_regular, head, need
from invsolve.datasets.hdf5.links import shown
from invsolve.datasets.hdf5.reading import fingerprint
from invsolve.datasets.hdf5.rows import OneByOne
from invsolve.datasets.hdf5.square_pixels import squared
from invsolve.datasets.tomography.projections import option_hash
from invsolve.errors import UserError

# Of a RAS+ volume (x to the right, y to the front, z up): the axis of the slices, then image rows and columns with their
# direction. Rows run from front to back or from top to bottom, columns from the patient's right to left.
_VIEWS: dict[str, tuple[int, tuple[int, int], tuple[int, int]]] = {
    "axial": (2, (1, -1), (0, -1)),
    "coronal": (1, (2, -1), (0, -1)),
    "sagittal": (0, (2, -1), (1, -1)),
}
#: First bytes of a header, in both byte orders: 348 for NIfTI-1 and Analyze, 540 for NIfTI-2.
_SIZES = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))
#: Compressed volumes are unpacked once below this many bytes: reading slices of them is slow.
_MEMORY = 2**30


class NIfTI(Layout):
    """Images from a NIfTI file, one item a slice, values after scl_slope and scl_inter. Needs nibabel.

    Args:
        view: axial, coronal or sagittal slices, whatever the order in the file; its affine tells.
        volume: number of the volume in a 4-D file; default the only one.
        unit: of the values, which such files do not say.
        slices: [start, stop) along the slice axis (from the feet, the back or the left); default all.
        square: make pixels that are not square so, as wide as their shorter side, by linear interpolation.
    """

    name = "nifti"

    def __init__(
        self,
        view: Literal["axial", "coronal", "sagittal"] = "axial",
        volume: int | None = None,
        unit: str = "",
        slices: list[int] | None = None,
        square: bool = False,
    ) -> None:
        self.view, self.volume, self.unit, self.slices, self.square = view, volume, unit, slices, square

    @classmethod
    def opens(cls, path: Path) -> bool:
        name = path.name.lower()
        if name.endswith((".nii", ".nii.gz")):
            return path.is_file()
        # Many kinds of files have a header named so: NIfTI's begins with its own size.
        return name.endswith((".hdr", ".img")) and head(path.with_suffix(".hdr"), 4) in _SIZES

    @classmethod
    def beside(cls, path: Path) -> list[Path]:
        pair = {".hdr": ".img", ".img": ".hdr"}.get(path.suffix.lower())
        return [path.with_suffix(pair)] if pair else []

    def images(self, path: Path) -> Images:
        path = Path(path)
        nibabel = need("nibabel", "nifti", path)
        if not path.is_file():
            raise UserError(f"{path}: no such file; check the path")
        check_regular(path)
        _refuse_pointer(path)
        odd: list[str] = []
        try:
            with _heard(odd):
                image = nibabel.load(path)
            shape, affine, dtype = image.shape, image.affine, image.get_data_dtype()
            zooms = [float(z) for z in image.header.get_zooms()[:3]]
            # Analyze, the old kind of .hdr and .img, knows no units and no orientation.
            units = image.header.get_xyzt_units()[0] if hasattr(image.header, "get_xyzt_units") else "unknown"
            notes = [
                *_oriented(image),
                *(f"the header is not as the format wants it: {shown(line)}" for line in odd[:3]),
            ]
        except Exception as error:  # nibabel raises many kinds on damaged files
            raise UserError(
                f"{path}: cannot be read as NIfTI ({type(error).__name__}: {' '.join(str(error).split())}); copy it again"
            ) from None
        # Axes of length 1 at the end, and a single slice without its axis, are ways of writing a volume.
        stored_axes = len(shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        shape, zooms = (shape if len(shape) > 2 else (*shape, 1)), [*zooms, 1.0][:3]
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
            selection: list[Any] = [slice(None)] * 3
            selection[axis] = position if sign > 0 else count - 1 - position
            # One of the volumes, if there are several, and 0 along what is 1 long.
            selection += [volume if k == 3 else 0 for k in range(3, stored_axes)]
            try:
                plane = np.asarray(values()[tuple(selection[:stored_axes])])
                plane = plane[:, None] if stored_axes == 2 and axis != 2 else plane
            except (OSError, EOFError, ValueError) as error:
                raise UserError(
                    f"{path}: slice {position} cannot be read ({' '.join(str(error).split())}); copy the file again"
                ) from None
            return (plane if axes[0] < axes[1] else plane.T)[:: flips[0], :: flips[1]][None]

        size = (1, shape[axes[0]], shape[axes[1]])
        notes.insert(0, f"{stop - start} {self.view} slices of {size[1]} x {size[2]}")
        spacing = (zooms[axes[0]], zooms[axes[1]])
        if units == "unknown":
            notes.append("the file does not say its unit of length; taken as mm")
        rows: Rows = OneByOne(stop - start, size, read, dtype.kind == "c")
        if self.square:
            rows, spacing = squared(rows, spacing, notes)
        return Images(
            rows,
            unit=self.unit,
            spacing=spacing,
            spacing_unit="mm" if units == "unknown" else units,
            source=str(path),
            fingerprint="+".join(
                [*(fingerprint(p) for p in (path, *self.beside(path))), f"options:{option_hash(self)}"]
            ),
            notes=notes,
            missing=[] if self.unit else ["unit of the values: --read unit=NAME"],
        )

    def _volume(self, path: Path, shape: tuple[int, ...]) -> int:
        volumes = shape[3] if len(shape) == 4 else 1
        if self.volume is None and volumes > 1:
            raise UserError(f"{path}: holds {volumes} volumes {shape}; choose one with volume=0 to {volumes - 1}")
        volume = self.volume or 0
        if not 0 <= volume < volumes:
            raise UserError(f"{path}: volume={volume} must be 0 to {volumes - 1}")
        return volume


@contextmanager
def _heard(lines: list[str]) -> Iterator[None]:
    """Take what nibabel would write to the terminal about a header."""
    from nibabel import imageglobals

    class Taken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(" ".join(record.getMessage().split()))

    logger, own = imageglobals.logger, list(imageglobals.logger.handlers)
    logger.handlers[:] = [Taken()]
    try:
        yield
    finally:
        logger.handlers[:] = own


def _oriented(image: Any) -> list[str]:
    """Lines on what the file leaves open, or says twice, about how the volume lies in the patient."""
    header, notes = image.header, []
    codes = [int(header[name]) for name in ("sform_code", "qform_code") if name in header]
    if not any(codes):
        notes.append("the file does not say how the volume lies; its axes are taken as the format has them")
    elif len(codes) == 2 and all(codes) and not np.allclose(image.get_sform(), image.get_qform(), atol=1e-2):
        notes.append("sform and qform disagree on how the volume lies; the sform is taken")
    axes = np.asarray(image.affine, float)[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if np.isfinite(lengths).all() and lengths.all():
        away = np.degrees(np.arccos(np.clip(np.abs(axes / lengths).max(0), 0, 1))).max()
        if away > 1:
            notes.append(f"the volume is turned by up to {away:.0f} degrees; its slices follow the nearest axes")
    return notes


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
