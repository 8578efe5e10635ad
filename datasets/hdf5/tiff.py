"""TIFF files as one array: all planes of the main series, whether they have a directory each or one for all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from invsolve.datasets.hdf5.file_names import natural, said_gaps
from invsolve.errors import UserError

_SUFFIXES = (".tif", ".tiff")
#: Of tifffile's letters: what stands for items, what for channels, and the two axes of a picture.
_ITEMS, _CHANNELS = "IQZTRPMVHALEDN", "CS"


def tiff_folder(path: Path) -> list[Path]:
    """The TIFF files of a folder, in the order of the numbers in their names; none when it is no folder."""
    if not path.is_dir():
        return []
    files = [p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file()]
    return sorted(files, key=natural)


class Tiff:
    """The planes of one TIFF, or of several in order, with the axes that the files name; a single plane is (rows, columns).

    Args:
        files: one file, or those of a folder, which must agree.

    Raises:
        UserError: damaged, without pixels, or files that do not agree.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.parts = [_Part(file) for file in files]
        first = self.parts[0]
        self.dtype, self.white = first.dtype, first.white
        notes = list(first.notes)
        for part in self.parts[1:]:
            if (part.plane, part.dtype, part.white) != (first.plane, first.dtype, first.white):
                raise UserError(
                    f"{part.file}: has pages {part.plane} {part.dtype}, but {first.file.name} {first.plane} {first.dtype}; "
                    "keep files of one kind in a folder"
                )
        if len(files) > 1:
            notes += said_gaps(files)
        # Several files are one after another along the items; a file's own channels stay together.
        self.counts = [part.count for part in self.parts]
        count = sum(self.counts)
        self.single = len(files) == 1 and count == 1
        self.shape: tuple[int, ...] = first.plane if self.single else (count, *first.plane)
        self.chunks: tuple[int, ...] | None = None if self.single else (1, *first.plane)
        self.axes = ",".join([*([] if self.single else ["item"]), *first.names])
        self.ends = np.cumsum(self.counts)
        self.notes = tuple(notes)

    def _item(self, index: int) -> np.ndarray:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[which].read(index - (int(self.ends[which - 1]) if which else 0))

    def read(self, selection: tuple[Any, ...]) -> np.ndarray:
        if self.single:
            return self._item(0)[selection]
        first = selection[0]
        if isinstance(first, int | np.integer):
            return self._item(int(first))[selection[1:]]
        return np.stack([self._item(k)[selection[1:]] for k in range(*first.indices(self.shape[0]))])


class _Part:
    """One file: `count` planes of shape `plane`, which includes its channels; read anew for each."""

    def __init__(self, file: Path) -> None:
        import tifffile

        self.file = file
        self.notes: list[str] = []
        try:
            with tifffile.TiffFile(file) as tiff:
                series = max(tiff.series, key=lambda s: math.prod(s.shape), default=None)
                if series is None or series.dtype is None or not all(series.shape):
                    raise UserError(f"{file}: has no pixels; write it again")
                self.number = tiff.series.index(series)
                self._look(series, tiff)
        except UserError:
            raise
        except Exception as error:  # tifffile raises many kinds on damaged files
            raise UserError(
                f"{file}: cannot be read as TIFF ({type(error).__name__}: {' '.join(str(error).split())}); write it again"
            ) from None
        if self.dtype.kind not in "fiubc":
            raise UserError(f"{file}: holds {self.dtype}, expected numbers; write it again")

    def _look(self, series: Any, tiff: Any) -> None:
        self.whole, axes = tuple(series.shape), series.axes
        self.dtype = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
        items = [k for k, letter in enumerate(axes) if letter not in "YXCS"]
        # Items lead in what every writer makes; another order is kept as it is, one picture after another along the first.
        leading = len(items) if items == list(range(len(items))) else 0
        self.plane, self.count = self.whole[leading:], math.prod(self.whole[:leading])
        self.names = [_named(letter) for letter in axes[leading:]]
        self.offset = series.dataoffset
        page = series.keyframe
        others = [f"{tuple(s.shape)} {s.dtype}" for s in tiff.series if s is not series]
        here = sum(len(s.pages) for s in tiff.series)
        others += [f"{tuple(p.shape)} {p.dtype}" for p in list(tiff.pages)[here:]]
        if others:
            self.notes.append(f"of several images in the file the largest is read; left out: {', '.join(others[:4])}")
        light = page.photometric.name if page.photometric is not None else ""
        self.white: float | None = None
        if light == "MINISWHITE" and self.dtype.kind == "u":
            self.white = float(2**page.bitspersample - 1)
        elif light == "MINISWHITE":
            self.notes.append(f"MINISWHITE (the least value is white): {self.dtype.name} is not inverted")
        if light == "PALETTE":
            self.notes.append("the file has a colour palette; its numbers are taken as they are stored")

    def read(self, index: int) -> np.ndarray:
        import tifffile

        try:
            if self.offset is not None:
                # One directory may stand for all planes, as in ImageJ's stacks: the bytes follow one another.
                planes = np.memmap(self.file, self.dtype, "r", self.offset, (self.count, *self.plane))
                return np.array(planes[index])
            with tifffile.TiffFile(self.file) as tiff:
                series = tiff.series[self.number]
                pages = len(series.pages) // self.count
                images = [series.pages[index * pages + k].asarray() for k in range(pages)]
            return np.asarray(images).reshape(self.plane)
        except Exception as error:
            raise UserError(
                f"{self.file}: page {index} cannot be read ({type(error).__name__}: {' '.join(str(error).split())}); write it "
                "again"
            ) from None


def _named(letter: str) -> str:
    if letter in _CHANNELS:
        return "channel"
    return {"Y": "row", "X": "column"}.get(letter, "item")
