"""What to change when samples do not fit their data: causes in words, the likeliest first, with the values to give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.api import choice
from invsolve.contracts.noise import Gaussian, Noise
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.contracts.strength import LONG, moves


@dataclass(frozen=True)
class Conditions:
    """What a judgement of samples depends on besides them.

    Attributes:
        strategy: made the samples.
        noise: as it was stated; None where it is not known.
        scale: between network and physical units; None where it is not known.
        doubt: why the scale may be wrong, as found before the run; empty where nothing speaks against it.
        least: what least squares itself leaves of an item, over what the noise explains (`explained.least_misfit`), by its
            number among the items judged; None where it cannot be asked.
    """

    strategy: Strategy
    noise: Noise | None
    scale: Scale | None
    doubt: str = ""
    least: Callable[[int], float] | None = None


def loose(ratio: float, flagged: Tensor, stride: float, conditions: Conditions, least: float = math.nan) -> str:
    """What to say of samples whose residual is too large.

    Args:
        ratio: residual over what the noise explains.
        flagged: boolean (items,), whose residual it is; none for that of all.
        stride: of their longest data step; NaN where it is not known.
        least: what least squares leaves of one of them, over what the noise explains, where that is too much as well.
    """
    strategy = conditions.strategy
    follows = f"the strategy follows the data {_badly(strategy, stride)} ({_words(moves(strategy, 1, stride))})"
    noisy = f"the noise is larger than stated ({_noise(conditions, ratio)})"
    what = f"the samples miss the data: residual {ratio:.2f} of what the noise explains{_which(flagged)}"
    if not math.isnan(least):
        # No image does better, whatever made it: steps, strategy and scale come after what no image can mend.
        after = f"; only then: {follows}" if strategy.explains else ""
        return (
            f"{what}. Least squares itself leaves {least:.2f} or more: no image explains these data. Either the operator does "
            f"not describe the instrument (check its coil maps, centre of rotation, kernel or geometry), or {noisy}{after}"
        )
    causes = [follows, noisy]
    if "prior" in strategy.needs:
        causes.append(f"the images reach beyond the prior's range{_range(conditions)}")
    causes.append("the operator does not describe the instrument")
    return f"{what}. {_list(causes, conditions)}"


def tight(ratio: float, flagged: Tensor, stride: float, conditions: Conditions) -> str:
    """What to say of samples whose residual is too small; arguments as for `loose`."""
    changes = _words(moves(conditions.strategy, -1, stride))
    causes = [
        f"the noise is smaller than stated ({_noise(conditions, ratio)})",
        f"the strategy follows the data too closely, and its spread is too small ({changes})",
    ]
    return f"the samples fit the noise: residual {ratio:.2f} of what it explains{_which(flagged)}. {_list(causes, conditions)}"


def wild(flagged: Tensor, ratios: Tensor, reach: Tensor, accepted: float, conditions: Conditions) -> str:
    """What to say of samples that are no images at all.

    Args:
        flagged: boolean (items,).
        ratios, reach: (items, samples), of all items.
        accepted: the largest ratio that is not complained about.
    """
    far, misfit = float(reach[flagged].nan_to_num(nan=0.0).max()), float(ratios[flagged].square().mean().sqrt())
    values = f"values {far:.3g} times as far out as the prior's images" if far > 1 else ""
    if misfit <= accepted:
        return f"the samples fit the data with {values}{_which(flagged)}: the scale is wrong{_taken(conditions)}"
    # Zero noise leaves no ratio to tell by.
    residual = "" if math.isnan(misfit) else f"residual {misfit:.3g} of what the noise explains"
    signs = " and ".join(part for part in (residual, values) if part)
    causes = [f"its data steps are too long ({_words(moves(conditions.strategy, -1))})"]
    if "prior" in conditions.strategy.needs:
        causes.append(f"the scale is wrong{_taken(conditions)}")
    return f"the strategy diverged{_which(flagged)}: {signs}. {_list(causes, conditions)}"


def narrow(span: float, conditions: Conditions) -> str:
    """What to say of samples that are a constant to the prior.

    Args:
        span: the largest part of the prior's range that one fills.
    """
    return (
        f"the samples are a constant to the prior, {span:.2g} of its range from their smallest to their largest value: the "
        f"scale is wrong{_taken(conditions)}"
    )


def unfitted(conditions: Conditions) -> str:
    """What to say of the residual of a method that does not look at it."""
    fitting = choice.strategies(
        lambda cls: cls.explains and not cls.couples_items and set(cls.needs) <= set(conditions.strategy.needs)
    )
    others = f"{fitting[0]!r}, or one with a prior, does" if fitting else "one with a prior does"
    return f"{conditions.strategy.name or type(conditions.strategy).__name__!r} does not fit its image to the data; {others}"


def _words(changes: list[tuple[str, int, float]]) -> str:
    texts = {
        1: "raise {}, now {:g}",
        -1: "lower {}, now {:g}",
        0: "halve {}, now {:g}, or double it: steps too long miss the data as those too short do",
    }
    parts = [
        f"take more steps, now {value:g}" if name == "steps" else texts[sign].format(name, value)
        for name, sign, value in changes
    ]
    return ", or ".join(parts) or "choose another strategy"


def _badly(strategy: Strategy, stride: float) -> str:
    if stride > LONG and 0 in strategy.data_strength.values():
        return f"in steps up to {stride:.2g} times as long as the misfit, and so steps over them"
    return "too weakly"


def _list(causes: Sequence[str], conditions: Conditions) -> str:
    """What was found before the run comes first: it needs no guessing."""
    doubt = [f"the scale is wrong ({conditions.doubt})"] if conditions.doubt else []
    return "Either " + ", or ".join([*doubt, *causes])


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


def _range(conditions: Conditions) -> str:
    """The physical range of the prior, and where it comes from."""
    if conditions.scale is None:
        return ""
    low, high = conditions.scale.range
    how = {"estimated": "estimated; --scale LOW:HIGH fixes it", "given": "given; --scale auto estimates it"}
    return f" {low:.3g} .. {high:.3g} ({how.get(conditions.scale.origin, 'its own; --scale auto estimates it')})"


def _taken(conditions: Conditions) -> str:
    return f", the prior's range is taken for{_range(conditions)}" if conditions.scale is not None else ""
