"""The one exception a user's mistake raises, the near-match suggestion in its text, and how texts reach a terminal."""

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


#: Characters of a line that reach the terminal, and of one word in it; more is cut out of the middle.
_LINE, _WORD = 4000, 1000


def printable(text: str, cut: bool = True) -> str:
    """A text as it may reach a terminal: names from files could move its cursor, retitle it or fill it.

    Args:
        text: one line or several; tabs count as spaces.
        cut: shorten words and lines that no screen can show, at their middle: a line's remedy is at its end.

    Returns:
        The same lines, with every character that is not printable escaped.
    """
    return "\n".join(_printable(line, cut) for line in text.split("\n"))


def _printable(line: str, cut: bool) -> str:
    line = line.expandtabs()
    if cut:
        line = " ".join(_shortened(word, _WORD) for word in line.split(" "))
        line = _shortened(line, _LINE)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else _escaped(c) for c in line)


def _escaped(character: str) -> str:
    """A character as an escape; of a file name's byte that is no text (Python holds it as U+DC80 to U+DCFF) the byte's."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode()


def _shortened(text: str, most: int) -> str:
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}...({len(text)} characters)...{text[-half:]}"
