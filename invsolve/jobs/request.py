"""What `reconstruct_file` is asked for, and the texts of the command line that stand for ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invsolve.contracts.scale import Scale
from invsolve.datasets.hdf5 import check_name
from invsolve.errors import UserError


@dataclass(frozen=True)
class Request:
    """What `reconstruct_file` is asked for; the fields are the command's options."""

    scan: Path
    out: Path
    prior: str | None
    strategy: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 1
    seed: int = 0
    batch_size: int | None = None
    device: str = "cpu"
    noise: str | None = None
    scale: str | Scale | None = None
    layout: str | None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    slices: str | None = None
    workers: int | None = None
    scheduler: str | None = None
    plugins: tuple[Path, ...] = ()
    noise_correlation: float = 0.0
    planes: int = 1
    precision: str = "float32"
    checkpoint_every: float = 60.0


def read_scale(text: str | None) -> tuple[float, float] | str | None:
    """The values that "LOW:HIGH" names; "auto" and None as they are.

    Raises:
        UserError: not of that form.
    """
    if text is None or text == "auto":
        return text
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise UserError(f"--scale {text!r}: write LOW:HIGH, such as 0:0.03, or auto") from None


def read_slices(text: str | None, count: int, source: Path) -> range | None:
    """The items that "START:STOP" names; either side may be left out.

    Raises:
        UserError: not of that form, or beyond the items of the file.
    """
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        items = range(int(low or 0), int(high or count) if colon else int(low) + 1)
    except ValueError:
        raise UserError(f"--slices {text!r}: write START:STOP, such as 10:50 for items 10 to 49") from None
    if not 0 <= items.start < items.stop <= count:
        raise UserError(f"--slices {text!r}: {source} has items 0:{count}; give START:STOP within them")
    return items


def refuse_existing(out: Path, overwrite: bool, source: Path) -> None:
    check_name(out)
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: the output would replace the input; choose another name")
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {str(out.parent)!r} does not exist; create it first")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; give --overwrite to replace it")
