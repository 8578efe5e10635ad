"""A result that is there already: of the same command, which is then finished, or of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invsolve.datasets import hdf5
from invsolve.errors import UserError


def is_complete(out: Path) -> bool:
    """Whether a result of this name has all of its items."""
    part = hdf5.glance(out) if out.is_file() else None
    return part is not None and bool(part.items) and part.done == part.items


def check_same(out: Path, items: range, record: dict[str, Any]) -> None:
    """Refuse a result that another command made.

    Raises:
        UserError: it has another configuration, other items, or is by another version.
    """
    part = hdf5.glance(out)
    with hdf5.open_readonly(out) as file:
        version = hdf5.text(file.attrs.get("invsolve_version", ""))
    same = part is not None and (part.config_sha256, part.items) == (record["config_sha256"], list(items))
    if not same or version != record["versions"]["invsolve"]:
        raise UserError(f"{out} exists, made by another command or version; give --overwrite to replace it")
