"""The one door by which plugins enter, built-in and foreign alike: hooks, finding, parameters, checks, scaffolds."""

from invsolve.contracts.plugin import BrokenPluginWarning
from invsolve.registry.finding import (
    KINDS,
    aliases,
    available,
    find,
    find_any,
    import_file,
    load_file,
    manager,
    register,
    unload_files,
)

__all__ = [
    "KINDS",
    "BrokenPluginWarning",
    "aliases",
    "available",
    "find",
    "find_any",
    "import_file",
    "load_file",
    "manager",
    "register",
    "unload_files",
]
