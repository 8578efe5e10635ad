"""Processes that are killed, or stop themselves, at a defined place: no test waits for a moment that depends on the speed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("stopping")


def stop_at(place: str, number: int, count: int = 1, when: str = "", target: str = "self") -> dict[str, str]:
    """The environment of a process that gets a signal right there.

    Args:
        place: "item written", "snapshot saved" or "training saved".
        number: the signal.
        count: at which of the calls that count.
        when: a Python expression of the arguments of the function behind the place: the calls that count. Default all.
        target: "self", or "parent" for the signal to go to the parent; the process waits there for what it gets of it.
    """
    return _environment(place=place, when=when, count=count, number=int(number), target=target, tell="")


def tell_at(place: str, pipe: Path) -> dict[str, str]:
    """The environment of processes that write a line to a named pipe each time one is there."""
    return _environment(place=place, when="", count=0, number=0, target="self", tell=str(pipe))


def _environment(**settings: object) -> dict[str, str]:
    return {
        "PYTHONPATH": f"{FOLDER}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "INVSOLVE_TEST_STOP": json.dumps(settings),
    }


class Pipe:
    """A named pipe in a folder, from which a test reads the lines of `tell_at`; it never ends for the reader.

    Attributes:
        path: what the processes write to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        # Open for writing too: neither the writers nor the reader wait for the other to come.
        self._stream = os.fdopen(os.open(path, os.O_RDWR))

    def wait(self, lines: int) -> None:
        """Block until so many more lines have come."""
        for _ in range(lines):
            self._stream.readline()

    def close(self) -> None:
        self._stream.close()


def kill_before_call(moment: int, *functions: tuple[Any, str]) -> None:
    """In a forked child: SIGKILL right before the moment-th call of these functions, (owner, name) each, counted together."""
    calls, lock = itertools.count(1), threading.Lock()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            with lock:
                if next(calls) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)

        return wrapped

    for owner, name in functions:
        setattr(owner, name, counted(getattr(owner, name)))
