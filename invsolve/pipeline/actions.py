"""What each step does: it calls the job that the command of the same name calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

from invsolve import jobs
from invsolve.api.loading import noise as make_noise
from invsolve.contracts.measurement import Images, Measurement
from invsolve.datasets import hdf5
from invsolve.errors import UserError
from invsolve.files.opening import open_images, open_measurement
from invsolve.pipeline import steps
from invsolve.pipeline.exporting import export
from invsolve.pipeline.files import Product, kinds_of
from invsolve.report import write_report


@dataclass(frozen=True)
class Context:
    """What a step is run with, beside its parameters.

    Attributes:
        inputs: parameter -> the file that it stands for.
        measured: what the input was reconstructed from, where the pipeline says so.
        out: the file to write.
        say: told one line at a time what was found and decided.
        should_stop: asked by long steps whether to stop.
        plugins: plugin files, for the workers of a cluster.
        command: for the record.
    """

    inputs: Mapping[str, Product]
    measured: Product | None
    out: Path
    say: Callable[[str], None]
    should_stop: Callable[[], bool]
    plugins: tuple[Path, ...]
    command: str


@singledispatch
def perform(step: steps.Step, context: Context) -> dict[str, Any]:
    """Run a step.

    Returns:
        Facts about it, as JSON: `metrics` of an evaluation, shapes, notes.

    Raises:
        UserError: the data do not allow it.
        NonFinite: a chain diverged.
        Interrupted: asked to stop.
    """
    raise TypeError(f"no action for {type(step).__name__}")


@perform.register
def _load(step: steps.Load, context: Context) -> dict[str, Any]:
    path = Path(step.path)
    if "result" in kinds_of(path, step.layout):
        return {"kind": "result", "items": len(hdf5.read_result(path).mean)}
    data = _open(Product(path, step.layout, step.read))
    for note in data.notes:
        context.say(note)
    if isinstance(data, Measurement):
        return {"kind": "measurement", "items": len(data.y), "unit": data.unit, "notes": data.notes}
    return {"kind": "images", "items": len(data.x), "unit": data.unit, "notes": data.notes}


def _open(source: Product) -> Measurement | Images:
    """A file as a measurement, or as images where its layout finds those in it."""
    kinds = kinds_of(source.path, source.layout)
    if "measurement" not in kinds:
        return open_images(source.path, source.layout, source.read)
    try:
        return open_measurement(source.path, source.layout, source.read)
    except UserError as error:
        # Of a layout that reads either, what is wrong with the measurement is said where it holds no images.
        if "images" in kinds:
            with suppress(UserError):
                return open_images(source.path, source.layout, source.read)
        raise error


@perform.register
def _sample(step: steps.Sample, context: Context) -> dict[str, Any]:
    facts = jobs.sample_file(
        step.prior,
        context.out,
        step.count,
        step.size,
        step.solver,
        step.steps,
        step.seed,
        step.batch_size,
        step.device,
        overwrite=True,
        command=context.command,
    )
    return {"items": facts["items"], "image_shape": facts["image_shape"]}


@perform.register
def _preprocess(step: steps.Preprocess, context: Context) -> dict[str, Any]:
    source = context.inputs["input"]
    data = _open(Product(source.path, source.layout, {**source.read, **step.read}))
    if isinstance(data, Images):
        if step.noise is not None:
            raise UserError("noise = ...: these are images, which have none; leave it out")
        if data.spacing is not None and not hdf5.is_square(data.spacing):
            size = " x ".join(f"{width:g}" for width in data.spacing)
            context.say(f"pixels of {size} {data.spacing_unit} are not square, which the file of images does not keep")
        hdf5.write_images(context.out, data.x, data.unit)
        return {"kind": "images", "items": len(data.x), "unit": data.unit, "notes": data.notes}
    for note in data.notes:
        context.say(note)
    if data.operators is not None or data.region is not None:
        what = (
            "masks and coil maps of their own for each slice"
            if data.operators is not None
            else "a margin around the image"
        )
        raise UserError(
            f"these measurements have {what}, which a scan file cannot hold: leave the step out, and give its read = ... to "
            "the step that loads the file, which is then read so each time"
        )
    noise = data.noise if step.noise is None else make_noise(step.noise)
    hdf5.write_scan(context.out, data.y, data.operator, noise, data.truth, data.unit, volumes=data.volumes)
    facts = {"kind": "measurement", "items": len(data.y), "shape": list(data.y[0:1].shape[1:])}
    return facts | {"unit": data.unit, "notes": data.notes}


@perform.register
def _simulate(step: steps.Simulate, context: Context) -> dict[str, Any]:
    source = context.inputs["input"]
    facts = jobs.simulate_file(
        source.path,
        context.out,
        step.operator,
        step.set,
        step.noise,
        step.seed,
        overwrite=True,
        layout=source.layout,
        read=source.read,
    )
    return {"items": facts["items"], "measurement_shape": facts["measurement_shape"]}


@perform.register
def _reconstruct(step: steps.Reconstruct, context: Context) -> dict[str, Any]:
    source = context.inputs["input"]
    request = jobs.Request(
        scan=source.path,
        out=context.out,
        prior=step.prior,
        strategy=step.strategy,
        parameters=step.set,
        options=step.options,
        noise=step.noise,
        layout=source.layout,
        read=source.read,
        # What was left by another configuration has another key, so another folder; a result without its record is redone.
        overwrite=True,
        slices=step.slices,
        workers=step.workers,
        scheduler=step.scheduler,
        plugins=context.plugins,
        snapshot_every=step.snapshot_every,
    )
    facts = jobs.reconstruct_file(request, context.say, context.should_stop, context.command)
    return {"items": facts["items"], "discrepancy": facts.get("discrepancy")}


@perform.register
def _evaluate(step: steps.Evaluate, context: Context) -> dict[str, Any]:
    truth = context.inputs.get("truth")
    scores = jobs.evaluate_file(
        context.inputs["input"].path,
        truth.path if truth else None,
        step.data_range,
        layout=truth.layout if truth else None,
        read=truth.read if truth else None,
    )
    # The clock belongs into the record of the run: equal runs write equal bytes.
    timeless = {"cost": {"evaluations": scores["cost"]["evaluations"]}} if "cost" in scores else {}
    context.out.write_text(json.dumps({**scores, **timeless}, indent=2) + "\n", encoding="utf-8")
    if "mean" not in scores:
        figures = {name: value for name, value in scores["trust"].items() if isinstance(value, float)}
        return {"metrics": figures, "items": len(scores["trust"].get("which", []))}
    metrics = dict(scores["mean"])
    if "linear" in scores:
        metrics |= {f"linear_{name}": value for name, value in scores["linear"].items()}
    return {"metrics": metrics, "items": len(scores["items"]), "cost": scores.get("cost")}


@perform.register
def _report(step: steps.Report, context: Context) -> dict[str, Any]:
    truth, measured = context.inputs.get("truth"), context.measured
    write_report(
        context.inputs["input"].path,
        context.out,
        step.items,
        truth.path if truth else None,
        overwrite=True,
        scan=measured.path if measured else None,
        layout=measured.layout if measured else None,
        read=measured.read if measured else None,
        truth_layout=truth.layout if truth else None,
        truth_read=truth.read if truth else None,
    )
    return {}


@perform.register
def _export(step: steps.Export, context: Context) -> dict[str, Any]:
    return export(step, context.inputs["input"], context.out)
