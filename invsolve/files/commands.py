"""Commands as `inspect` prints them: words that a shell takes as they stand, and outputs in the working directory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def reading_options(layout: str | None, options: Mapping[str, Any]) -> list[str]:
    """The options of a command that read a file in the same way: its layout, and how it reads."""
    parts = [] if layout is None else ["--layout", layout]
    for key, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        parts += ["--read", f"{key}={text}"]
    return parts


def joined(begin: str, chosen: str, *parts: list[str]) -> str:
    """A command of its beginning, what was chosen, and further words."""
    return " ".join([begin, chosen, *(shlex.quote(p) for part in parts for p in part)])


def word(path: Path) -> str:
    """A path as a word of a command; one that begins with a dash would be taken for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def hint(does: str, command: str) -> dict[str, str]:
    """What a command does, and the command."""
    return {"does": does, "command": command}


def output_beside(path: Path, ending: str) -> str:
    """An output name in the working directory."""
    # A longer name would leave no room for those of unfinished files.
    stem = path.name.split(".")[0][:48].lstrip("-") or "scan"
    return shlex.quote(f"{stem}{ending}")
