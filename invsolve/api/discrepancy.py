"""Whether the samples' residual fits the noise, and what to change when it does not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from invsolve.contracts.noise import Gaussian, Noise
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.engine.run import Run

#: Ratios between these are never complained about.
LOW, HIGH = 0.8, 1.2


class DiscrepancyWarning(UserWarning):
    """The samples' residual is larger or smaller than the noise explains."""


@dataclass(frozen=True)
class Discrepancy:
    """Residual norm of the samples over its expected value.

    Attributes:
        ratio: root mean square over items and samples; NaN for noise-free data.
        spread: standard deviation of `ratio` for exact posterior draws, from the noise alone.
        warning: what disagrees and how to mend it; empty when nothing does.
    """

    ratio: float
    spread: float
    warning: str = ""

    def __str__(self) -> str:
        if math.isnan(self.ratio):
            return "residual: not judged, the noise is said to be zero"
        line = f"residual of the samples {self.ratio:.2f} of what the noise explains (expected 1 +- {self.spread:.2g})"
        return f"warning: {self.warning}" if self.warning else line


@dataclass(frozen=True)
class Conditions:
    """What a judgement of residuals depends on besides them.

    Attributes:
        strategy: made the samples.
        noise: as it was stated; None where it is not known.
        scale: between network and physical units; None where it is not known.
    """

    strategy: Strategy
    noise: Noise | None
    scale: Scale | None


def examine(ratios: Tensor | ArrayLike, numbers: Tensor | ArrayLike, run: Run) -> Discrepancy:
    """Judge a run by `Problem.discrepancy` of its samples; see `judge`."""
    return judge(ratios, numbers, Conditions(run.strategy, run.measurement.noise, run.scale))


def judge(ratios: Tensor | ArrayLike, numbers: Tensor | ArrayLike, conditions: Conditions) -> Discrepancy:
    """Judge samples by their `Problem.discrepancy`.

    A draw from the posterior is distributed as the truth, so its residual is distributed as the noise: the squared ratio of
    an item has mean 1 and standard deviation sqrt(2 / numbers). Samples of one item share y and count once. Complained
    about is what lies outside 0.8 .. 1.2 and more than three such deviations off (4.5 for a single item among many). Point
    estimates may fit better than the noise, methods without a prior as they please. Noise stated too large is found only where
    the prior leaves few of the measured numbers free: elsewhere draws scatter by what is stated, and so does their residual.

    Args:
        ratios, numbers: (N, S), as the engine gives them.
        conditions: under which the samples were drawn, for the advice.
    """
    squared, count = torch.as_tensor(ratios).double() ** 2, torch.as_tensor(numbers).double()
    items = squared.mean(1).sqrt()
    known = items.isfinite()
    if not bool(known.any()):
        return Discrepancy(math.nan, math.nan)
    items, spreads = items[known], (1 / (2 * count[known].mean(1))).sqrt()
    ratio = float(items.square().mean().sqrt())
    spread = float(spreads.square().mean().sqrt() / len(items) ** 0.5)
    if "prior" not in conditions.strategy.needs:
        return Discrepancy(ratio, spread)
    single = 3.0 if len(items) == 1 else 4.5
    too_far = (items > HIGH) & (items > 1 + single * spreads)
    too_close = (items < LOW) & (items < 1 - single * spreads) & conditions.strategy.draws
    text = ""
    if ratio > max(HIGH, 1 + 3 * spread) or int(too_far.sum()) > int(too_close.sum()):
        text = _loose(items, too_far, ratio, conditions)
    elif conditions.strategy.draws and (ratio < min(LOW, 1 - 3 * spread) or bool(too_close.any())):
        text = _tight(items, too_close, ratio, conditions)
    return Discrepancy(ratio, spread, text)


def _loose(items: Tensor, flagged: Tensor, ratio: float, conditions: Conditions) -> str:
    ratio = ratio if ratio > HIGH else float(items[flagged].square().mean().sqrt())
    causes = [
        f"the strategy follows the data too weakly ({_advice(conditions.strategy, 1)})",
        f"the noise is larger than stated ({_noise(conditions, ratio)})",
        _scale(conditions),
        "the operator does not describe the instrument",
    ]
    return (
        f"the samples miss the data: residual {ratio:.2f} of what the noise explains{_which(flagged)}. {_list(causes)}"
    )


def _tight(items: Tensor, flagged: Tensor, ratio: float, conditions: Conditions) -> str:
    ratio = ratio if ratio < LOW else float(items[flagged].square().mean().sqrt())
    causes = [
        f"the noise is smaller than stated ({_noise(conditions, ratio)})",
        f"the strategy follows the data too closely, and its spread is too small ({_advice(conditions.strategy, -1)})",
    ]
    return f"the samples fit the noise: residual {ratio:.2f} of what it explains{_which(flagged)}. {_list(causes)}"


def _list(causes: Iterable[str]) -> str:
    return "Either " + ", or ".join(causes)


def _which(flagged: Tensor) -> str:
    count = int(flagged.sum())
    return f" in {count} of {len(flagged)} items" if 0 < count < len(flagged) else ""


def _noise(conditions: Conditions, ratio: float) -> str:
    noise = conditions.noise
    if isinstance(noise, Gaussian) and torch.as_tensor(noise.sigma).numel() == 1:
        sigma = float(noise.sigma)
        return (
            f"sigma {sigma:.3g} is stated, {sigma * ratio:.3g} would fit: --noise {Gaussian.name}:{sigma * ratio:.3g}"
        )
    factor = max(ratio, 1 / ratio) if ratio > 0 else math.inf
    return f"by a factor {factor:.2g} in standard deviation"


def _scale(conditions: Conditions) -> str:
    if conditions.scale is None:
        return "the images reach beyond the prior's range"
    low, high = conditions.scale.range
    how = {"estimated": "estimated; --scale LOW:HIGH fixes it", "given": "given; --scale auto estimates it"}
    origin = how.get(conditions.scale.origin, "the prior's own; --scale auto estimates it")
    return f"the images reach beyond the prior's range {low:.3g} .. {high:.3g} ({origin})"


def _value(parameter: float | None) -> str:
    return "at its default" if parameter is None else f"{parameter:g}"


def _advice(strategy: Strategy, direction: int) -> str:
    """Parameters to change so that samples follow the data more closely (1) or less (-1), with their values."""
    fields = strategy.__dataclass_fields__
    parts = [
        f"{'raise' if sign == direction else 'lower'} {name}, now {_value(getattr(strategy, name))}"
        for name, sign in strategy.data_strength.items()
    ]
    if "steps" in fields:
        parts.append(f"take more steps, now {strategy.steps}")  # type: ignore[attr-defined]
    return ", or ".join(parts) or "choose another strategy"
