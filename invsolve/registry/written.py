"""A plugin with its parameters in one word of text, such as `gaussian:0.01`, as the command line and pipelines write it."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from invsolve import registry
from invsolve.errors import UserError
from invsolve.registry.parameters import parameters


def read_written(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """Read NAME, NAME:VALUE, NAME:VALUE,VALUE or NAME:key=value; values without a key are the parameters in their order.

    Args:
        kind: of the plugin, such as "noise".
        text: numbers, TOML such as [0.1, 0.2], or text as it stands.

    Returns:
        The registered name, and the parameters given; neither their types nor what is missing is checked.

    Raises:
        UserError: unknown name, or more values than parameters; says what the plugin takes.
    """
    name, colon, rest = text.partition(":")
    names = [p.name for p in parameters(registry.find(kind, name))]
    # A comma inside brackets belongs to a list.
    parts = re.split(r",(?![^\[]*\])", rest) if colon else []
    given: dict[str, Any] = {}
    free = iter(names)
    for part in parts:
        key, equals, value = part.partition("=")
        key, value = (key.strip(), value) if equals else (next(free, ""), part)
        if not key or not value.strip():
            raise UserError(f"{kind} {text!r}: write {name}:{','.join(n.upper() for n in names) or '(no parameters)'}")
        given[key] = read_value(value)
    return name, given


def read_value(text: str) -> Any:
    """A number, a TOML value, or the text itself."""
    for read in (int, float, lambda t: tomllib.loads(f"v = {t}")["v"]):
        try:
            return read(text)
        except (ValueError, RecursionError):  # also what tomllib raises
            continue
    return text.strip()
