"""Being asked to stop: at a safe point where the step has one, at once where nothing is lost by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from invsolve.errors import Interrupted


class Stopped(Interrupted):
    """A pipeline was asked to stop; finished steps are kept, and the same command goes on."""


class Stop:
    """Set by a signal handler, and looked at by the run.

    Attributes:
        number: the signal that asked first; 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._at_once = False

    def request(self, number: int) -> None:
        """Ask to stop. A second time it does not wait.

        Raises:
            Stopped: what is running may be broken off anywhere.
            KeyboardInterrupt: asked again.
        """
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        if self._at_once:
            raise Stopped("stopped")

    def asked(self) -> bool:
        """Whether to stop at the next safe point."""
        return self.number != 0

    @contextmanager
    def anywhere(self) -> Iterator[None]:
        """A block that may be broken off at any point."""
        if self.asked():
            raise Stopped("stopped")
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
