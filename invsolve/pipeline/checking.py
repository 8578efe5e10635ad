"""What can be known to be wrong before anything runs: names and parameters of plugins, files, and what inputs give."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch

from invsolve import registry
from invsolve.api import choice, hub
from invsolve.api.loading import noise as make_noise
from invsolve.contracts.strategy import NEEDS
from invsolve.errors import UserError, suggestion
from invsolve.numerics.ode import solvers
from invsolve.pipeline import steps
from invsolve.pipeline.files import files_of, inside, kinds_of, locate
from invsolve.pipeline.graph import Job
from invsolve.registry.parameters import check as check_parameters
from invsolve.registry.written import read_written

_ENDINGS = {".tif": (".tif", ".tiff"), ".h5": (".h5", ".hdf5")}


def check_jobs(
    jobs: Iterable[Job], base: Path, where: str, trust: bool = True, read: Iterable[Path] = ()
) -> dict[Job, steps.Step]:
    """Check every job, and give its step with files as absolute paths.

    Args:
        jobs: each after those that feed it.
        base: the folder that paths are seen from.
        where: the pipeline file, for messages.
        trust: whether it may write outside of `base`, and talk to schedulers.
        read: files that the pipeline itself is made of, which no step may write.

    Raises:
        UserError: the first thing that is wrong; says which step.
    """
    job_steps: dict[Job, steps.Step] = {}
    kinds: dict[Job, tuple[str, ...]] = {}
    targets: dict[Path, Job] = {}
    for job in jobs:
        try:
            job_steps[job] = step = locate(job.step, base)
            _check(step)
            kinds[job] = _kinds(job, step, kinds)
            _check_inputs(job, job_steps, kinds)
            _check_target(job, base, targets)
            if not trust:
                _check_reach(job, base)
        except UserError as error:
            raise UserError(f"{_place(where, job)}: {error}") from None
    inputs = {file.resolve() for file in (*read, *(file for step in job_steps.values() for file in files_of(step)))}
    for path, job in targets.items():
        if any(path.is_relative_to(file) for file in inputs):
            raise UserError(
                f"{_place(where, job)}: to = {path} would replace what the pipeline reads; choose another name"
            )
    return job_steps


def _place(where: str, job: Job) -> str:
    branch = f" [{job.branch}]" if job.branch else ""
    return f"{where}: step {job.name!r}{branch}"


def target(job: Job, base: Path) -> Path | None:
    """Where a copy of a job's output goes, or None."""
    to = getattr(job.step, "to", None)
    return None if to is None else (base / Path(to).expanduser())


@singledispatch
def _check(step: steps.Step) -> None:
    """Check the parameters of one step."""


@_check.register
def _load(step: steps.Load) -> None:
    path = Path(step.path)
    kinds = kinds_of(path, step.layout)
    if step.read and "result" not in kinds:
        _layout(path, step.layout, step.read)


@_check.register
def _sample(step: steps.Sample) -> None:
    _prior(step.prior)
    _device(step.device)
    solvers.solver(step.solver)


@_check.register
def _preprocess(step: steps.Preprocess) -> None:
    if step.noise is not None:
        make_noise(step.noise)


@_check.register
def _simulate(step: steps.Simulate) -> None:
    cls = registry.find("operator", step.operator)
    check_parameters(cls, "operator", step.operator, dict(step.set), later=("image_size",))
    make_noise(step.noise)


@_check.register
def _reconstruct(step: steps.Reconstruct) -> None:
    if step.strategy != choice.AUTO:
        cls = registry.find("strategy", step.strategy)
        check_parameters(cls, "strategy", step.strategy, dict(step.set))
        if step.prior is None and "prior" in getattr(cls, "needs", ()):
            raise UserError(f"strategy {step.strategy!r} needs {NEEDS['prior']}; give prior = NAME or FILE")
    elif step.prior is None:
        without = ", ".join(choice.strategies(lambda cls: "prior" not in cls.needs))
        raise UserError(
            f"strategy 'auto' needs a prior; give prior = NAME or FILE, or a strategy without one: {without}"
        )
    if step.prior is not None:
        _prior(step.prior)
    _device(str(step.options.device))
    if step.noise is not None:
        make_noise(step.noise)
    if step.slices is not None and not re.fullmatch(r"\d*:\d*|\d+", step.slices):
        raise UserError(f"slices = {step.slices!r}: write START:STOP, such as 10:50 for items 10 to 49")
    if (step.workers or step.scheduler) and importlib.util.find_spec("distributed") is None:
        raise UserError("workers and scheduler need Dask: pip install 'invsolve[cluster]'")


@_check.register
def _export(step: steps.Export) -> None:
    if step.format == "nifti" and importlib.util.find_spec("nibabel") is None:
        raise UserError("format = 'nifti' needs the package nibabel; install it with pip install 'invsolve[nifti]'")


def _prior(name: str) -> None:
    priors = registry.available("prior")
    if hub.is_hub_name(name):
        hub.cached(hub.place(name))
    elif name.partition(":")[0] in priors and not Path(name).exists():
        written, given = read_written("prior", name)
        check_parameters(priors[written], "prior", written, given)
    elif not Path(name).exists():
        raise UserError(f"unknown prior {Path(name).name!r}, and no file {name}.{suggestion(Path(name).name, priors)}")
    elif not any(cls.opens(Path(name)) for cls in priors.values()):  # type: ignore[attr-defined]
        raise UserError(f"prior {name!r} is no checkpoint that a registered prior opens; see docs/priors.md")


def _device(name: str) -> None:
    # Whether it works here is not asked: the plan may be made on a login node.
    try:
        torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r}: expected cpu, cuda, cuda:1, ...") from None


def _layout(path: Path, layout: str | None, read: Mapping[str, Any]) -> None:
    from invsolve.files.opening import find_layout

    names = [layout] if layout is not None else find_layout(path)
    if not names:
        raise UserError(f"{path}: no layout recognises the file, so that read = ... means nothing; give layout = NAME")
    check_parameters(registry.find("layout", names[0]), "layout", names[0], dict(read))


def _kinds(job: Job, step: steps.Step, kinds: Mapping[Job, tuple[str, ...]]) -> tuple[str, ...]:
    """The kinds that a job's output can be taken as."""
    if isinstance(step, steps.Load):
        return kinds_of(Path(step.path), step.layout)
    if isinstance(step, steps.Preprocess):
        return kinds[job.inputs["input"]]
    if isinstance(step, steps.Export):
        return ("images",) if step.format == "h5" else ("file",)
    return (step.gives or "file",)


def _check_inputs(job: Job, job_steps: Mapping[Job, steps.Step], kinds: Mapping[Job, tuple[str, ...]]) -> None:
    for key, source in job.inputs.items():
        input_kinds, source_kinds = job.step.inputs[key], kinds[source]
        if not set(input_kinds) & set(source_kinds):
            raise UserError(
                f"{key} = {source.name!r} gives {' or '.join(source_kinds)}, expected {' or '.join(input_kinds)}"
            )
        step = job_steps[source]
        if key == "truth" and isinstance(step, steps.Load) and (step.layout or step.read or not _own(step)):
            raise UserError(
                f"truth = {source.name!r} is a file that needs a layout; put a step of type preprocess between"
            )
        if isinstance(job.step, steps.Preprocess):
            reading = job_steps[source]
            if isinstance(reading, steps.Load):
                _layout(Path(reading.path), reading.layout, {**reading.read, **job.step.read})
            elif job.step.read:
                raise UserError(f"read = ...: {source.name!r} is no file from outside; its layout takes no parameters")


def _own(step: steps.Load) -> bool:
    from invsolve.files.opening import find_layout

    return not find_layout(Path(step.path))


def _check_target(job: Job, base: Path, targets: dict[Path, Job]) -> None:
    path = target(job, base)
    if path is None:
        return
    suffix = job.step.output_name.removeprefix(job.step.output_name.split(".")[0])
    endings = _ENDINGS.get(suffix, (suffix,))
    if not path.name.endswith(endings):
        raise UserError(f"to = {getattr(job.step, 'to', '')!r}: the name must end in {' or '.join(endings)}")
    if path.is_dir():
        raise UserError(f"to = {path}: is a folder, expected the name of a file to write")
    name = path.resolve()
    if name in targets:
        raise UserError(
            f"to = {path} is also where {targets[name].title} goes; put ${{branch}} into the name, or give each its own"
        )
    targets[name] = job


def _check_reach(job: Job, base: Path) -> None:
    """Refuse what a stranger's pipeline may not do: write elsewhere, or talk to a scheduler, which can send code."""
    path = target(job, base)
    if path is not None and not inside(path, base):
        raise UserError(
            f"to = {path} is outside of the pipeline's folder; write it inside, or give --trust if you trust the pipeline"
        )
    if getattr(job.step, "scheduler", None):
        raise UserError(
            f"scheduler = {getattr(job.step, 'scheduler', '')!r}: a scheduler can run code here; give --trust if you trust "
            "the pipeline"
        )
