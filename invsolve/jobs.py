"""The jobs behind the command line and pipelines that write files: simulate, reconstruct, evaluate, sample."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import invsolve
from invsolve import api, discrepancy, engine, metrics, sampling, slabs
from invsolve.checkpoints import CheckpointFile
from invsolve.contracts.layout import Measurement
from invsolve.contracts.noise import noise_from_text
from invsolve.contracts.prior import Prior
from invsolve.contracts.scale import Scale
from invsolve.datasets import own
from invsolve.errors import UserError
from invsolve.opening import open_images, open_measurement
from invsolve.provenance import plain, provenance, scatters_like_posterior
from invsolve.reading import read_rows
from invsolve.simulated import SimulatedScan
from invsolve.training import parallel


def simulate_file(
    truth: Path,
    out: Path,
    operator: str,
    parameters: Mapping[str, Any],
    noise: str,
    seed: int,
    overwrite: bool,
    layout: str | None = None,
    read: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure every image of a file, and write a scan file with the truth beside the measurement."""
    opened = open_images(truth, layout, read)
    refuse_existing(out, overwrite, truth)
    forward = api.operator(operator, **api.fill_image_size(operator, parameters, opened.x[0:1].shape[-1]))
    scan = SimulatedScan(opened.x, forward, noise_from_text(noise), seed, str(truth))
    own.write_scan(out, scan, forward, scan.noise, truth=scan.truth, unit=opened.unit, volumes=opened.volumes)
    shape = list(scan[0:1].shape[1:])
    return {"output": str(out), "items": len(scan), "measurement_shape": shape, "noise": noise, "seed": seed}


@dataclass
class WithTruth:
    """A sink that adds the truth, where it is known, to each item on its way to a file."""

    measurement: Measurement
    inner: own.ResultFile

    def is_done(self, item: int) -> bool:
        return self.inner.is_done(item)

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None:
        truth = self.measurement.truth
        extra = {} if truth is None else {"truth": truth[item : item + 1][0]}
        self.inner.write(item, {**arrays, **extra}, facts)


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
    coherence: float = 0.0
    slicings: int = 1
    precision: str = "float32"
    checkpoint_every: float = 60.0


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
    team = parallel.join(request.device) if parallel.started_together() else None
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
    from invsolve import shards

    if team is None or team.leads:
        refuse_existing(request.out, request.overwrite, request.scan)
    run = prepare(request, say, team)
    run.should_stop = should_stop
    record = provenance(run) | {"command": command}
    every = request.checkpoint_every
    told = {"output": str(request.out), "items": len(run.items)}
    began = time.perf_counter()
    if not run.team.leads:
        run.keeper = _keeper(run, request.out, record, every)
        run.execute(slabs.Nowhere())
        return told | {"seconds": round(time.perf_counter() - began, 3)}
    if request.workers is not None or request.scheduler is not None or shards.folder(request.out).exists():
        shards.reconstruct_in_shards(request, run, record, say)
    else:
        run_into_file(run, request.out, record, request.overwrite, say, every)
    seconds = round(time.perf_counter() - began, 3)
    kept = own.read_result(request.out).diagnostics
    found = discrepancy.examine(np.asarray(kept["discrepancy"]), np.asarray(kept["discrepancy_numbers"]), run)
    say(str(found))
    judged = found.ratio == found.ratio  # NaN where the noise is said to be zero, and NaN is no JSON
    summary = {"ratio": found.ratio, "spread": found.spread, "warning": found.warning} if judged else None
    return told | {"seconds": seconds, "discrepancy": summary}


def prepare(
    request: Request, say: Callable[[str], None] = lambda line: None, team: parallel.Team | None = None
) -> engine.Run:
    """Open the scan and put the run together, checked; nothing is written.

    Args:
        request, say: as for `reconstruct_file`.
        team: the processes that share each volume; None is this one alone.

    Raises:
        UserError: the parts do not fit, or a part of a coupled volume is asked for.
    """
    prior: Prior | None = api.load_prior(request.prior) if request.prior else None
    measurement = open_measurement(request.scan, request.layout, request.read)
    if request.noise is not None:
        measurement.noise = noise_from_text(request.noise)
    for note in measurement.notes:
        say(note)
    given = request.scale
    run = api.plan(
        measurement,
        prior,
        request.strategy,
        request.samples,
        request.seed,
        request.batch_size,
        request.device if team is None else team.device,
        scale=given if isinstance(given, Scale) else read_scale(given),
        parameters_=request.parameters,
        coherence=request.coherence,
        slicings=request.slicings,
        precision=request.precision,
    )
    run.only = read_slices(request.slices, len(measurement.y), request.scan)
    run.linear_too = True
    if run.couples_items:
        _refuse_parts(run, request)
    if team is not None:
        slabs.share_volumes(run)
    low, high = run.scale.range
    unit = f" {measurement.unit}" if measurement.unit else ""
    if run.scale.origin == "estimated" and prior is not None:
        say(f"scale estimated from the data: prior's range is {low:.4g} .. {high:.4g}{unit}; --scale LOW:HIGH fixes it")
    if run.strategy.draws and request.samples == 1:
        say("one sample: the standard deviation is 0 by construction; --samples 8 gives an uncertainty")
    return run


def _refuse_parts(run: engine.Run, request: Request) -> None:
    asked = {"--slices": request.slices, "--workers": request.workers, "--scheduler": request.scheduler}
    for option, value in asked.items():
        if value is not None:
            name = run.strategy.name or type(run.strategy).__name__
            raise UserError(
                f"{option} cuts a scan into parts, but strategy {name!r} couples all slices of a volume: leave {option} "
                "out, or take a strategy that reconstructs items one by one, such as dds"
            )


def _keeper(
    run: engine.Run, out: Path, record: dict[str, Any], every: float, say: Callable[[str], None] = lambda line: None
) -> CheckpointFile:
    # Parts of a scan have one configuration; what one of them left is no use to another.
    return CheckpointFile(out, f"{record['config_sha256']} {run.items.start}:{run.items.stop}", every, say)


def run_into_file(
    run: engine.Run,
    out: Path,
    record: dict[str, Any],
    overwrite: bool,
    say: Callable[[str], None],
    every: float = 60.0,
) -> None:
    """Run the items of a run into one result file, or go on with its partial.

    Args:
        run: what to run; its keeper is set here.
        out: the result.
        record: of provenance.
        overwrite: replace a partial result of another configuration.
        say: told what is gone on from.
        every: seconds between checkpoints.

    Raises:
        Interrupted: asked to stop; says how many items are kept.
    """
    items, measurement = run.items, run.measurement
    run.keeper = keeper = _keeper(run, out, record, every, say)
    result = own.ResultFile.create(
        out, items, run.samples, record, overwrite, measurement.unit, input_items=len(measurement.y)
    )
    with result:
        sink = WithTruth(measurement, result)
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


def evaluate_file(recon: Path, truth: Path | None, data_range: float | None) -> dict[str, Any]:
    """Score a result against a truth file, or against the truth it carries; also its linear baseline if it has one."""
    result = own.read_result(recon)
    reference = open_images(truth).x if truth is not None else result.truth
    if reference is None:
        raise UserError(f"{recon} carries no truth: give --truth IMAGES.h5")
    reference = result.matching(reference)
    # Two channels against one: a complex image and its magnitude, as scanners store it.
    magnitude = result.mean[0:1].shape[1] == 2 and reference[0:1].shape[1] == 1
    span = data_range or metrics.data_range(reference)
    uncertain = result.samples.shape[1] > 1 and not magnitude and scatters_like_posterior(result.config)
    rows: list[dict[str, float]] = []
    linear: list[dict[str, float]] = []
    for i in range(len(result.mean)):
        target, mean, std = reference[i : i + 1][0], result.mean[i : i + 1][0], result.std[i : i + 1][0]
        spread = std if uncertain else None
        if magnitude:
            mean = mean.norm(dim=0, keepdim=True)
        rows.append(metrics.score(mean, target, span, spread, result.samples.shape[1]))
        if result.pinv is not None:
            image = result.pinv[i : i + 1][0]
            linear.append(metrics.score(image.norm(dim=0, keepdim=True) if magnitude else image, target, span))
    summary: dict[str, Any] = {"items": rows, "which": result.items, "mean": metrics.average(rows), "data_range": span}
    if linear:
        summary["pinv"] = metrics.average(linear)
    return summary


def sample_file(
    prior: str,
    out: Path,
    count: int,
    size: int | None,
    solver: str,
    steps: int,
    seed: int,
    batch_size: int,
    device: str,
    overwrite: bool,
    command: str = "",
) -> dict[str, Any]:
    """Draw images from a prior into an image file, with what they were drawn by in its attributes."""
    refuse_existing(out, overwrite, Path(prior))
    loaded = api.load_prior(prior)
    shape = sampling.image_shape(loaded, size)
    began = time.perf_counter()
    images = sampling.sample(loaded, count, shape, solver, steps, seed, batch_size, device)
    if not bool(images.isfinite().all()):
        raise engine.NonFinite(f"solver {solver!r} diverged on this prior; take more steps or another solver")
    config = {
        "prior": {
            "name": prior,
            "parameters": plain(loaded.parameters_given or {}),
            "sha256": loaded.fingerprint(),
            "source": loaded.source,
        },
        "solver": solver,
        "steps": steps,
        "command": command,
    }
    attributes: dict[str, str | int] = {"invsolve_version": invsolve.__version__, "seed": seed}
    attributes["config"] = json.dumps(config)
    own.write_images(out, images, loaded.unit, overwrite, attributes)
    seconds = round(time.perf_counter() - began, 3)
    return {"output": str(out), "items": count, "image_shape": list(shape), "seconds": seconds}


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
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: the output would replace the input; choose another name")
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {str(out.parent)!r} does not exist; create it first")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; give --overwrite to replace it")
