"""Opening a scan and putting its run together, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from invsolve import api, engine
from invsolve.api import choice
from invsolve.api.loading import noise as make_noise
from invsolve.contracts.prior import Prior
from invsolve.engine import slabs
from invsolve.files.opening import open_measurement
from invsolve.jobs.request import Request, read_slices
from invsolve.training import parallel


def prepare(
    request: Request, say: Callable[[str], None] = lambda line: None, team: parallel.Team | None = None
) -> engine.Run:
    """Open the scan and put the run together, checked; nothing is written.

    Args:
        request, say: as for `reconstruct_file`.
        team: the processes that share each volume; None is this one alone.

    Raises:
        UserError: the parts do not fit.
    """
    prior: Prior | None = api.load_prior(request.prior, self_test=request.self_test) if request.prior else None
    measurement = open_measurement(request.scan, request.layout, request.read)
    if request.noise is not None:
        measurement.noise = make_noise(request.noise)
    for note in measurement.notes:
        say(note)
    options = request.options if team is None else replace(request.options, device=team.device)
    run = api.plan(measurement, prior, request.strategy, options, request.parameters)
    run.only = read_slices(request.slices, len(measurement.y), request.scan)
    run.linear_too = True
    if run.couples_items and run.only is not None and len(run.items) < len(measurement.y):
        say(f"items {run.items.start}:{run.items.stop} are coupled with one another only, as a volume of their own")
    if team is not None:
        with choice.alternatives():
            slabs.share_volumes(run)
    low, high = run.scale.range
    unit = f" {measurement.unit}" if measurement.unit else ""
    if run.scale.origin == "estimated" and prior is not None:
        say(f"scale estimated from the data: prior's range is {low:.4g} .. {high:.4g}{unit}; --scale LOW:HIGH fixes it")
    if run.strategy.draws and options.samples == 1:
        say("one sample: the standard deviation is 0 by construction; --samples 8 gives an uncertainty")
    return run
