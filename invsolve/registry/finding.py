"""Finding plugins: entry points of the group `invsolve` and single files, each loaded by itself so that none breaks the rest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from invsolve.contracts.plugin import PROJECT, BrokenPluginWarning
from invsolve.errors import UserError, suggestion
from invsolve.registry import hooks

KINDS = {
    "operator": "invsolve_operators",
    "strategy": "invsolve_strategies",
    "prior": "invsolve_priors",
    "layout": "invsolve_layouts",
    "noise": "invsolve_noises",
    "policy": "invsolve_policies",
}

_FILE_PREFIX = "invsolve_plugin_"


@cache
def manager() -> pluggy.PluginManager:
    """The plugin manager, with every installed plugin registered."""
    plugins = pluggy.PluginManager(PROJECT)
    plugins.add_hookspecs(hooks)
    seen: set[str] = set()
    for entry in importlib.metadata.entry_points(group=PROJECT):
        if entry.value in seen:
            continue
        seen.add(entry.value)
        try:
            register(plugins, entry.load(), entry.name)
        except Exception as error:
            origin = f"{entry.name} = {entry.value!r}" + (f" of {entry.dist.name}" if entry.dist else "")
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"plugin {origin} skipped: {reason}", BrokenPluginWarning, stacklevel=2)
    return plugins


def register(plugins: pluggy.PluginManager, module: Any, name: str) -> None:
    """Register one plugin module and check that its hooks exist; leaves nothing behind when it fails."""
    plugins.register(module, name=name)
    try:
        # Without this, a misspelt hook would pass silently.
        plugins.check_pending()
        if not plugins.get_hookcallers(module):
            raise UserError(
                f"plugin {name} has no hook; decorate one of {', '.join(KINDS.values())} with invsolve.hookimpl"
            )
    except Exception:
        plugins.unregister(module)
        raise


def load_file(path: str | Path) -> ModuleType:
    """Load a single .py file as a plugin.

    Raises:
        UserError: the file is missing, fails to import, or registers nothing.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise UserError(f"plugin file {str(path)!r} does not exist")
    # Two files of one name in different folders are two plugins.
    name = f"{_FILE_PREFIX}{file.stem}_{hashlib.sha256(bytes(file)).hexdigest()[:8]}"
    module = import_file(file, name)
    plugins = manager()
    for old in [p for p in plugins.get_plugins() if getattr(p, "__file__", None) == str(file)]:
        plugins.unregister(old)
    try:
        register(plugins, module, name)
    except (pluggy.PluginValidationError, UserError, ValueError) as error:
        raise UserError(f"plugin file {str(path)!r}: {' '.join(str(error).split())}") from None
    finally:
        _mapping.cache_clear()
    return module


def unload_files() -> None:
    """Forget all plugins that came from single files; installed ones stay."""
    for module in [m for m in manager().get_plugins() if str(manager().get_name(m)).startswith(_FILE_PREFIX)]:
        manager().unregister(module)
    _mapping.cache_clear()


def import_file(file: Path, name: str) -> ModuleType:
    """Import a Python file under a name of our own."""
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"plugin file {str(file)!r} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise UserError(f"plugin file {str(file)!r} failed to import: {type(error).__name__}: {error}") from error
    return module


@cache
def _mapping(kind: str) -> dict[str, type]:
    classes: dict[str, type] = {}
    hook = getattr(manager().hook, KINDS[kind])
    for implementation in hook.get_hookimpls():
        try:
            contributed = dict(implementation.function())
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            text = f"plugin {implementation.plugin_name} skipped: {reason}"
            warnings.warn(text, BrokenPluginWarning, stacklevel=2)
            continue
        for name, cls in contributed.items():
            if name in classes and classes[name] is not cls:
                text = f"{kind} {name!r} of plugin {implementation.plugin_name} skipped: that name is taken"
                warnings.warn(text, BrokenPluginWarning, stacklevel=2)
                continue
            classes[name] = cls
            cls.name = name
    return dict(sorted(classes.items()))


def aliases(kind: str) -> dict[str, str]:
    """Other names of what is registered of a kind, alias -> name, sorted. A class states its own in `aliases`."""
    names: dict[str, str] = {}
    known = available(kind)
    for name, cls in known.items():
        for alias in getattr(cls, "aliases", ()):
            if alias in known or alias in names:
                text = f"alias {alias!r} of {kind} {name!r} skipped: that name is taken"
                warnings.warn(text, BrokenPluginWarning, stacklevel=2)
                continue
            names[alias] = name
    return dict(sorted(names.items()))


def available(kind: str) -> dict[str, type]:
    """Everything registered of a kind, one of `KINDS`: name -> class, sorted by name."""
    return _mapping(kind)


def find(kind: str, name: str) -> type:
    """The class registered under `name`, which may be an alias.

    Raises:
        UserError: nothing is; the message lists near names.
    """
    known, others = available(kind), aliases(kind)
    if name not in known and name not in others:
        raise UserError(f"unknown {kind} {name!r}.{suggestion(name, [*known, *others])}")
    return known[others.get(name, name)]


def find_any(name: str) -> tuple[str, type]:
    """Kind and class of what is registered under a name or alias, whatever it is.

    Raises:
        UserError: nothing is; the message lists near names.
    """
    names: list[str] = []
    for kind in KINDS:
        here = {*available(kind), *aliases(kind)}
        if name in here:
            return kind, find(kind, name)
        names += here
    raise UserError(f"no plugin is called {name!r}.{suggestion(name, names)}")
