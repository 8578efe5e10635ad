"""Files that steps take and give: where they are, what kind they are, and a hash of what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from h5py import is_hdf5

from invsolve import registry
from invsolve.api import hub
from invsolve.contracts.layout import Layout
from invsolve.datasets.hdf5 import open_readonly, other_files, replace
from invsolve.errors import UserError, suggestion
from invsolve.files.opening import find_layout
from invsolve.pipeline import steps
from invsolve.registry.written import files_in, with_absolute_files

#: A file that changed this short a time ago may change again within the clock's resolution.
_FRESH = 2.0


@dataclass(frozen=True)
class Product:
    """What a step gives to later ones: a file, and how it is to be read."""

    path: Path
    layout: str | None = None
    read: Mapping[str, Any] = field(default_factory=dict)


def locate(step: steps.Step, base: Path) -> steps.Step:
    """The step with its files as absolute paths: `path`, `prior`, and file names in `set`, `read` and `noise`."""
    changes: dict[str, Any] = {}
    for key, value in step:
        prior = key == "prior" and value is not None and not is_prior_name(value, base)
        if key == "path" or prior:
            changes[key] = str(_absolute(value, base))
        elif key == "noise" and value is not None:
            changes[key] = with_absolute_files(value, base)
        elif key in ("set", "read"):
            changes[key] = {name: _file_in(inner, base) for name, inner in value.items()}
    return step.model_copy(update=changes)


def is_prior_name(prior: str, base: Path) -> bool:
    """Whether a prior is named, perhaps with parameters or as of the hub, and not given as a file."""
    known = registry.available("prior")
    written = prior.partition(":")[0] in known and not (base / prior).exists()
    return prior in known or written or hub.is_hub_name(prior)


def _absolute(path: str, base: Path) -> Path:
    # Not resolved: a link may lead to a name without the ending that tells the format.
    return Path(os.path.normpath(base / Path(path).expanduser()))


def _file_in(value: Any, base: Path) -> Any:
    """A text that is the name of a file, with an ending, becomes its path; all else stays."""
    if isinstance(value, str) and Path(value).suffix and "\0" not in value and (base / value).is_file():
        return str(_absolute(value, base))
    return value


def files_of(step: steps.Step) -> set[Path]:
    """Every file and folder that a located step reads from outside."""
    single = (getattr(step, key, None) for key in ("path", "prior"))
    nested = (value for key in ("set", "read") for value in getattr(step, key, {}).values())
    texts = (value for value in (*single, *nested) if isinstance(value, str) and "\0" not in value)
    files = {Path(text) for text in texts if Path(text).is_absolute() and Path(text).exists()}
    return files | set(files_in(getattr(step, "noise", None) or ""))


def inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, wherever links lead."""
    return path.resolve().is_relative_to(folder.resolve())


def kinds_of(path: Path, layout: str | None) -> tuple[str, ...]:
    """What a file can be taken as: "images", "measurement", "result"; by its layout and names alone.

    Raises:
        UserError: there is no such file, or nothing recognises it.
    """
    if not path.exists():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = suggestion(path.name, there)
        raise UserError(f"{path}: no such file or folder.{near if 'Did you mean' in near else ''}")
    names = [layout] if layout is not None else find_layout(path)
    kinds = []
    for name in names[:1]:
        cls = registry.find("layout", name)
        for kind, method in (("measurement", "open"), ("images", "images")):
            if getattr(cls, method) is not getattr(Layout, method):
                kinds.append(kind)
    if not kinds:
        with open_readonly(path) as file:
            if "done" in file and "mean" in file:
                kinds.append("result")
            elif "x" in file:
                kinds.append("images")
    if not kinds:
        raise UserError(f"{path}: no known layout; 'invsolve inspect {path}' says what it could be")
    return tuple(kinds)


def files_with(path: Path, layout: str | None) -> list[Path]:
    """The files that are read with a file that a step loads: those that it leads to, or that its layout looks for beside it."""
    if path.is_dir():
        return []
    names = [layout] if layout is not None else find_layout(path)
    beside = [file for name in names[:1] for file in registry.find("layout", name).beside(path)]  # type: ignore[attr-defined]
    return [*(file for file in beside if file.is_file()), *(other_files(path) if is_hdf5(path) else [])]


class Hashes:
    """Hashes of whole files, remembered by size and time of change, so that a large file is read once.

    Args:
        folder: where they are remembered; None for not at all.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def of(self, path: Path) -> str:
        """The SHA-256 of a file, or of the names and hashes of all files in a folder.

        Raises:
            UserError: it cannot be read.
        """
        try:
            if path.is_dir():
                inside = sorted(p for p in path.rglob("*") if p.is_file())
                lines = [f"{p.relative_to(path).as_posix()} {self._file(p)}" for p in inside]
                return hashlib.sha256("\n".join(lines).encode()).hexdigest()
            return self._file(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); check that it is there, and its permissions"
            ) from None

    def _file(self, path: Path) -> str:
        stat = path.stat()
        name = str(path.resolve())
        state = [name, stat.st_size, stat.st_mtime_ns, stat.st_ino]
        memory = None if self.folder is None else self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.json"
        if memory is not None and (record := read_json(memory)).get("state") == state:
            return str(record["sha256"])
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if memory is not None and time.time() - stat.st_mtime > _FRESH:
            write_json(memory, {"state": state, "sha256": digest})
        return digest


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object; it appears under its name only when it is complete.

    Raises:
        UserError: the disk is full or the folder not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
        replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check space and permissions") from None
