"""Whether the samples fit the noise and lie where the prior's images lie, and what to change when they do not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invsolve.api import advice
from invsolve.api.advice import Conditions
from invsolve.api.explained import least_misfit
from invsolve.engine.run import Run

#: Ratios between these are never complained about.
LOW, HIGH = 0.8, 1.2
#: Images further from the middle of the prior's range than so many halves of it are none of its images.
FAR = 5.0
#: Images that fill a smaller part of the prior's range are a constant to it.
NARROW = 0.02


class DiscrepancyWarning(UserWarning):
    """The samples' residual is larger or smaller than the noise explains, or the samples lie where no image does."""


@dataclass(frozen=True)
class Discrepancy:
    """Residual norm of the samples over its expected value.

    Attributes:
        ratio: root mean square over items and samples; NaN for noise-free data, infinite where a residual is.
        spread: standard deviation of `ratio` for exact posterior draws, from the noise alone.
        accepted: between which ratios nothing is complained about.
        warning: what disagrees and how to mend it; empty when nothing does.
        remark: what to know about a ratio that is not judged.
    """

    ratio: float
    spread: float
    accepted: tuple[float, float] = (LOW, HIGH)
    warning: str = ""
    remark: str = ""

    def __str__(self) -> str:
        if self.warning:
            return f"warning: {self.warning}"
        if math.isnan(self.ratio):
            return "residual: not judged, the noise is said to be zero"
        low, high = self.accepted
        aside = self.remark or f"accepted: {low:.2f} to {high:.2f}"
        return f"residual of the samples {self.ratio:.2f} of what the noise explains ({aside})"


def examine(diagnostics: Mapping[str, Any], run: Run) -> Discrepancy:
    """Judge a run by the diagnostics of its samples, a row for each item of the run; see `judge`."""

    def least(row: int) -> float:
        return least_misfit(run, run.items[row])

    return judge(diagnostics, Conditions(run.strategy, run.measurement.noise, run.scale, run.doubt, least))


def judge(diagnostics: Mapping[str, Any], conditions: Conditions) -> Discrepancy:
    """Judge samples by their `Problem.discrepancy` and `Problem.reach`.

    A draw from the posterior is distributed as the truth, so its residual is distributed as the noise: the squared ratio of
    an item has mean 1 and standard deviation sqrt(2 / numbers). Samples of one item share y and count once. Complained
    about is what lies outside 0.8 .. 1.2 and more than three such deviations off (4.5 for a single item among many). Point
    estimates may fit better than the noise. Noise stated too large is found only where the prior leaves few of the measured
    numbers free: elsewhere draws scatter by what is stated, and so does their residual. Samples far outside of the prior's
    range, or constant to it, are wrong whatever their residual, and so is a residual that is infinite.

    Args:
        diagnostics: `discrepancy` and `discrepancy_dof`, (N, S), as the engine gives them; `reach`, `span` and `stride`, where
            they are known.
        conditions: under which the samples were drawn, for the advice.
    """
    ratios, numbers, reach, span, stride = (
        _array(diagnostics, name) for name in ("discrepancy", "discrepancy_dof", "reach", "span", "stride")
    )
    squared = ratios**2
    # NaN is a residual that cannot be judged; an infinite one can.
    known = ~squared.mean(1).isnan()
    items, spreads = squared[known].mean(1).sqrt(), (1 / (2 * numbers[known].mean(1))).sqrt()
    nothing = not bool(known.any())
    ratio = math.nan if nothing else float(items.square().mean().sqrt())
    spread = math.nan if nothing else float(spreads.square().mean().sqrt() / len(items) ** 0.5)
    draws = conditions.strategy.draws
    low = min(LOW, 1 - 3 * spread) if draws and not nothing else 0.0
    high = HIGH if nothing else max(HIGH, 1 + 3 * spread)
    accepted = (max(low, 0.0), high)

    wild = (ratios.isinf() | (reach > FAR)).any(1)
    if bool(wild.any()):
        text = advice.wild(wild, ratios, reach, high, conditions)
    elif bool((span < NARROW).all()):
        text = advice.narrow(float(span.max()), conditions)
    elif nothing:
        text = ""
    elif not conditions.strategy.explains:
        if ratio > high and not math.isnan(least := _least(items, spreads, known, conditions)):
            return Discrepancy(
                ratio, spread, accepted, advice.loose(ratio, items < 0, _typical(stride, items < 0), conditions, least)
            )
        return Discrepancy(ratio, spread, accepted, remark=advice.unfitted(conditions))
    else:
        single = 3.0 if len(items) == 1 else 4.5
        too_far = (items > HIGH) & (items > 1 + single * spreads)
        too_close = (items < LOW) & (items < 1 - single * spreads) & draws
        text = ""
        if ratio > high or int(too_far.sum()) > int(too_close.sum()):
            told = ratio if ratio > HIGH else float(items[too_far].square().mean().sqrt())
            least = _least(items, spreads, known, conditions)
            text = advice.loose(told, too_far, _typical(stride[known], too_far), conditions, least)
        elif draws and (ratio < low or bool(too_close.any())):
            told = ratio if ratio < LOW else float(items[too_close].square().mean().sqrt())
            text = advice.tight(told, too_close, _typical(stride[known], too_close), conditions)
    return Discrepancy(ratio, spread, accepted, text)


def _array(diagnostics: Mapping[str, Any], name: str) -> Tensor:
    """A diagnostic (N, S), float64; NaN where nobody noted it."""
    like = torch.as_tensor(diagnostics["discrepancy"]).double()
    value = diagnostics.get(name)
    return torch.full_like(like, torch.nan) if value is None else torch.as_tensor(value).double().reshape(like.shape)


def _least(items: Tensor, spreads: Tensor, known: Tensor, conditions: Conditions) -> float:
    """What least squares leaves of the item that fits worst, where that is too much; else NaN. Asked of this one alone."""
    if conditions.least is None:
        return math.nan
    worst = int(items.argmax())
    left = conditions.least(int(known.nonzero()[worst]))
    return left if left > max(HIGH, 1 + 3 * float(spreads[worst])) else math.nan


def _typical(values: Tensor, flagged: Tensor) -> float:
    """The median over the samples of flagged items, of all where none is; NaN where it is not known."""
    return float((values[flagged] if bool(flagged.any()) else values).nanmedian())
