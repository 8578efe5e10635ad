"""Whether samples without a truth are draws from the posterior, in words: the Stein identities of some items, judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from invsolve.api.stein import LEVELS, PARTS, Terms

#: Chance at which exact draws are complained about, over all tests together.
LEVEL = 0.01
#: Departures that are smaller are not worth a word, however certain: of a standard deviation relative, of the mean in
#: posterior standard deviations, of a residual relative.
WIDTH, BIAS, RESIDUAL = 0.05, 0.1, 0.1
#: Fewer samples say nothing of how they scatter about themselves.
FEWEST = 3
#: What the figures are called in a table.
HEADINGS = {
    "width": "width: samples' sd over the posterior's",
    "width_measured": "the same of what the data determine",
    "width_unmeasured": "the same of what they leave open",
    "bias": "error of the mean, in posterior sd",
    "p_value": "chance of such scores for exact draws",
    "residual": "residual of the samples over the noise",
    "residual_mean": "the same of their mean",
    "residual_expected": "what that is for exact draws",
}
_WHERE = {
    "width": "",
    "width_measured": " in what the data determine",
    "width_unmeasured": " in what the data leave open",
}


@dataclass(frozen=True)
class Trust:
    """How samples lie to prior times likelihood; NaN where it does not apply.

    Attributes:
        verdict: "fine", or one or several of "too narrow", "too wide", "biased", "off the data".
        text: the same in a sentence with figures.
        p_value: chance that exact draws depart as far, over all tests of scores together (Bonferroni).
        width, width_measured, width_unmeasured: standard deviation of the samples over the posterior's, root mean square over
            the whole image, over what the data determine of it and over what they do not.
        bias: distance of the samples' mean from the posterior's, root mean square in posterior standard deviations.
        residual: root mean square |y - A x| of the samples over the noise; 1 for exact draws.
        residual_mean, residual_expected: the same of their mean, and what it is for draws with this spread that fit.
        spread_unmeasured: standard deviation of the samples in what the data do not determine, network units.
        samples, items: what was looked at.
    """

    verdict: str
    text: str
    p_value: float
    width: float
    width_measured: float
    width_unmeasured: float
    bias: float
    residual: float
    residual_mean: float
    residual_expected: float
    spread_unmeasured: float
    samples: int
    items: int

    def record(self) -> dict[str, Any]:
        """As JSON: what is not a number is None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def judge_trust(items: Sequence[Terms]) -> Trust:
    """Judge the Stein terms of one or several items.

    Widths by Student's t on the samples' contributions, N (S - 1) degrees of freedom. The mean by that of the products of
    pairs, which are uncorrelated for exact draws, so that their mean square is the variance: the reference of a wild
    bootstrap, without its signs. Complained about is what has a chance below 1 % over all tests and is worth a word.
    """
    from scipy.stats import t as student

    samples = len(items[0].residual)
    p_values: dict[str, float] = {}
    widths = dict.fromkeys(PARTS, math.nan)
    for name in PARTS:
        if not all(name in item.width for item in items):
            continue
        values = torch.stack([item.width[name] for item in items])
        change = float(values.mean())
        freedom = len(items) * (samples - 1)
        error = math.sqrt(float((values - values.mean(1, keepdim=True)).square().sum()) / freedom / values.numel())
        p_values[name] = 2 * float(student.sf(abs(change) / max(error, 1e-30), freedom))
        reach = sum(item.reach[name] for item in items) / len(items)
        widths[name] = math.sqrt(max(1 + change / reach, 0.0))
    found, power = 0.0, 0.0
    for k in range(len(LEVELS)):
        row, column = torch.triu_indices(samples, samples, 1)
        products = torch.cat([item.pairs[k][row, column] for item in items])
        error = math.sqrt(float(products.square().mean()) / len(products))
        p_values[f"bias at {LEVELS[k]}"] = float(student.sf(float(products.mean()) / max(error, 1e-30), len(products)))
        found, power = found + float(products.mean()), power + sum(item.power[k] for item in items) / len(items)
    bias = math.sqrt(max(found, 0.0) / max(power, 1e-30))
    chance = LEVEL / len(p_values)
    squared = torch.stack([item.residual.square().mean() for item in items])
    numbers = sum(item.dof for item in items)
    residual = float(squared.mean().sqrt())

    verdicts, phrases = [], []
    for name, width in widths.items():
        # A part is told where the whole hides it.
        if p_values.get(name, 1.0) < chance and abs(width - 1) > WIDTH:
            kind = "too narrow" if width < 1 else "too wide"
            verdicts.append(kind)
            phrases.append(f"{kind} ({width:.2f} of the posterior's standard deviation{_WHERE[name]})")
    if min(p for name, p in p_values.items() if name.startswith("bias")) < chance and bias > BIAS:
        verdicts.append("biased")
        phrases.append(f"biased (their mean is off by {bias:.2f} posterior standard deviations)")
    if abs(residual**2 - 1) > max(2 * RESIDUAL, 4 * math.sqrt(2 / numbers)):
        verdicts.append("off the data")
        phrases.append(f"off the data (residual {residual:.2f} of what the noise explains)")
    verdict = ", ".join(dict.fromkeys(verdicts)) or "fine"
    text = "the samples are " + ("; ".join(phrases) or "as draws from prior times likelihood are")
    return Trust(
        verdict,
        text,
        min(1.0, min(p_values.values()) * len(p_values)),
        widths["width"],
        widths["width_measured"],
        widths["width_unmeasured"],
        bias,
        residual,
        _mean([item.residual_mean for item in items]),
        _mean([item.residual_expected for item in items]),
        _mean([item.spread_unmeasured for item in items]),
        samples,
        len(items),
    )


def _mean(values: Sequence[float]) -> float:
    """Root mean square."""
    return math.sqrt(sum(v * v for v in values) / len(values))
