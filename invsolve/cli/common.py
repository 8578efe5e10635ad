"""What the commands share: reading key=value, loading --plugin files, notes on standard error, tables, JSON."""

from __future__ import annotations

import json
import math
import signal
import sys
import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A .py of plugins; repeatable.", metavar="FILE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
NoSelfTest = Annotated[bool, typer.Option("--no-self-test", help="Trust a foreign checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="A parameter; repeatable.", metavar="KEY=VALUE")]
Read = Annotated[list[str] | None, typer.Option("--read", help="How to read it; repeatable.", metavar="KEY=VALUE")]


def key_values(texts: Sequence[str] | None) -> dict[str, Any]:
    """Read key=value options; values are TOML (numbers, true, [1, 2], "text"), or text as it stands."""
    from invsolve.errors import UserError

    values: dict[str, Any] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{text!r}: write KEY=VALUE, such as steps=200")
        if key.strip() in values:
            raise UserError(f"{text!r}: {key.strip()} is given twice; give it once")
        try:
            values[key.strip()] = tomllib.loads(f"v = {value}")["v"]
        except (tomllib.TOMLDecodeError, RecursionError):
            values[key.strip()] = value.strip()
    return values


def start(plugin_files: Sequence[Path] | None) -> None:
    """Load plugin files, and show warnings as one line each."""
    from invsolve import registry

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        note(f"warning: {' '.join(str(message).split())}")

    warnings.showwarning = show
    for file in plugin_files or []:
        registry.load_file(file)


def note(line: str) -> None:
    """A remark for the person watching; kept off standard output, which may be parsed."""
    from invsolve.errors import printable

    print(f"invsolve: {printable(line)}", file=sys.stderr)


def emit(result: Any, as_json: bool, text: str, cut: bool = True) -> None:
    """Print a result, as JSON or as text; `cut` where the text is for people, who are not helped by long names."""
    from invsolve.errors import printable

    # JSON escapes what is not ASCII by itself.
    print(json.dumps(_finite(result), indent=2, allow_nan=False) if as_json else printable(text, cut))


def _finite(value: Any) -> Any:
    """The same for JSON, which has no NaN and no infinity: null in their place."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces; the first to the left, the others to the right."""
    widths = [max(len(str(row[k])) for row in [header, *rows]) for k in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            str(c).ljust(w) if k == 0 else str(c).rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


class StopOnSignal:
    """The first Ctrl-C or SIGTERM ends the run after the current step, the second at once."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt

    def asked(self) -> bool:
        return self.count > 0
