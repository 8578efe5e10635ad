"""The one exception a user's mistake raises, and the near-match suggestion in its text."""

import difflib
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """What is wrong, where, what was expected and how to mend it, in one line. The command line exits with code 2."""


class Unsuited(UserError):
    """A strategy does not suit the problem; who knows the registry adds which would (`api.choice.alternatives`).

    Attributes:
        suits: whether a strategy class would do.
    """

    def __init__(self, text: str, suits: Callable[[type], bool]) -> None:
        super().__init__(text)
        self.suits = suits


class InUse(UserError):
    """Another process is writing the file; it may be gone in a moment."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for near matches of `name`, else the list of what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.55)
    if near:
        return f" Did you mean {' or '.join(repr(n) for n in near)}?"
    return f" Known: {', '.join(names)}." if names else " None are registered."


class NonFinite(ArithmeticError):
    """A result became NaN or infinite; says at which step and what the likely cause is."""


class Interrupted(Exception):
    """The run was asked to stop; finished items are kept."""
