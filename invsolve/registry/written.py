"""A plugin with its parameters in one word of text, such as `gaussian:0.01`, as the command line and pipelines write it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from invsolve import registry
from invsolve.contracts.arguments import ARRAY_FILES
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
    given: dict[str, Any] = {}
    free = iter(names)
    for part in _parts(rest) if colon else []:
        key, value = _pair(part)
        key = key or next(free, "")
        if not key or not value.strip():
            raise UserError(f"{kind} {text!r}: write {name}:{','.join(n.upper() for n in names) or '(no parameters)'}")
        if key in given:
            raise UserError(f"{kind} {text!r}: {key} is given twice; give it once")
        given[key] = read_value(value)
    return name, given


def with_absolute_files(text: str, base: Path) -> str:
    """The same text with every value that is the name of a file of an array in `base` as its absolute path."""
    name, colon, rest = text.partition(":")
    parts = []
    for part in _parts(rest):
        key, value = _pair(part)
        if _names_file(value):
            file = base / Path(value.strip()).expanduser()
            value = str(file.absolute()) if file.is_file() else value
        parts.append(f"{key}={value}" if key else value)
    return name + colon + ",".join(parts)


def files_in(text: str) -> list[Path]:
    """The files of arrays that exist among the values of such a text."""
    values = (_pair(part)[1].strip() for part in _parts(text.partition(":")[2]))
    return [Path(value) for value in values if _names_file(value) and Path(value).is_file()]


def _names_file(value: str) -> bool:
    return value.strip().lower().endswith(ARRAY_FILES) and "\0" not in value


def _parts(text: str) -> list[str]:
    """The texts between commas, but for those inside brackets, which belong to a list."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _pair(part: str) -> tuple[str, str]:
    """Key and value of `key=value`; an empty key where there is the value alone."""
    key, equals, value = part.partition("=")
    return (key.strip(), value) if equals and key.strip().isidentifier() else ("", part)


def read_value(text: str) -> Any:
    """A number, a TOML value, or the text itself."""
    for read in (int, float, lambda t: tomllib.loads(f"v = {t}")["v"]):
        try:
            return read(text)
        except (ValueError, RecursionError):  # also what tomllib raises
            continue
    return text.strip()
