"""Putting the parts of a run together, checked, and running it with a progress bar."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from invsolve import engine
from invsolve.api import choice, fit, units
from invsolve.api.inputs import resolve_device, resolve_prior, resolve_strategy
from invsolve.api.loading import strategy
from invsolve.contracts.latent import LatentPrior
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.module import placed, usable
from invsolve.contracts.prior import Prior
from invsolve.contracts.sink import Sink
from invsolve.contracts.strategy import Strategy
from invsolve.engine import volume
from invsolve.engine.determinism import deterministic
from invsolve.engine.needs import check_needs
from invsolve.engine.options import Options
from invsolve.engine.tiles import tiled
from invsolve.errors import Unsuited, UserError


@choice.alternatives()
def plan(
    measurement: Measurement,
    prior: Prior | str | Path | None,
    strategy_: Strategy | str,
    options: Options,
    parameters_: Mapping[str, Any] | None = None,
) -> engine.Run:
    """Put the parts of a run together and check that they fit, before anything is computed or written.

    Args:
        parameters_: of the strategy, where `strategy_` is a name.

    Raises:
        UserError: the parts do not fit one another.
    """
    # The scale may be estimated here: that too is part of the result.
    with deterministic(options.deterministic):
        return _plan(measurement, prior, strategy_, options, parameters_)


def _plan(
    measurement: Measurement,
    prior: Prior | str | Path | None,
    strategy_: Strategy | str,
    options: Options,
    parameters_: Mapping[str, Any] | None,
) -> engine.Run:
    if not len(measurement.y):
        raise UserError(f"{measurement.source or 'y'}: has no items; give at least one")
    if measurement.noise is None:
        raise UserError(
            "the noise is not known: give noise=, such as Gaussian(0.01) (command line: --noise NAME:VALUE)"
        )
    place = resolve_device(options.device)
    given = dict(parameters_ or {})
    automatic = isinstance(strategy_, str) and strategy_ == choice.AUTO
    # What "auto" stands for is known only once there is a problem.
    chosen = strategy(choice.preferred()[0]) if automatic else resolve_strategy(strategy_, given)
    knowledge = resolve_prior(prior)
    # The caller's objects stay where and as they are; what has to move or be frozen is copied.
    measurement = replace(measurement, operator=placed(measurement.operator, place))
    # Of operators that differ the shapes are the same, so the first one tells what fits.
    forward = placed(measurement.operator_for(0), place)
    if knowledge is not None:
        knowledge = placed(knowledge, place, frozen=True)
        knowledge = tiled(knowledge, options.tile, options.rows, place)
        knowledge = volume.for_images(knowledge, fit.own_shape(measurement), options.rows, place, options.planes)
    shape = fit.image_shape(measurement, knowledge)
    fit.check_measurement(measurement, shape)
    run = engine.Run(measurement, knowledge, chosen, shape, options)
    if automatic:
        run.strategy = chosen = strategy(choice.default_strategy(run.problem([(0, 0)])), **given)
    named = chosen.name or type(chosen).__name__
    if options.precision == "bf16" and not (knowledge and any(True for _ in knowledge.parameters())):
        raise UserError("precision=bf16 is for network priors; this run has no network: leave it out")
    volume.check_planes(options.planes, knowledge, shape, run.couples_items, named)
    if run.couples_items and isinstance(knowledge, LatentPrior):
        raise UserError(
            f"strategy {named!r} couples slices of images, and prior {knowledge.name!r} has latents; take another prior"
        )
    if run.couples_items:
        volume.volumes_of(measurement)
        if measurement.items_differ:
            raise Unsuited(
                f"strategy {named!r} couples the slices of a volume, which must share one operator; here each has its own "
                "(coil maps, say): take a strategy that takes slices one by one",
                chosen.takes_items_one_by_one,
            )
    item = fit.noisiest(measurement)
    chains = [(item, s) for s in range(options.samples if chosen.couples_samples else 1)]
    check_needs(chosen, run.problem(chains), scaled=False)
    run.scale = usable(fit.choose_scale(measurement, forward, knowledge, options.scale, shape, place, run.dtype))
    units.check_range(run)
    problem = run.problem(chains)
    check_needs(chosen, problem)
    if doubt := chosen.doubt(problem):
        warnings.warn(doubt, stacklevel=2)
    return run


@choice.alternatives()
def execute(run: engine.Run, sink: Sink, progress: bool | None = None) -> None:
    """Run with a progress bar: items, step, residual against its expected value, time left."""
    from invsolve.engine.progress import Bar

    with Bar(run, sink, disable=None if progress is None else not progress):
        run.execute(sink)
