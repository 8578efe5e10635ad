"""BART's pairs of files: a .hdr of text with up to 16 dimensions, and a .cfl of complex float32, first axis fastest."""

from __future__ import annotations

import math
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
