"""Putting the parts of a run together, checked, and running it with a progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from invsolve import engine
from invsolve.api import choice, fit
from invsolve.api.inputs import resolve_device
from invsolve.api.loading import load_prior, strategy
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.module import placed
from invsolve.contracts.prior import Prior
from invsolve.contracts.scale import Scale
from invsolve.contracts.sink import Sink
from invsolve.contracts.strategy import Strategy
from invsolve.engine import volume
from invsolve.engine.needs import check_needs
from invsolve.errors import UserError


def plan(
    measurement: Measurement,
    prior: Prior | str | Path | None,
    strategy_: Strategy | str,
    samples: int,
    seed: int,
    batch_size: int | None,
    device: str | torch.device,
    dtype: torch.dtype = torch.float32,
    scale: Scale | tuple[float, float] | str | None = None,
    parameters_: Mapping[str, Any] | None = None,
    noise_correlation: float = 0.0,
    planes: int = 1,
    precision: str = "float32",
) -> engine.Run:
    """Put the parts of a run together and check that they fit, before anything is computed or written.

    Args:
        parameters_: of the strategy, where `strategy_` is a name.
    """
    if samples < 1:
        raise UserError(f"samples must be at least 1, got {samples}")
    if seed < 0:
        raise UserError(f"seed must be at least 0, got {seed}")
    if not noise_correlation >= 0:
        raise UserError(f"noise_correlation must be 0 (every item its own noise) or more, got {noise_correlation}")
    if precision not in ("float32", "bf16"):
        raise UserError(f"precision must be float32 or bf16, got {precision!r}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    if measurement.noise is None:
        raise UserError(
            "the noise is not known: give noise=, such as Gaussian(0.01) (command line: --noise gaussian:0.01)"
        )
    place = resolve_device(device)
    given = dict(parameters_ or {})
    automatic = strategy_ == choice.AUTO
    if isinstance(strategy_, str):
        # What "auto" stands for is known only once there is a problem.
        chosen = strategy(choice.PREFERENCE[0]) if automatic else strategy(strategy_, **given)
    else:
        chosen = strategy_
    knowledge = load_prior(prior) if isinstance(prior, str | Path) else prior
    # The caller's objects stay where and as they are; what has to move or be frozen is copied.
    forward = placed(measurement.operator, place)
    measurement = replace(measurement, operator=forward)
    rows = batch_size or (16 if place.type == "cuda" else 8)
    if knowledge is not None:
        knowledge = placed(knowledge, place, frozen=True)
        knowledge = volume.for_images(knowledge, forward, rows, place, planes)
    shape = fit.image_shape(measurement, knowledge)
    fit.check_measurement(measurement, shape)
    run = engine.Run(
        measurement,
        knowledge,
        chosen,
        shape,
        Scale(),
        samples,
        seed,
        rows,
        place,
        dtype,
        noise_correlation=noise_correlation,
        planes=planes,
        precision=precision,
    )
    if automatic:
        run.strategy = chosen = strategy(choice.default_strategy(run.problem([(0, 0)])), **given)
    named = chosen.name or type(chosen).__name__
    if precision == "bf16" and not (knowledge and any(True for _ in knowledge.parameters())):
        raise UserError("precision=bf16 is for network priors; this run has no network: leave it out")
    volume.check_planes(planes, knowledge, shape, run.couples_items, named)
    if run.couples_items:
        volume.volumes_of(measurement)
        if measurement.operators is not None:
            raise UserError(
                f"strategy {named!r} couples the slices of a volume, which must share one "
                "operator; here each has its own (coil maps, say): take a strategy that takes slices one by one, such as dds"
            )
    check_needs(chosen, run.problem([(0, s) for s in range(samples if chosen.couples_samples else 1)]))
    run.scale = fit.choose_scale(measurement, forward, knowledge, scale, shape, place, dtype)
    return run


def execute(run: engine.Run, sink: Sink, progress: bool | None = None) -> None:
    """Run with a progress bar: items, step, residual against its expected value, time left."""
    from invsolve.engine.progress import Bar

    with Bar(run, sink, disable=None if progress is None else not progress):
        run.execute(sink)
