"""Packages that only some layouts need: imported when used, and named when missing."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from invsolve.errors import UserError


def need(module: str, extra: str, path: Path) -> ModuleType:
    """Import a package of an extra.

    Raises:
        UserError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{path}: reading it needs the package {module.split('.')[0]} ({error}); install it with pip install "
            f"'invsolve[{extra}]'"
        ) from None
