"""Plain arrays on disk: an HDF5 dataset, a .npy file, TIFF, PNG, JPEG, or folders of those; shapes first, values later."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from invsolve.datasets.extras import check_regular, head
from invsolve.datasets.hdf5.matlab import matlab_notes
from invsolve.datasets.hdf5.pictures import Pictures, is_picture, picture_folder
from invsolve.datasets.hdf5.reading import dataset, datasets, open_readonly, read, text
from invsolve.datasets.hdf5.tiff import Tiff, tiff_folder
from invsolve.errors import UserError

_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_NUMPY = b"\x93NUMPY"


class Source(Protocol):
    """An array that is read in parts.

    Attributes:
        axes: the names that the file gives them, or empty.
        chunks: the shape of what is read at once at the least, such as a page; None where it lies in one piece.
        white: the largest value, where the file says that the least is white; else None.
        notes: one line each on what was found.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str
    chunks: tuple[int, ...] | None
    white: float | None
    notes: tuple[str, ...]

    def read(self, selection: tuple[Any, ...]) -> np.ndarray:
        """Part of it; integers drop their axis, as in NumPy."""
        ...


def is_npy(path: Path) -> bool:
    return head(path).startswith(_NUMPY)


def is_tiff(path: Path) -> bool:
    return head(path).startswith(_TIFF)


def files_of(path: Path) -> list[Path]:
    """What makes an array: the file itself, or the TIFF, else the PNG and JPEG files of a folder; none of another folder.

    Raises:
        UserError: the folder holds both.
    """
    tiffs, pictures = tiff_folder(path), picture_folder(path)
    if tiffs and pictures:
        raise UserError(
            f"{path}: holds {len(tiffs)} TIFF files and {len(pictures)} PNG or JPEG files; keep one kind in a folder"
        )
    return tiffs or pictures or ([] if path.is_dir() else [path])


def opens_array(path: Path) -> bool:
    """Whether a file, or a folder, is an array by its first bytes or the names in it."""
    if path.is_dir():
        # A picture or two beside other files is a preview of those.
        files = sum(p.is_file() and not p.name.startswith(".") for p in path.iterdir())
        return bool(tiff_folder(path)) or 2 * len(picture_folder(path)) > files
    return is_npy(path) or is_tiff(path) or is_picture(path)


def open_array(path: Path, name: str | None) -> Source:
    """Open a plain array.

    Args:
        path: HDF5, .npy, TIFF, PNG, JPEG, or a folder of TIFF, or of PNG and JPEG files, of one size.
        name: dataset of an HDF5 file; may be left out where it holds only one.

    Raises:
        UserError: unreadable, damaged, or several datasets and no name.
    """
    check_regular(path)
    if is_npy(path):
        return _Npy(path)
    if is_tiff(path):
        return Tiff([path])
    if is_picture(path):
        return Pictures([path])
    if path.is_dir() and (files := files_of(path)):
        return Tiff(files) if tiff_folder(path) else Pictures(files)
    return _Hdf5(path, name)


class _Npy:
    axes = ""
    chunks: tuple[int, ...] | None = None
    white: float | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy raises many kinds on damaged headers
            raise UserError(
                f"{path}: cannot be read as .npy ({' '.join(str(error).split())}); write it again"
            ) from None
        self.shape, self.dtype = self.array.shape, self.array.dtype
        _check_numbers(self.dtype, str(path))

    def read(self, selection: tuple[Any, ...]) -> np.ndarray:
        return np.array(self.array[selection])


class _Hdf5:
    white: float | None = None

    def __init__(self, path: Path, name: str | None) -> None:
        self.path = path
        with open_readonly(path) as file:
            if name is None:
                # What begins so is MATLAB's own book-keeping.
                there = {n: t for n, t in datasets(file).items() if not n.startswith("#")}
                if len(there) != 1:
                    listed = ", ".join(f"{n} {text}" for n, text in list(there.items())[:8]) or "none"
                    raise UserError(f"{path}: say which dataset: dataset=NAME; it has {listed}")
                name = next(iter(there))
            dset = dataset(file, name)
            self.name, self.shape, self.chunks = name, tuple(dset.shape), dset.chunks
            self.axes = text(dset.attrs.get("axes", ""))
            self.dtype = np.dtype(np.complex64) if dset.dtype.names else dset.dtype
            self.notes = tuple(matlab_notes(dset))

    def read(self, selection: tuple[Any, ...]) -> np.ndarray:
        with open_readonly(self.path) as file:
            return read(dataset(file, self.name), selection)


def _check_numbers(dtype: np.dtype, where: str) -> None:
    if dtype.kind not in "fiubc":
        raise UserError(f"{where}: holds {dtype}, expected numbers; write it again")
