"""What happens in a run, as JSON objects, one per line, for machines to follow."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from invsolve.errors import UserError

#: Told of each event: its name and what belongs to it.
Listener = Callable[[dict[str, Any]], None]


def event(name: str, **about: Any) -> dict[str, Any]:
    """An event with the time, in UTC to the millisecond. Numbers that JSON does not have become null."""
    return _finite({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": name, **about})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


class Log:
    """Appends events to a file, or prints them ("-"). Several processes may append to one file: a line is one write."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._handle: int | None = None
        if target != "-":
            try:
                self._handle = os.open(Path(target), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            except OSError as error:
                raise UserError(
                    f"--log-json {target}: cannot be written ({error.strerror}); choose another file"
                ) from None

    def __call__(self, what: dict[str, Any]) -> None:
        line = f"{json.dumps(what)}\n"
        if self._handle is None:
            sys.stdout.write(line)
            sys.stdout.flush()
        else:
            os.write(self._handle, line.encode())

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
