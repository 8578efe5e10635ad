"""From a scan file to a result file, on one process, several, or a cluster."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invsolve.api import closing, discrepancy
from invsolve.api.conformal import Calibrated, load_calibration
from invsolve.api.provenance import provenance
from invsolve.datasets import hdf5
from invsolve.engine import Run, slabs
from invsolve.errors import UserError
from invsolve.jobs.finished import check_same, is_complete
from invsolve.jobs.one_file import keeper_of, run_into_file
from invsolve.jobs.preparation import prepare
from invsolve.jobs.request import Request, refuse_existing
from invsolve.jobs.snapshot_file import SnapshotFile
from invsolve.training import parallel


def reconstruct_file(
    request: Request,
    say: Callable[[str], None] = lambda line: None,
    should_stop: Callable[[], bool] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Reconstruct every item of a file into a result file; the same call continues after a kill.

    Args:
        request: what to do.
        say: told one line at a time what was found in the file and decided.
        should_stop: asked after each step; True stops with the finished items kept.
        command: the command line, for the record.

    Started by `torchrun`, several processes share each volume; the first of them reads, writes and speaks.
    """
    team = parallel.join(str(request.options.device)) if parallel.started_together() else None
    try:
        return _reconstruct(request, say if parallel.rank() == 0 else lambda line: None, should_stop, command, team)
    finally:
        if team is not None:
            team.leave()


def _reconstruct(
    request: Request,
    say: Callable[[str], None],
    should_stop: Callable[[], bool] | None,
    command: str,
    team: parallel.Team | None,
) -> dict[str, Any]:
    from invsolve.jobs import shards

    # A kill after the result got its name, and the same command again: whether it is the same, the run must tell.
    finished = not request.overwrite and (team is None or team.leads) and is_complete(request.out)
    if team is None or team.leads:
        refuse_existing(request.out, request.overwrite or finished, request.scan)
    if team is not None:
        finished = bool(team.largest(float(finished))[0])
    run = prepare(request, say, team)
    run.should_stop = should_stop
    record = provenance(run) | {"command": command}
    calibration = _calibration(request, run, record)
    every = request.snapshot_every
    told = {"output": str(request.out), "items": len(run.items)}
    began = time.perf_counter()
    if finished and not run.processes.leads:
        return told | {"seconds": 0.0}
    if not run.processes.leads:
        run.keeper = keeper_of(run, request.out, record, every)
        run.execute(slabs.NullSink())
        return told | {"seconds": round(time.perf_counter() - began, 3)}
    if finished:
        check_same(request.out, run.items, record)
        say(f"{request.out}: was finished by the same command before; nothing is left to do")
        _remove_leftovers(request.out, run.items, record)
    elif request.workers is not None or request.scheduler is not None or shards.folder(request.out).exists():
        shards.reconstruct_in_shards(request, run, record, say)
    else:
        run_into_file(run, request.out, record, request.overwrite, say, every, calibration)
    seconds = round(time.perf_counter() - began, 3)
    kept = hdf5.read_result(request.out).diagnostics
    report = discrepancy.examine(kept, run)
    say(str(report))
    remarks = closing.remarks(kept, run.strategy)
    for line in remarks:
        say(line)
    # NaN where the noise is said to be zero, infinite where the run diverged; neither is JSON.
    ratio, spread = (value if math.isfinite(value) else None for value in (report.ratio, report.spread))
    judged = bool(report.warning) or not math.isnan(report.ratio)
    summary = {"ratio": ratio, "spread": spread, "warning": report.warning} if judged else None
    return told | {"seconds": seconds, "discrepancy": summary, "remarks": remarks}


def _calibration(request: Request, run: Run, record: dict[str, Any]) -> Calibrated | None:
    """The conformal factors that are wanted, checked against the run.

    Raises:
        UserError: they were made with another run, or are of no use to this one.
    """
    if request.calibration is None:
        return None
    if request.workers is not None or request.scheduler is not None:
        raise UserError("--calibration is for one process: leave --workers and --scheduler out")
    factors = load_calibration(request.calibration)
    factors.check(record)
    if not run.strategy.draws:
        raise UserError("--calibration scales the samples' spread, and this strategy draws none; take one that draws")
    return factors


def _remove_leftovers(out: Path, items: range, record: dict[str, Any]) -> None:
    """Remove what a kill between the result's name and the end of the run left beside it."""
    from invsolve.jobs import shards

    if shards.belong(out, items, record):
        shutil.rmtree(shards.folder(out), ignore_errors=True)
        hdf5.partial_path(out).unlink(missing_ok=True)
    SnapshotFile(out, record["config_sha256"]).remove()
