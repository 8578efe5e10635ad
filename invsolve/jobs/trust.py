"""Judging a result file without a truth: its scan and prior are opened again, and some of its items held against them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve import engine, registry
from invsolve.api.provenance import scatters_like_posterior
from invsolve.api.stein import stein_terms, unfit
from invsolve.api.trust import FEWEST, Trust, judge_trust
from invsolve.contracts.module import placed
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.engine.options import Options
from invsolve.errors import UserError
from invsolve.jobs.origin import Measured, prior_of
from invsolve.numerics.random import ChainRandom

#: Items that are looked at, spread over the result, unless more are asked for: each costs some 20 network calls a sample.
ITEMS = 4
#: The noise that is added to samples is keyed apart from what they were drawn with.
SEED = 5731


@dataclass(frozen=True)
class Judgement:
    """A verdict on a result, or why there is none.

    Attributes:
        trust: None where there is none.
        why: a sentence on what is missing.
        which: the items that were looked at.
    """

    trust: Trust | None
    why: str = ""
    which: tuple[int, ...] = ()


def judge_result(
    result: Any,
    measured: Measured,
    prior: str | None = None,
    items: int = ITEMS,
    say: Callable[[str], None] = lambda line: None,
) -> Judgement:
    """Hold the samples of a result against its prior and its scan, see `invsolve.api.stein.stein_terms`.

    What a record holds may be anything; where nothing can be made of it, that is said.

    Args:
        result: a `ResultView`.
        measured: its scan.
        prior: name or file, where the record's is not found.
        items: how many to look at.
        say: told what is done.

    Raises:
        UserError: `prior` is given and cannot be had.
    """
    try:
        return _judge(result, measured, prior, items, say)
    except UserError as error:
        if prior is not None:
            raise
        return Judgement(None, f"{str(error)[0].upper()}{str(error)[1:]}.")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return Judgement(None, f"Prior and scan could not be compared: {' '.join(str(error).split())[:200]}.")


def _judge(result: Any, measured: Measured, prior: str | None, items: int, say: Callable[[str], None]) -> Judgement:
    config, count = result.config, int(result.samples.shape[1])
    measurement = measured.measurement
    if measurement is None:
        return Judgement(None, measured.why)
    if not scatters_like_posterior(config):
        return Judgement(None, "Its strategy finds one image and does not draw from the posterior.")
    if reason := _another_target(config):
        return Judgement(None, reason)
    if count < FEWEST:
        return Judgement(None, f"{count} samples are too few to judge; --samples 8 gives enough.")
    scale = _scale(config)
    if scale is None:
        return Judgement(None, "Each item has a scale of its own, which the record does not hold.")
    knowledge = prior_of(config, prior)
    measurement.noise = measured.noise or measurement.noise
    if measurement.noise is None:
        return Judgement(None, "The noise of the run is not known.")
    shape = tuple(result.mean.shape[1:])
    knowledge = placed(knowledge, torch.device("cpu"), frozen=True)
    dtype = str(config.get("dtype") or "float32")
    run = engine.Run(measurement, knowledge, Strategy(), shape, Options(samples=count, dtype=dtype), scale=scale)
    rows = sorted({round(k) for k in np.linspace(0, len(result.items) - 1, min(items, len(result.items)))})
    terms = []
    for row in rows:
        item = result.items[row]
        say(f"item {item}: {count} samples against prior and likelihood")
        problem = run.problem([(item, s) for s in range(count)])
        if reason := unfit(problem):
            return Judgement(None, f"Not held against prior and likelihood: {reason}.")
        images: Tensor = scale.to_network(result.samples[row : row + 1][0].to(run.dtype))
        rng = ChainRandom(int(config.get("seed") or 0) + SEED, [(item, s) for s in range(count)])
        terms.append(stein_terms(problem, images, rng))
    return Judgement(judge_trust(terms), which=tuple(result.items[row] for row in rows))


def _another_target(config: dict[str, Any]) -> str:
    """Why a strategy's draws are not of the posterior of all the data under the prior alone; empty where they are."""
    try:
        strategy: Any = registry.find("strategy", (config.get("strategy") or {}).get("name") or "")
    except UserError:
        return ""
    if strategy.couples_items:
        return "Its strategy couples the slices of a volume, which prior and likelihood of a slice say nothing of."
    if "maskable" in strategy.needs:
        return "Its strategy chose what was measured, which the scan does not tell."
    return ""


def _scale(config: dict[str, Any]) -> Scale | None:
    """The scale of all items; None where they have one each, or none is recorded."""
    given = config.get("scale") or {}
    values: list[Any] = [given.get(k) for k in ("factor", "offset")]
    if not all(isinstance(v, int | float) or (isinstance(v, list) and len(v) == 1) for v in values):
        return None
    factor, offset = (float(v[0]) if isinstance(v, list) else float(v) for v in values)
    return Scale(factor, offset, "record")
