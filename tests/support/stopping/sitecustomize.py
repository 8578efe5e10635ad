"""Run by Python at the start of a process that a test started: it signals at a named place, at whatever speed it gets there.

What and where is in the environment, see `tests.support.stops`. Nothing is imported that the process does not import itself.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: Named places: the module, and the function in it after whose return they are.
PLACES = {
    "item written": ("invsolve.datasets.hdf5.result", "ResultFile.write"),
    "snapshot saved": ("invsolve.jobs.snapshot_file", "SnapshotFile.save"),
    "training saved": ("invsolve.training.loop", "write_snapshot"),
}


class Stop:
    """Wraps the function once its module is imported.

    Args:
        place: one of `PLACES`.
        when: a Python expression of the function's arguments; only calls of which it holds count.
        count: how many of them.
        number: the signal, or 0 to write a line to `tell` at each of these calls.
        target: "self", or "parent" to signal the parent and wait for what it sends.
        tell: a named pipe that the test reads.
    """

    def __init__(self, place: str, when: str, count: int, number: int, target: str, tell: str) -> None:
        self.module, self.name = PLACES[place]
        self.when, self.left, self.number, self.target, self.tell = when, count, number, target, tell

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_wrap(module: ModuleType) -> None:
            run(module)
            self.wrap(module)

        spec.loader.exec_module = run_and_wrap  # type: ignore[method-assign]
        return spec

    def wrap(self, module: ModuleType) -> None:
        if self.name == "SnapshotFile.save":
            # Saving takes whatever part of the time it takes: a snapshot after each step.
            module._SHARE = math.inf  # type: ignore[attr-defined]
        owner: Any = module
        *outer, last = self.name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, self.around(getattr(owner, last)))

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        def wrapped(*given: Any, **named: Any) -> Any:
            result = function(*given, **named)
            if not self.when or eval(self.when, {}, dict(signature.bind(*given, **named).arguments)):
                self.left -= 1
                self.act()
            return result

        return wrapped

    def act(self) -> None:
        if not self.number:
            with open(self.tell, "a") as pipe:
                pipe.write("reached\n")
        elif self.left == 0 and self.target == "parent":
            # Whichever thread gets the answer, and however soon: it is a byte in the pipe.
            answer, end = os.pipe()
            os.set_blocking(end, False)
            before = signal.set_wakeup_fd(end)
            os.kill(os.getppid(), self.number)
            os.read(answer, 1)
            signal.set_wakeup_fd(before)
        elif self.left == 0:
            os.kill(os.getpid(), self.number)


if "INVSOLVE_TEST_STOP" in os.environ:
    sys.meta_path.insert(0, Stop(**json.loads(os.environ["INVSOLVE_TEST_STOP"])))
