"""Plain arrays on disk: an HDF5 dataset, a .npy file, a TIFF file or a folder of them; shapes first, values when sliced."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from invsolve.datasets.hdf5.reading import dataset, datasets, open_readonly, read, text
from invsolve.errors import UserError

_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_NUMPY = b"\x93NUMPY"
_SUFFIXES = (".tif", ".tiff")


class Source(Protocol):
    """An array that is read in parts; `axes` are the names that the file gives them, or empty.

    `chunks` is the shape of what is read at once at the least, such as a page; None where it lies in one piece.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str
    chunks: tuple[int, ...] | None

    def read(self, selection: tuple[Any, ...]) -> np.ndarray:
        """Part of it; integers drop their axis, as in NumPy."""
        ...


def head(path: Path) -> bytes:
    """The first bytes of a file; nothing of what is none or cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            return stream.read(256)
    except OSError:
        return b""


def is_npy(path: Path) -> bool:
    return head(path).startswith(_NUMPY)


def is_tiff(path: Path) -> bool:
    return head(path).startswith(_TIFF)


def tiff_folder(path: Path) -> list[Path]:
    """The TIFF files of a folder, in the order of the numbers in their names; none when it is no folder."""
    if not path.is_dir():
        return []
    found = [p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file()]
    return sorted(found, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", p.name)])


def open_array(path: Path, name: str | None) -> Source:
    """Open a plain array.

    Args:
        path: HDF5, .npy, TIFF, or a folder of TIFF files of one size.
        name: dataset of an HDF5 file; may be left out where it holds only one.

    Raises:
        UserError: unreadable, damaged, or several datasets and no name.
    """
    if is_npy(path):
        return _Npy(path)
    if is_tiff(path):
        return _Tiff([path])
    if files := tiff_folder(path):
        return _Tiff(files)
    return _Hdf5(path, name)


class _Npy:
    axes = ""
    chunks: tuple[int, ...] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{path}: cannot be read as .npy ({' '.join(str(error).split())}); write it again"
            ) from None
        self.shape, self.dtype = self.array.shape, self.array.dtype
        _check_numbers(self.dtype, str(path))

    def read(self, selection: tuple[Any, ...]) -> np.ndarray:
        return np.array(self.array[selection])


class _Hdf5:
    def __init__(self, path: Path, name: str | None) -> None:
        self.path = path
        with open_readonly(path) as file:
            if name is None:
                there = datasets(file)
                if len(there) != 1:
                    listed = ", ".join(f"{n} {text}" for n, text in list(there.items())[:8]) or "none"
                    raise UserError(f"{path}: say which dataset: dataset=NAME; it has {listed}")
                name = next(iter(there))
            found = dataset(file, name)
            self.name, self.shape, self.chunks = name, tuple(found.shape), found.chunks
            self.axes = text(found.attrs.get("axes", ""))
            self.dtype = np.dtype(np.complex64) if found.dtype.names else found.dtype

    def read(self, selection: tuple[Any, ...]) -> np.ndarray:
        with open_readonly(self.path) as file:
            return read(dataset(file, self.name), selection)


class _Tiff:
    """Pages of one TIFF, or of several in order, as the first axis; a single page is (rows, columns)."""

    axes = ""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        shape, self.dtype, pages = self._look(files[0])
        self.pages = [pages]
        for file in files[1:]:
            other, dtype, count = self._look(file)
            if other != shape or dtype != self.dtype:
                raise UserError(
                    f"{file}: has pages {other} {dtype}, but {files[0].name} {shape} {self.dtype}; keep files of one kind in "
                    "a folder"
                )
            self.pages.append(count)
        count = sum(self.pages)
        self.stacked = len(files) > 1 or count > 1
        self.shape = (count, *shape) if self.stacked else shape
        self.chunks = (1, *shape) if self.stacked else None
        self.ends = np.cumsum(self.pages)

    def _look(self, file: Path) -> tuple[tuple[int, ...], np.dtype, int]:
        import tifffile

        try:
            with tifffile.TiffFile(file) as tiff:
                page = tiff.pages[0]
                shape, dtype, count = tuple(page.shape), page.dtype, len(tiff.pages)
        except Exception as error:  # tifffile raises many kinds on damaged files
            raise UserError(
                f"{file}: cannot be read as TIFF ({type(error).__name__}: {' '.join(str(error).split())}); write it again"
            ) from None
        if dtype is None or not all(shape):
            raise UserError(f"{file}: has no pixels; write it again")
        _check_numbers(dtype, str(file))
        return shape, dtype, count

    def _page(self, index: int) -> np.ndarray:
        import tifffile

        which = int(np.searchsorted(self.ends, index, side="right"))
        file = self.files[which]
        try:
            with tifffile.TiffFile(file) as tiff:
                return np.asarray(tiff.pages[index - (int(self.ends[which - 1]) if which else 0)].asarray())
        except Exception as error:
            raise UserError(
                f"{file}: page {index} cannot be read ({type(error).__name__}: {' '.join(str(error).split())}); write it again"
            ) from None

    def read(self, selection: tuple[Any, ...]) -> np.ndarray:
        if not self.stacked:
            return self._page(0)[selection]
        first = selection[0]
        if isinstance(first, int | np.integer):
            return self._page(int(first))[selection[1:]]
        picked = range(*first.indices(self.shape[0]))
        return np.stack([self._page(k)[selection[1:]] for k in picked])


def _check_numbers(dtype: np.dtype, where: str) -> None:
    if dtype.kind not in "fiubc":
        raise UserError(f"{where}: holds {dtype}, expected numbers; write it again")
