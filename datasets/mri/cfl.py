"""BART's pairs of files: a .hdr of text with up to 16 dimensions, and a .cfl of complex float32, first axis fastest."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from invsolve.datasets.extras import check_regular, head
from invsolve.errors import UserError

#: BART's names of its dimensions, in their order.
DIMENSIONS = (
    *("READ", "PHS1", "PHS2", "COIL", "MAPS", "TE", "COEFF", "COEFF2"),
    *("ITER", "CSHIFT", "TIME", "TIME2", "LEVEL", "SLICE", "AVG", "BATCH"),
)
_MARK = b"# Dimensions"
_LONGEST = 65536


def is_cfl(path: Path) -> bool:
    """Whether a path is one of such a pair: by the header's first words."""
    return path.suffix.lower() in (".cfl", ".hdr") and head(path.with_suffix(".hdr"), 64).lstrip().startswith(_MARK)


def read_cfl(path: Path) -> np.ndarray:
    """A memory map of 16 axes, complex64.

    Args:
        path: either file of the pair, or their common name without a suffix.

    Raises:
        UserError: one is missing or damaged, or the sizes disagree.
    """
    base = path.with_suffix("") if path.suffix.lower() in (".cfl", ".hdr") else path
    header, data = (base.with_name(base.name + ending) for ending in (".hdr", ".cfl"))
    # The file that was named goes first: where both are missing, its name is the one that helps.
    for file in (data, header) if path.suffix.lower() == ".cfl" else (header, data):
        check_regular(file)
        if not file.exists():
            raise UserError(f"{file}: no such file; BART's files come in pairs, .hdr and .cfl: put it beside the other")
    lines = head(header, _LONGEST).decode(errors="replace").splitlines()
    marks = [k for k, line in enumerate(lines) if line.strip().startswith(_MARK.decode())]
    try:
        sizes = [int(word) for word in lines[marks[0] + 1].split()]
    except (IndexError, ValueError):
        sizes = []
    if not 1 <= len(sizes) <= len(DIMENSIONS) or min(sizes) < 1:
        raise UserError(f"{header}: expected '# Dimensions' and up to {len(DIMENSIONS)} positive sizes; write it again")
    size, there = 8 * math.prod(sizes), data.stat().st_size
    if size != there:
        raise UserError(
            f"{data}: has {there} bytes, but its header says {' x '.join(map(str, sizes))} complex numbers ({size} bytes); "
            "copy both files again"
        )
    sizes += [1] * (len(DIMENSIONS) - len(sizes))
    return np.memmap(data, "<c8", "r", shape=tuple(sizes), order="F")


def write_cfl(path: Path, array: np.ndarray, overwrite: bool = False) -> None:
    """Write a pair of files.

    Args:
        path: either file of the pair, or their common name without a suffix.
        array: numbers with BART's axes (READ, PHS1, PHS2, COIL, ...), at most 16; stored as complex64.
        overwrite: replace files that exist.

    Raises:
        UserError: more axes, an empty array, no numbers, or files that exist.
    """
    values = np.asarray(array)
    if not 1 <= values.ndim <= len(DIMENSIONS) or values.size == 0 or not np.issubdtype(values.dtype, np.number):
        raise UserError(
            f"{path}: BART's files hold numbers with 1 to {len(DIMENSIONS)} axes, got {values.shape} {values.dtype}"
        )
    base = path.with_suffix("") if path.suffix.lower() in (".cfl", ".hdr") else path
    header, data = (base.with_name(base.name + ending) for ending in (".hdr", ".cfl"))
    for file in (header, data):
        if file.exists() and not overwrite:
            raise UserError(f"{file} exists; give another name, or overwrite=True")
    sizes = " ".join(str(n) for n in (*values.shape, *[1] * (len(DIMENSIONS) - values.ndim)))
    unfinished = data.with_name(f".{data.name}.partial")
    # By memory order: the transpose of an array in C order, read row by row, is the array with its first axis fastest.
    np.ascontiguousarray(values.T, "<c8").tofile(unfinished)
    # The header last: a pair without one is no pair, and its size would not fit that of an older one.
    header.unlink(missing_ok=True)
    os.replace(unfinished, data)
    header.write_text(f"{_MARK.decode()}\n{sizes} \n", encoding="ascii")


def write_images(path: Path, images: np.ndarray, overwrite: bool = False) -> None:
    """Write images (items, channels, rows, columns), as results hold them; items go along BART's SLICE.

    Args:
        path: as for `write_cfl`.
        images: one channel, real or complex; or two, real and imaginary part.
        overwrite: replace files that exist.

    Raises:
        UserError: other axes or channels, or as `write_cfl`.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 2):
        raise UserError(f"{path}: expected images (items, 1 or 2 channels, rows, columns), got {images.shape}")
    plane = images[:, 0] if images.shape[1] == 1 else images[:, 0] + 1j * images[:, 1]
    array = plane.transpose(1, 2, 0)
    write_cfl(path, array.reshape(*array.shape[:2], *[1] * (DIMENSIONS.index("SLICE") - 2), len(images)), overwrite)
