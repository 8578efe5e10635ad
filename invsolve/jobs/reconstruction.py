"""From a scan file to a result file, on one process, several, or a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from invsolve.api import discrepancy
from invsolve.api.provenance import provenance
from invsolve.datasets import hdf5
from invsolve.engine import slabs
from invsolve.jobs.one_file import keeper_of, run_into_file
from invsolve.jobs.preparation import prepare
from invsolve.jobs.request import Request, refuse_existing
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

    if team is None or team.leads:
        refuse_existing(request.out, request.overwrite, request.scan)
    run = prepare(request, say, team)
    run.should_stop = should_stop
    record = provenance(run) | {"command": command}
    every = request.checkpoint_every
    told = {"output": str(request.out), "items": len(run.items)}
    began = time.perf_counter()
    if not run.processes.leads:
        run.keeper = keeper_of(run, request.out, record, every)
        run.execute(slabs.NullSink())
        return told | {"seconds": round(time.perf_counter() - began, 3)}
    if request.workers is not None or request.scheduler is not None or shards.folder(request.out).exists():
        shards.reconstruct_in_shards(request, run, record, say)
    else:
        run_into_file(run, request.out, record, request.overwrite, say, every)
    seconds = round(time.perf_counter() - began, 3)
    kept = hdf5.read_result(request.out).diagnostics
    found = discrepancy.examine(np.asarray(kept["discrepancy"]), np.asarray(kept["discrepancy_dof"]), run)
    say(str(found))
    judged = found.ratio == found.ratio  # NaN where the noise is said to be zero, and NaN is no JSON
    summary = {"ratio": found.ratio, "spread": found.spread, "warning": found.warning} if judged else None
    return told | {"seconds": seconds, "discrepancy": summary}
