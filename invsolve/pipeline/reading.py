"""Pipeline files: TOML, its top-level keys, and the changes that `--set` makes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic import ConfigDict

from invsolve.datasets.hdf5 import check_regular
from invsolve.errors import UserError, suggestion
from invsolve.pipeline import steps
from invsolve.pipeline.variables import is_open

#: Names that a step or variable may not have: they would be mistaken for something else.
_RESERVED_STEPS = ("name", "work", "plugins", "variables", "steps")
_RESERVED_VARIABLES = ("env", "branch")
#: Bytes of a pipeline file; and names with so many dots that they are an attack.
_LARGEST = 2**20
_NESTED = re.compile(r"(?:[A-Za-z0-9_'\"-]{1,64}[ \t]*\.[ \t]*){64}")
_PLAIN = "letters, digits, - and _, beginning with a letter"


class Document(pydantic.BaseModel):
    """A pipeline as it is written, not yet filled in."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    name: str = "pipeline"
    """What it is called in events and reports; default the file's name."""
    work: str = ""
    """Folder for everything that is computed, seen from the pipeline file; default NAME_runs."""
    plugins: list[str] = []
    """Python files with plugins of your own, seen from the pipeline file."""
    variables: dict[str, Any] = {}
    """Values that steps refer to as ${name}."""
    steps: dict[str, dict[str, Any]]
    """The steps, each a table [steps.NAME] with a key type."""


def read(path: Path, changes: Mapping[str, Any] | None = None) -> Document:
    """Read a pipeline file, and change values as `--set` does.

    Args:
        path: the TOML file.
        changes: dotted name -> value, see `change`.

    Raises:
        UserError: no such file, no TOML, an unknown key, or a change of something that is not there.
    """
    check_regular(path)
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= _LARGEST else ""
    except FileNotFoundError:
        near = suggestion(path.name, [p.name for p in path.parent.glob("*.toml")]) if path.parent.is_dir() else ""
        raise UserError(f"{path}: no such file.{near if 'Did you mean' in near else ''}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); give a TOML file") from None
    # Of names nested in names the parser walks through all for each.
    if size > _LARGEST or _NESTED.search(text):
        what = f"has {size} bytes" if size > _LARGEST else "nests names more than 64 deep"
        raise UserError(f"{path}: {what}, which no pipeline does; give a pipeline file")
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = error if isinstance(error, tomllib.TOMLDecodeError) else "values are nested too deep"
        raise UserError(f"{path}: is not TOML: {reason}") from None
    return check(change(raw, changes or {}), str(path), path.stem)


def check(raw: Mapping[str, Any], where: str, default_name: str) -> Document:
    """The top level of a pipeline, validated.

    Raises:
        UserError: an unknown key or step type, a wrong type, or a name that cannot be used.
    """
    for key in raw:
        if key not in Document.model_fields:
            keys = Document.model_fields
            hint = f" A step is a table [steps.{key}]." if isinstance(raw[key], Mapping) else ""
            raise UserError(f"{where}: unknown key {key!r}.{hint}{suggestion(key, keys)}")
    if not raw.get("steps"):
        raise UserError(f"{where}: has no steps; write tables such as [steps.scan] with a key type")
    try:
        document = Document(**{"name": default_name, **raw})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for kind, names, reserved in (
        ("step", document.steps, _RESERVED_STEPS),
        ("variable", document.variables, _RESERVED_VARIABLES),
    ):
        for name in names:
            if name in reserved:
                raise UserError(f"{where}: a {kind} cannot be called {name!r}; choose another name")
            if not (name[:1].isalpha() and name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
                raise UserError(f"{where}: {kind} {name!r}: a name has {_PLAIN}")
    for name, step in document.steps.items():
        _check_keys(where, name, step)
    return document


def _check_keys(where: str, name: str, step: Mapping[str, Any]) -> None:
    names = ", ".join(steps.TYPES)
    if "type" not in step:
        raise UserError(f"{where}: step {name!r} has no type; write type = one of {names}")
    if step["type"] not in steps.TYPES:
        raise UserError(
            f"{where}: step {name!r}: unknown type {step['type']!r}.{suggestion(str(step['type']), steps.TYPES)}"
        )
    cls = steps.TYPES[step["type"]]
    for key in step:
        if key not in cls.model_fields:
            raise UserError(
                f"{where}: step {name!r} ({step['type']}) has no key {key!r}.{suggestion(key, cls.model_fields)}"
            )
    for key, field in cls.model_fields.items():
        if field.is_required() and key not in step:
            raise UserError(f"{where}: step {name!r} ({step['type']}) needs {key} = ...: {field.description}")


def make(cls: type[steps.Step], values: Mapping[str, Any], where: str) -> steps.Step:
    """A step from its values.

    Raises:
        UserError: a value of the wrong type or out of its range.
    """
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        if not place:
            raise UserError(f"{where}: {what}") from None
        value = repr(first["input"])
        value = value if len(value) <= 40 else f"{value[:37]}..."
        description = cls.model_fields[str(first["loc"][0])].description or ""
        raise UserError(
            f"{where}: {place} = {value} is wrong: {what[:1].lower()}{what[1:]}. {description}".rstrip()
        ) from None


def change(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set values by their dotted names: `variables.angles`, `steps.recon.samples` or, shorter, `recon.samples`.

    Raises:
        UserError: there is no such step or variable, or the name leads through what is no table.
    """
    document = _copied(raw)
    for name, value in changes.items():
        parts = [part.strip() for part in name.split(".")]
        tables = document.get("steps", {})
        if parts[0] not in Document.model_fields:
            if parts[0] not in tables or len(parts) < 2:
                names = [*tables, "variables"]
                raise UserError(
                    f"--set {name}: there is no step {parts[0]!r}.{suggestion(parts[0], names)} Write STEP.KEY=VALUE"
                )
            parts.insert(0, "steps")
        if parts[0] in ("variables", "steps"):
            there = document.get(parts[0], {})
            if len(parts) < 2 or parts[1] not in there:
                one = parts[0].rstrip("s")
                missing = parts[1] if len(parts) > 1 else ""
                raise UserError(f"--set {name}: there is no {one} {missing!r}.{suggestion(missing, there)}")
        _put(document, parts, value, name)
    return document


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _put(table: dict[str, Any], parts: Sequence[str], value: Any, name: str) -> None:
    for depth, part in enumerate(parts[:-1]):
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict) or (is_open(inner) and "sweep" in inner):
            raise UserError(f"--set {name}: {'.'.join(parts[: depth + 1])} is no table; set it as a whole")
        table = inner
    table[parts[-1]] = value
