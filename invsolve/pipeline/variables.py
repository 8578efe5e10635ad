"""Values that are not written out: ${variable}, ${env:NAME} and {sweep = [...]}, and what they stand for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from invsolve.errors import UserError, suggestion

#: ${name}, ${name.key}, ${env:NAME}; $${ is a literal ${.
_REFERENCE = re.compile(r"(\$?)\$\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_LABEL = 40
#: Values and letters that one key of a step may stand for, with all that its variables refer to.
_LARGEST = 10**6


class EnvironmentText(str):
    """Text from the environment, which a step may read as a number."""


def is_sweep(value: Any) -> bool:
    """Whether a value stands for several."""
    return isinstance(value, Mapping) and set(value) == {"sweep"}


def is_open(value: Any) -> bool:
    """Whether anything in a value is still to be filled in."""
    if isinstance(value, str):
        return not isinstance(value, EnvironmentText) and bool(_REFERENCE.search(value))
    if isinstance(value, Mapping):
        return is_sweep(value) or any(is_open(v) for v in value.values())
    return isinstance(value, list | tuple) and any(is_open(v) for v in value)


def references(value: Any) -> Iterator[str]:
    """The names of the variables that a value refers to, env: ones left out."""
    if isinstance(value, str):
        for escaped, name in _REFERENCE.findall(value):
            if not escaped and not name.startswith("env:"):
                yield name.split(".")[0]
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from references(inner)


def sweeps_in(value: Any, where: str) -> Iterator[tuple[str, list[Any]]]:
    """Each sweep inside a value: the name of its axis, which is where it stands, and its values."""
    if is_sweep(value):
        if not isinstance(value["sweep"], list) or not value["sweep"]:
            raise UserError(f"{where}: sweep = {value['sweep']!r} must be a list of one value or more")
        if any(True for inner in value["sweep"] for _ in sweeps_in(inner, where)):
            raise UserError(f"{where}: a sweep cannot hold another sweep; give each its own place")
        yield where, value["sweep"]
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from sweeps_in(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for k, inner in enumerate(value):
            yield from sweeps_in(inner, f"{where}.{k}")


def labels(axis: str, values: list[Any]) -> list[str]:
    """A short readable name for each value of a sweep: its text, or the `name` of a table, or its position.

    Raises:
        UserError: two values would have one name.
    """
    texts: dict[str, None] = {}
    for k, value in enumerate(values):
        label = _label(value, k)
        if label in texts:
            raise UserError(
                f"sweep of {axis}: two values are both called {label!r}; leave one out, or make them tables with a key 'name'"
            )
        texts[label] = None
    return list(texts)


def _label(value: Any, position: int) -> str:
    if isinstance(value, Mapping):
        value = value.get("name", position)
    if isinstance(value, list):
        value = "_".join(map(str, value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9.+_-]+", "_", text).strip("_.")[:_LABEL] or str(position)


class Variables:
    """The table `[variables]` for one choice of every sweep.

    Args:
        table: as written; may refer to one another.
        chosen: axis -> the value it has here.
    """

    def __init__(self, table: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
        self.table, self.chosen = table, chosen
        self._size = 0

    def fill(self, value: Any, where: str, going: tuple[str, ...] = ()) -> Any:
        """A value with every reference and sweep replaced by what it stands for.

        Args:
            value: as written.
            where: for messages, and the name of the axis of a sweep that stands here.
            going: variables that are being filled in, to find circles.

        Raises:
            UserError: an unknown variable, one that refers to itself, an environment variable that is not set, or variables
                that refer to one another so often that what they stand for has no end in sight.
        """
        if not going:
            self._size = 0
        self._size += 1 + (len(value) if isinstance(value, str) else 0)
        if self._size > _LARGEST:
            raise UserError(
                f"{where}: stands for more than {_LARGEST} values and letters; variables multiply in it: use fewer"
            )
        if is_sweep(value):
            return self.fill(self.chosen[where], where, going)
        if isinstance(value, EnvironmentText):
            return value
        if isinstance(value, str):
            return self._text(value, where, going)
        if isinstance(value, Mapping):
            return {key: self.fill(inner, f"{where}.{key}", going) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.fill(inner, f"{where}.{k}", going) for k, inner in enumerate(value)]
        return value

    def _text(self, text: str, where: str, going: tuple[str, ...]) -> Any:
        whole = _REFERENCE.fullmatch(text)
        if whole and not whole.group(1):
            return self._value(whole.group(2), where, going)

        def part(match: re.Match[str]) -> str:
            if match.group(1):
                return match.group(0)[1:]
            value = self._value(match.group(2), where, going)
            if isinstance(value, Mapping | list):
                raise UserError(f"{where}: {match.group(0)} is a {_kind(value)}, which cannot be part of a text")
            said = str(value).lower() if isinstance(value, bool) else str(value)
            self._size += len(said)
            return said

        return _REFERENCE.sub(part, text)

    def _value(self, name: str, where: str, going: tuple[str, ...]) -> Any:
        if name.startswith("env:"):
            variable = name.removeprefix("env:")
            if variable not in os.environ:
                raise UserError(f"{where}: the environment variable {variable!r} is not set; export it first")
            return EnvironmentText(os.environ[variable])
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{where}: ${{{name}}} is no name of a variable; write ${{name}}, ${{name.key}} or ${{env:NAME}}"
            )
        first, *keys = name.split(".")
        if first not in self.table:
            raise UserError(
                f"{where}: unknown variable {first!r}.{suggestion(first, self.table) if self.table else _NONE}"
            )
        if first in going:
            raise UserError(f"variables refer to one another in a circle: {' -> '.join([*going, first])}")
        value = self.fill(self.table[first], first, (*going, first))
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                hint = suggestion(key, value) if isinstance(value, Mapping) else f" It is a {_kind(value)}."
                raise UserError(f"{where}: variable {first!r} has no key {key!r}.{hint}")
            value = value[key]
        return value


_NONE = " There is no table [variables]."


def _kind(value: Any) -> str:
    names = {dict: "table", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)


def axes_of(value: Any, where: str, table: Mapping[str, Any], seen: set[str] | None = None) -> list[str]:
    """The axes that a value depends on: sweeps that stand in it, and in the variables that it refers to.

    Args:
        value: as written.
        where: its place, which names the axis of a sweep there.
        table: the variables.
        seen: variables that were looked into.
    """
    seen = set() if seen is None else seen
    axes = [axis for axis, _ in sweeps_in(value, where)]
    for name in references(value):
        if name in table and name not in seen:
            seen.add(name)
            axes += axes_of(table[name], name, table, seen)
    return list(dict.fromkeys(axes))
