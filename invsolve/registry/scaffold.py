"""Writing a new plugin to start from: one working file and its test, from the templates beside this module."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template
from typing import Literal

from invsolve import registry
from invsolve.errors import UserError

Kind = Literal["operator", "strategy", "prior", "layout", "noise", "policy"]

_TEMPLATES = Path(__file__).with_name("templates")
#: What the test of each kind calls.
_CHECKS: dict[str, str] = {
    "operator": 'testing.check_operator(invsolve.operator("$name", **parameters))',
    "strategy": 'testing.check_strategy(invsolve.strategy("$name", **parameters))',
    "prior": 'testing.check_prior(invsolve.load_prior("$name", **parameters))',
    "layout": "testing.check_layout(plugin.$class_name(**parameters), invsolve.make)",
    "noise": 'testing.check_noise(invsolve.noise("$name", **parameters))',
    "policy": 'testing.check_policy(invsolve.policy("$name", **parameters))',
}


def write_plugin(name: str, kind: Kind, folder: Path) -> list[Path]:
    """Write `<folder>/<name>.py`, a working plugin, and `<folder>/test_<name>.py`, which holds it to its promises.

    Args:
        name: what it is registered as; letters, digits, hyphens. "my-scanner" becomes class MyScanner in my_scanner.py.
        kind: what to write.
        folder: where to; made if it is missing.

    Returns:
        The two files.

    Raises:
        UserError: a name that cannot be used or is taken, or a file that exists; nothing is written then.
    """
    if kind not in _CHECKS:
        raise UserError(f"kind of plugin must be one of {', '.join(_CHECKS)}, got {kind!r}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*", name):
        raise UserError(
            f"plugin name {name!r}: use letters, digits and single hyphens, a letter first, such as my-scanner"
        )
    module = name.replace("-", "_")
    class_name = "".join(part[0].upper() + part[1:] for part in name.split("-"))
    texts = {f"{module}.py": _read(kind), f"test_{module}.py": _read("test")}
    _check_free(name, kind, class_name, texts[f"{module}.py"])
    files = [folder / file for file in texts]
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists and is left as it is; choose another name or folder, or remove it")
    if importlib.util.find_spec(module) is not None:
        raise UserError(
            f"plugin name {name!r}: a file {module}.py would hide the Python module {module!r}; choose another name"
        )
    values = {"name": name, "kind": kind, "module": module, "class_name": class_name}
    values["check"] = Template(_CHECKS[kind]).substitute(values)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in zip(files, texts.values(), strict=True):
            file.write_text(Template(text).substitute(values), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to: {error.strerror}") from None
    return files


def _read(template: str) -> str:
    return (_TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")


def _check_free(name: str, kind: str, class_name: str, template: str) -> None:
    """Refuse a name that is registered, or whose class would clash with a name that the file imports."""
    if name in registry.available(kind) or name in registry.aliases(kind):
        raise UserError(f"{kind} {name!r} is registered already; choose another name")
    if keyword.iskeyword(class_name) or re.search(rf"^from .* import .*\b{class_name}\b", template, re.MULTILINE):
        raise UserError(
            f"plugin name {name!r}: the class {class_name} would clash with Python's or ours; choose another name"
        )
