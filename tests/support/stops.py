"""Processes that are killed, or stop themselves, at a defined place: no test waits for a moment that depends on the speed."""

from __future__ import annotations

import json
import os
from pathlib import Path

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
