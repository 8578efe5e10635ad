"""What layouts of files that are no HDF5 share: packages that only some need, the first bytes, regular files alone."""

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


def head(path: Path, count: int = 256) -> bytes:
    """The first bytes of a file; nothing of what is no regular file (a pipe would wait for ever) or cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            return stream.read(count)
    except OSError:
        return b""


def check_regular(path: Path) -> None:
    """Refuse pipes, devices and sockets: reading one may wait for ever, or never end. And names no system can hold.

    Raises:
        UserError: the path is there and neither a file nor a folder, or cannot be looked at.
    """
    try:
        odd = path.exists() and not path.is_file() and not path.is_dir()
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)[:200]}: cannot be looked at ({error.args[-1]}); check the path") from None
    if odd:
        raise UserError(f"{path}: is a pipe, device or socket, expected a file; copy its content into a file first")
