"""Names of other files in an HDF5 file: which file HDF5 would open for one, and whether it may; how names are printed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from invsolve.errors import UserError

_LONG = 120
#: The environment's lists of folders in which sources of virtual datasets, and targets of links, are looked for first.
SOURCE, LINK = "HDF5_VDS_PREFIX", "HDF5_EXT_PREFIX"
#: In the name of a source: the number of the block, one file or dataset each.
BLOCK = re.compile(r"%(\d*)b")

#: Path, inode, size and time of change of a file: what was found out about it holds as long as these stay.
State = tuple[str, int, int, int]


def shown(name: bytes | str) -> str:
    """A name from a file as it can be printed: what is not UTF-8 or no character is escaped, what is long is cut."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= _LONG else f"{text[:_LONG]}... ({len(text)} characters)"


def numbered(name: str, block: int) -> str:
    """The name of the source of one block."""
    return BLOCK.sub(lambda m: str(block).zfill(int(m[1] or 1)), name)


def find(name: str, here: Path, variable: str = SOURCE, what: str = "") -> Path | None:
    """The file that HDF5 would open for a name in a file; None when there is none.

    Args:
        name: as stored; "." is the file itself.
        here: the file in which the name stands.
        variable: the environment's list of folders that come first.
        what: how a message begins, such as "'x' is a link into".

    Raises:
        UserError: it lies outside of the file's folder, or is no regular file.
    """
    if name == ".":
        return here
    if BLOCK.search(name):
        # One file a block: each is looked for by its own name where the dataset is read.
        name = numbered(name, 0)
    given = Path(name)
    prefixes: list[str | Path] = [
        p.replace("${ORIGIN}", str(here.parent)) for p in os.environ.get(variable, "").split(":") if p
    ]
    relative = given.name if given.is_absolute() else name
    tries = [given] if given.is_absolute() else []
    own: list[str | Path] = [here.parent, here.resolve().parent]
    tries += [Path(folder) / relative for folder in (*prefixes, own[0], ".", own[1])]
    allowed = [Path(folder).resolve() for folder in prefixes + own]
    for place in tries:
        try:
            there = place.exists()
        except (OSError, ValueError):  # too long for a name, or a zero byte in it
            continue
        if not there:
            continue
        if not any(place.resolve().is_relative_to(folder) for folder in allowed):
            raise UserError(
                f"{here}: {what} '{shown(name)}', outside of the folder of this file, which is not followed; copy "
                "that file beside this one and remove the path in front of its name"
            )
        if not place.is_file():
            raise UserError(f"{here}: {what} '{shown(name)}', which is no regular file; put the data in its place")
        return place
    return None


def raw(name: bytes | str) -> bytes:
    """A name as bytes, as it is stored."""
    return name if isinstance(name, bytes) else os.fsencode(name)


def state_of(path: Path) -> State:
    """The state of a file now."""
    real = path.resolve()
    stat = real.stat()
    return str(real), stat.st_ino, stat.st_size, stat.st_mtime_ns


def same(state: State) -> bool:
    """Whether a file is still as it was."""
    try:
        return state_of(Path(state[0])) == state
    except OSError:
        return False


def remember(memory: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep something, in place of all that was kept before where that has become much."""
    if len(memory) > 10000:
        memory.clear()
    memory[key] = value
