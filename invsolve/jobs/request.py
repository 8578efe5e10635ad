"""What `reconstruct_file` is asked for, and the text of the command line that stands for a range of items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invsolve.datasets.hdf5 import check_name
from invsolve.engine.options import Options
from invsolve.errors import UserError


@dataclass(frozen=True)
class Request:
    """What `reconstruct_file` is asked for: which file becomes which, with what, and how the work is done.

    Args:
        scan, out: measurement and result file; the same request continues after a kill.
        prior: registered name or checkpoint file; None for strategies that need none.
        strategy: registered name, or "auto".
        parameters: of the strategy.
        options: of the reconstruction.
        noise: "gaussian:SIGMA" or "poisson:GAIN", where the file does not say.
        layout, read: of the scan, where it is not recognised, and how to read it.
        overwrite: replace `out`, and a partial result of another configuration.
        slices: "START:STOP", only these items.
        workers, scheduler: Dask's processes to start, or the address of a scheduler that has some.
        plugins: plugin files, for those workers.
        self_test: whether a foreign checkpoint is tested first, where it has not been.
        snapshot_every: seconds between snapshots.
        calibration: file of conformal factors (`evaluate --write-calibration`); the result gets their intervals, too.
    """

    scan: Path
    out: Path
    prior: str | None
    strategy: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    noise: str | None = None
    layout: str | None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    slices: str | None = None
    workers: int | None = None
    scheduler: str | None = None
    plugins: tuple[Path, ...] = ()
    snapshot_every: float = 60.0
    self_test: bool = True
    calibration: Path | None = None


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
