"""Running the items of a run into one result file, or going on with its partial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from invsolve import api, engine
from invsolve.api.conformal import Calibrated
from invsolve.contracts.measurement import Measurement
from invsolve.datasets import hdf5
from invsolve.engine.reading import read_rows
from invsolve.errors import UserError
from invsolve.jobs.snapshot_file import SnapshotFile


@dataclass
class WithTruth:
    """A sink that adds the truth, where it is known, and calibrated intervals, if wanted, to each item on its way to a file."""

    measurement: Measurement
    inner: hdf5.ResultFile
    calibration: Calibrated | None = None

    def is_done(self, item: int) -> bool:
        return self.inner.is_done(item)

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None:
        truth = self.measurement.truth
        extra = {} if truth is None else {"truth": truth[item : item + 1][0]}
        if self.calibration is not None:
            extra |= self.calibration.intervals(arrays["mean"], arrays["std"])
        self.inner.write(item, {**arrays, **extra}, facts)


def keeper_of(
    run: engine.Run, out: Path, record: dict[str, Any], every: float, say: Callable[[str], None] = lambda line: None
) -> SnapshotFile:
    # Parts of a scan have one configuration; what one of them left is no use to another.
    return SnapshotFile(out, f"{record['config_sha256']} {run.items.start}:{run.items.stop}", every, say)


def run_into_file(
    run: engine.Run,
    out: Path,
    record: dict[str, Any],
    overwrite: bool,
    say: Callable[[str], None],
    every: float = 60.0,
    calibration: Calibrated | None = None,
) -> None:
    """Run the items of a run into one result file, or go on with its partial.

    Args:
        run: what to run; its keeper is set here.
        out: the result.
        record: of provenance.
        overwrite: replace a partial result of another configuration.
        say: told what is gone on from.
        every: seconds between snapshots.
        calibration: whose intervals are written beside the images, as diagnostics.

    Raises:
        Interrupted: asked to stop; says how many items are kept.
    """
    items, measurement = run.items, run.measurement
    run.keeper = keeper = keeper_of(run, out, record, every, say)
    result = hdf5.ResultFile.create(
        out, items, run.options.samples, record, overwrite, measurement.unit, input_items=len(measurement.y)
    )
    with result:
        sink = WithTruth(measurement, result, calibration)
        already = sum(sink.is_done(i) for i in items)
        if already:
            say(f"continuing: {already} of {len(items)} items were done before")
        try:
            # The slices of coupled volumes are not read ahead.
            if run.couples_items:
                _check_finite(run, sink)
            api.execute(run, sink)
        except (UserError, engine.NonFinite):
            if not any(sink.is_done(i) for i in items):
                result.discard()
                keeper.remove()
            raise
        except engine.Interrupted:
            done = sum(sink.is_done(i) for i in items)
            raise engine.Interrupted(
                f"stopped; {done} of {len(items)} items are kept, run the same command to go on"
            ) from None
        result.finish()
    keeper.remove()


def _check_finite(run: engine.Run, sink: WithTruth) -> None:
    """Read what is still to do once, so that NaN in the last volume is not found after a night."""
    for item in run.items:
        if not sink.is_done(item):
            read_rows(run.measurement, item, item + 1)
