"""Files of a folder in the order of the numbers in their names, and numbers that are missing among them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path


def natural(path: Path) -> list[tuple[int, int, str]]:
    """A key that sorts slice_9 before slice_10."""
    return [(0, int(t), "") if t.isdecimal() else (1, 0, t) for t in re.split(r"(\d+)", path.name)]


def said_gaps(files: list[Path]) -> list[str]:
    """A line where one number counts the files and jumps: a slice may be missing."""
    parts = [re.split(r"(\d+)", p.stem) for p in files]
    if len({len(p) for p in parts}) != 1:
        return []
    changing = [k for k in range(len(parts[0])) if len({p[k] for p in parts}) > 1]
    if len(changing) != 1 or changing[0] % 2 == 0:
        return []
    numbers = [int(p[changing[0]]) for p in parts]
    steps = [b - a for a, b in pairwise(numbers)]
    usual = sorted(steps)[len(steps) // 2]
    jumps = [k for k, step in enumerate(steps) if step != usual]
    if not jumps:
        return []
    where = ", ".join(f"{files[k].name} and {files[k + 1].name}" for k in jumps[:3])
    return [f"the numbers of the files jump {len(jumps)} times (between {where}): files may be missing"]
