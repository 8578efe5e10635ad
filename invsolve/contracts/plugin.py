"""How plugins enter: the marker of their hooks, and the collecting of a package's classes for one of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings

import pluggy

PROJECT = "invsolve"
hookimpl = pluggy.HookimplMarker(PROJECT)


class BrokenPluginWarning(UserWarning):
    """An installed plugin could not be loaded and was skipped."""


def collect(package: str, kind: type) -> dict[str, type]:
    """The classes of a kind that the modules of a package define, by the `name` that each class states.

    One hook then serves a whole package, and a new plugin is a new file in it:

        @invsolve.hookimpl
        def invsolve_strategies():
            return invsolve.collect(__name__, invsolve.Strategy)

    Packages inside it are looked through too; modules whose name begins with an underscore are left out. A module that
    cannot be imported is skipped with a warning, so that it does not take the others with it.

    Args:
        package: its import path, `__name__` in its `__init__.py`.
        kind: `invsolve.Operator`, `Strategy`, `Prior`, `Layout`, `Noise` or `Policy`.

    Warns:
        BrokenPluginWarning: a module that was skipped, and a name that two classes state.
    """
    classes: dict[str, type] = {}
    for module_name in _modules(package):
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            warnings.warn(f"plugin {module_name} skipped: {type(error).__name__}: {error}", BrokenPluginWarning, 2)
            continue
        for cls in vars(module).values():
            mine = inspect.isclass(cls) and issubclass(cls, kind) and cls.__module__ == module_name
            name = vars(cls).get("name") if mine and not cls.__name__.startswith("_") else None
            if not isinstance(name, str) or not name:
                continue
            if classes.setdefault(name, cls) is not cls:
                warnings.warn(
                    f"{module_name}: {cls.__name__} skipped: the name {name!r} is taken", BrokenPluginWarning, 2
                )
    return classes


def _modules(package: str) -> list[str]:
    """Import paths of the modules in a package and the packages inside it, sorted."""
    paths = importlib.import_module(package).__path__
    names: list[str] = []
    for module in pkgutil.iter_modules(paths, f"{package}."):
        if not module.name.rpartition(".")[2].startswith("_"):
            names += _modules(module.name) if module.ispkg else [module.name]
    return sorted(names)
