"""The key of a job: a hash of everything that its output depends on, and what changed when it is another."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import invsolve
from invsolve.api import hub
from invsolve.datasets.hdf5 import differences
from invsolve.pipeline import steps
from invsolve.pipeline.files import Hashes, files_with
from invsolve.registry.written import files_in

_SOURCES = (".py", ".safetensors", ".json", ".txt")


@cache
def code_version() -> str:
    """invsolve's version and a hash of its source and bundled weights, the command line left out."""
    digest = hashlib.sha256()
    # The folders of plugins are read as files, not imported; in a checkout they lie beside the package.
    for package in ("", ".operators", ".plugins", ".datasets"):
        spec = importlib.util.find_spec(f"{invsolve.__name__}{package}")
        assert spec is not None
        root = Path(str(spec.origin)).parent
        for file in sorted(p for p in root.rglob("*") if p.suffix in _SOURCES and p.is_file()):
            name = file.relative_to(root).as_posix()
            if not name.startswith("cli/"):
                digest.update(f"{package}/{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return f"{invsolve.__version__}+{digest.hexdigest()[:16]}"


@cache
def installed_plugins() -> dict[str, str]:
    """Plugins that other packages installed: name -> version and a hash of the module."""
    versions = {}
    for entry in importlib.metadata.entry_points(group="invsolve"):
        if entry.dist is None or entry.dist.name == "invsolve":
            continue
        spec = importlib.util.find_spec(entry.module)
        origin = Path(spec.origin) if spec is not None and spec.origin else None
        content = hashlib.sha256(origin.read_bytes()).hexdigest()[:16] if origin and origin.is_file() else ""
        versions[entry.name] = f"{entry.dist.name} {entry.dist.version} {content}"
    return versions


def ingredients(
    step: steps.Step, inputs: Mapping[str, str], plugin_files: Sequence[Path], hashes: Hashes
) -> dict[str, Any]:
    """Everything that the output of a step depends on, as JSON.

    Args:
        step: filled in, its files as absolute paths.
        inputs: parameter -> key of the job whose output it takes.
        plugin_files: of the pipeline.
        hashes: of files.
    """
    left_out = {"type", *step.free, *step.inputs}
    values = {key: _content(value, hashes) for key, value in step if key not in left_out}
    for file in files_in(values.get("noise") or ""):
        values["noise"] = values["noise"].replace(str(file), f"file {hashes.of(file)}")
    if hub.is_hub_name(str(values.get("prior"))):
        # A branch moves; what it is now is a commit.
        values["prior"] = str(hub.pinned(hub.place(values["prior"])))
    parts: dict[str, Any] = {"type": step.type, "parameters": values, "inputs": dict(inputs), "code": code_version()}
    if isinstance(step, steps.Load):
        parts["content"] = hashes.of(Path(step.path))
        # A file that was moved has the same content: the names of those beside it do not count.
        parts |= {"beside": sorted(map(hashes.of, files_with(Path(step.path), step.layout)))}
    parts["plugins"] = installed_plugins() | {file.name: hashes.of(file) for file in plugin_files}
    # A curve beside a checkpoint of a foreign format changes how it is used.
    prior = getattr(step, "prior", None)
    if prior is not None and Path(prior).is_absolute():
        curve, side_file = Path(f"{prior}.error_curve.json"), Path(prior).with_suffix(".json")
        parts |= {"error_curve": hashes.of(curve)} if curve.is_file() else {}
        parts |= {"side_file": hashes.of(side_file)} if side_file.is_file() else {}
    return json.loads(json.dumps(parts, default=str))


def _content(value: Any, hashes: Hashes) -> Any:
    """A parameter, with files replaced by a hash of what is in them: a file that moved is the same."""
    if isinstance(value, str) and Path(value).is_absolute() and Path(value).exists():
        return f"file {hashes.of(Path(value))}"
    if isinstance(value, Mapping):
        return {str(key): _content(inner, hashes) for key, inner in value.items()}
    return str(value) if isinstance(value, str) else value


def key_of(facts: Mapping[str, Any]) -> str:
    """The key, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def why(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between the ingredients of two runs, in a few words."""
    return "; ".join(list(dict.fromkeys(_reasons(old, new)))[:3])


def _reasons(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if old.get("type") != new.get("type"):
        yield f"type {old.get('type')} -> {new.get('type')}"
    for line in differences("", old.get("parameters"), new.get("parameters")):
        yield "a file changed" if '"file ' in line else line.removeprefix(".")
    for key, source in new.get("inputs", {}).items():
        if (old.get("inputs") or {}).get(key) != source:
            yield f"{key} changed"
    for part, reason in (
        ("content", "the file changed"),
        ("beside", "a file that is read with it changed"),
        ("side_file", "the prior's side file changed"),
        ("code", "invsolve changed"),
        ("plugins", "a plugin changed"),
        ("error_curve", "the prior's error curve changed"),
    ):
        if old.get(part) != new.get(part):
            yield reason
