"""The jobs behind the command line and pipelines that write files: simulate, reconstruct, evaluate, sample."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import invsolve
from invsolve import api, discrepancy, engine, metrics, registry, sampling, slabs
from invsolve.checkpoints import CheckpointFile
from invsolve.contracts.layout import Images, Layout, Measurement
from invsolve.contracts.noise import Gaussian, noise_from_text
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.prior import Prior
from invsolve.datasets import own
from invsolve.datasets._hdf5 import fingerprint, open_readonly
from invsolve.errors import UserError
from invsolve.parameters import build
from invsolve.provenance import plain, provenance
from invsolve.training import parallel


def find_layout(path: Path) -> list[str]:
    """Names of the registered layouts that recognise a file, or a folder.

    Raises:
        UserError: nothing recognises what is no HDF5, or the file cannot be opened.
    """
    known, path = registry.available("layout"), Path(path)
    if path.exists():
        by_name = [name for name, cls in known.items() if cls.opens(path)]  # type: ignore[attr-defined]
        if by_name:
            return by_name
    with open_readonly(path) as file:
        return [name for name, cls in known.items() if cls.recognises(file)]  # type: ignore[attr-defined]


def open_measurement(path: Path, layout: str | None = None, options: Mapping[str, Any] | None = None) -> Measurement:
    """Open a measurement file with the layout that recognises it.

    Args:
        path: the file.
        layout: name of a registered layout; None asks each whether it recognises the file.
        options: the layout's parameters, such as {"thin": 4} for dxchange.

    Raises:
        UserError: unreadable, recognised by none, or wrong options.
    """
    if layout is None:
        fitting = find_layout(path)
        if not fitting:
            raise UserError(_unknown(path))
        layout = fitting[0]
    reader: Layout = build(registry.find("layout", layout), "layout", layout, dict(options or {}))
    return reader.open(Path(path))


def open_images(path: Path, layout: str | None = None, options: Mapping[str, Any] | None = None) -> Images:
    """Open images to simulate from, to train on or to compare with.

    Args:
        path: invsolve's own files (dataset x), or what a layout reads as images.
        layout: name of a registered layout; None asks each, and takes files that none knows as invsolve's own.
        options: the layout's parameters.

    Raises:
        UserError: unreadable, no images, or wrong options.
    """
    if layout is None:
        layout = next((n for n in find_layout(path) if registry.find("layout", n).images is not Layout.images), None)  # type: ignore[attr-defined]
    if layout is None:
        if options:
            raise UserError(f"{path}: --read needs --layout here, as no layout recognises the file; {_layouts()}")
        x = own.read_images(path)
        labels = own.read_volumes(path, len(x))
        return Images(x, source=str(path), fingerprint=fingerprint(path), volumes=labels)
    reader: Layout = build(registry.find("layout", layout), "layout", layout, dict(options or {}))
    return reader.images(Path(path))


def _unknown(path: Path) -> str:
    with open_readonly(path) as file:
        inside = ", ".join(sorted(file)) or "nothing"
    return f"{path}: no known layout; the file holds {inside}. 'invsolve inspect {path}' says what it could be; {_layouts()}"


def _layouts() -> str:
    return f"--layout names one of {', '.join(registry.available('layout'))}"


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
    images = opened.x
    _refuse_existing(out, overwrite, truth)
    first = images[0:1]
    forward = api.operator(operator, **api.fill_image_size(operator, parameters, first.shape[-1]))
    model = noise_from_text(noise)
    everything = images[0 : len(images)]
    if not bool(everything.isfinite().all()):
        raise UserError(f"{truth}: the images hold NaN or infinite values")
    y = api.simulate(everything, forward, model, seed)
    own.write_scan(out, y, forward, model, truth=everything, unit=opened.unit, volumes=opened.volumes)
    return {"output": str(out), "items": len(y), "measurement_shape": list(y.shape[1:]), "noise": noise, "seed": seed}


@dataclass
class Baselines:
    """A sink that adds the linear reconstruction, and the truth where it is known, to each item on its way to a file."""

    run: engine.Run
    inner: own.ResultFile

    def is_done(self, item: int) -> bool:
        return self.inner.is_done(item)

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None:
        extra: dict[str, Tensor] = {}
        problem = self.run.problem([(item, 0)])
        if isinstance(problem.operator, LinearOperator) and isinstance(problem.noise, Gaussian):
            with torch.no_grad():
                image = problem.baseline()
            physical = self.run.scale.rows([item]).to_physical(image)[0]
            extra["pinv"] = self.run.measurement.crop(physical).cpu()
        if self.run.measurement.truth is not None:
            extra["truth"] = self.run.measurement.truth[item : item + 1][0]
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
    scale: str | None = None
    layout: str | None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    coherence: float = 0.0
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
    if team is None or team.leads:
        _refuse_existing(request.out, request.overwrite, request.scan)
    prior: Prior | None = api.load_prior(request.prior) if request.prior else None
    measurement = open_measurement(request.scan, request.layout, request.read)
    if request.noise is not None:
        measurement.noise = noise_from_text(request.noise)
    for note in measurement.notes:
        say(note)
    run = api.plan(
        measurement,
        prior,
        request.strategy,
        request.samples,
        request.seed,
        request.batch_size,
        request.device if team is None else team.device,
        scale=_read_scale(request.scale),
        parameters_=request.parameters,
        coherence=request.coherence,
    )
    run.should_stop = should_stop
    record = provenance(run) | {"command": command}
    keeper = CheckpointFile(request.out, record["config_sha256"], request.checkpoint_every, say)
    run.keeper = keeper
    if team is not None:
        slabs.share_volumes(run)
    told = {"output": str(request.out), "items": len(measurement.y)}
    began = time.perf_counter()
    if not run.team.leads:
        run.execute(slabs.Nowhere())
        return told | {"seconds": round(time.perf_counter() - began, 3)}
    low, high = run.scale.range
    unit = f" {measurement.unit}" if measurement.unit else ""
    if run.scale.origin == "estimated" and prior is not None:
        say(f"scale estimated from the data: prior's range is {low:.4g} .. {high:.4g}{unit}; --scale LOW:HIGH fixes it")
    if run.strategy.draws and request.samples == 1:
        say("one sample: the standard deviation is 0 by construction; --samples 8 gives an uncertainty")
    result = own.ResultFile.create(
        request.out, len(measurement.y), request.samples, record, request.overwrite, measurement.unit
    )
    with result:
        sink = Baselines(run, result)
        already = sum(sink.is_done(i) for i in range(len(measurement.y)))
        if already:
            say(f"continuing: {already} of {len(measurement.y)} items were done before")
        try:
            _check_finite(measurement, sink)
            api.execute(run, sink)
        except (UserError, engine.NonFinite):
            if not any(sink.is_done(i) for i in range(len(measurement.y))):
                result.discard()
                keeper.remove()
            raise
        except engine.Interrupted:
            done = sum(sink.is_done(i) for i in range(len(measurement.y)))
            raise engine.Interrupted(
                f"stopped; {done} of {len(measurement.y)} items are kept, run the same command to go on"
            ) from None
        result.finish()
    keeper.remove()
    seconds = round(time.perf_counter() - began, 3)
    kept = own.read_result(request.out).diagnostics
    found = discrepancy.examine(np.asarray(kept["discrepancy"]), np.asarray(kept["discrepancy_numbers"]), run)
    say(str(found))
    judged = found.ratio == found.ratio  # NaN where the noise is said to be zero, and NaN is no JSON
    summary = {"ratio": found.ratio, "spread": found.spread, "warning": found.warning} if judged else None
    return told | {"seconds": seconds, "discrepancy": summary}


def _check_finite(measurement: Measurement, sink: Baselines) -> None:
    """Read what is still to do once, so that NaN in the last item is not found after a night."""
    for item in range(len(measurement.y)):
        if not sink.is_done(item):
            engine.read_rows(measurement, item, item + 1)


def evaluate_file(recon: Path, truth: Path | None, data_range: float | None) -> dict[str, Any]:
    """Score a result against a truth file, or against the truth it carries; also its linear baseline if it has one."""
    result = own.read_result(recon)
    reference = open_images(truth).x if truth is not None else result.truth
    if reference is None:
        raise UserError(f"{recon} carries no truth: give --truth IMAGES.h5")
    count = len(result.mean)
    # Two channels against one: a complex image and its magnitude, as scanners store it.
    magnitude = result.mean[0:1].shape[1] == 2 and reference[0:1].shape[1] == 1
    wanted = result.mean[0:1].shape if not magnitude else (1, 1, *result.mean[0:1].shape[2:])
    if len(reference) != count or tuple(reference[0:1].shape) != tuple(wanted):
        raise UserError(
            f"truth has {len(reference)} images of {tuple(reference[0:1].shape[1:])}, the result {count} of "
            f"{tuple(result.mean[0:1].shape[1:])}; they must agree"
        )
    span = data_range or metrics.data_range(reference)
    rows: list[dict[str, float]] = []
    linear: list[dict[str, float]] = []
    for i in range(count):
        target, mean, std = reference[i : i + 1][0], result.mean[i : i + 1][0], result.std[i : i + 1][0]
        spread = std if result.samples.shape[1] > 1 and not magnitude else None
        if magnitude:
            mean = mean.norm(dim=0, keepdim=True)
        rows.append(metrics.score(mean, target, span, spread, result.samples.shape[1]))
        if result.pinv is not None:
            image = result.pinv[i : i + 1][0]
            linear.append(metrics.score(image.norm(dim=0, keepdim=True) if magnitude else image, target, span))
    summary: dict[str, Any] = {"items": rows, "mean": metrics.average(rows), "data_range": span}
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
    _refuse_existing(out, overwrite, Path(prior))
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


def _read_scale(text: str | None) -> tuple[float, float] | str | None:
    if text is None or text == "auto":
        return text
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise UserError(f"--scale {text!r}: write LOW:HIGH, such as 0:0.03, or auto") from None


def _refuse_existing(out: Path, overwrite: bool, source: Path) -> None:
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: the output would replace the input; choose another name")
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {str(out.parent)!r} does not exist; create it first")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; give --overwrite to replace it")
