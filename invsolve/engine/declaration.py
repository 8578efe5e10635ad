"""What is known about one option, and how a value of it is checked; without torch, so that `--help` answers at once."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from invsolve.errors import UserError


@dataclass(frozen=True)
class Option:
    """What is known about one option.

    Attributes:
        name: as a keyword in Python and in a pipeline; on the command line `--name` with hyphens.
        default: its value where nothing is given.
        text: what it does.
        hint: the type as Python takes it; text where it would need torch to say.
        written: the type that is written in a file or on the command line.
        decides: whether the result depends on it, so that a run goes on only with the same value.
        at_least, at_most: the least and the largest value, None for none.
        meanings: of the choices, where they do not speak for themselves.
        read: turns what is given into the value kept; None keeps it.
    """

    name: str
    default: Any
    text: str
    hint: Any
    written: Any
    decides: bool
    at_least: float | None
    at_most: float | None
    meanings: Mapping[Any, str]
    read: Callable[[Any], Any] | None

    @property
    def brief(self) -> str:
        """The first sentence of the text, as a sentence."""
        first = self.text.split(". ")[0].rstrip(".")
        # A value that begins a sentence is written as it must be given.
        word = first.split()[0].rstrip(":,")
        return f"{first if word in map(str, (*self.choices, self.default)) else first[0].upper() + first[1:]}."

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that it may have; empty where they are not listed."""
        return get_args(self.written) if get_origin(self.written) is Literal else ()

    def checked(self, value: Any) -> Any:
        """The value to keep.

        Raises:
            UserError: of the wrong type or out of its range.
        """
        alternatives = get_args(self.written) or (self.written,)
        if value is None and (self.default is None or type(None) in alternatives):
            return None
        if self.read is not None:
            value = self.read(value)
        plain = type(self.choices[0]) if self.choices else next(t for t in alternatives if t is not type(None))
        if plain in _PLAIN and self.read is None:
            value = self._plain(value, *_PLAIN[plain])
        if self.choices and value not in self.choices:
            said = [f"{c} ({self.meanings[c]})" if c in self.meanings else str(c) for c in self.choices]
            raise UserError(f"{self.name} must be {' or '.join(said)}, got {value!r}")
        if self.at_least is not None and not value >= self.at_least:
            raise UserError(f"{self.name} must be at least {self.at_least}, got {value}")
        if self.at_most is not None and not value <= self.at_most:
            raise UserError(f"{self.name} must be at most {self.at_most}, got {value}")
        return value

    def _plain(self, value: Any, convert: Callable[[Any], Any], what: str) -> Any:
        try:
            return convert(value)
        except TypeError:
            raise UserError(f"{self.name} must be {what}, got {value!r}") from None


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _real(value: Any) -> float:
    # NumPy's single precision is no `numbers.Real` by inheritance, but registers as one.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    return float(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_PLAIN: Mapping[type, tuple[Callable[[Any], Any], str]] = {
    int: (_whole, "a whole number"),
    float: (_real, "a number"),
    bool: (_switch, "True or False"),
    str: (_words, "text"),
}
