"""Conformance of a strategy: its claims against an exact posterior and against ignorance, its batches, its repetition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.strategy import Strategy
from invsolve.engine.batch import Outcome, run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.testing.advice import trials
from invsolve.testing.cases import Case, below, expecting, holds, report_of
from invsolve.testing.distances import TAIL, distances, flat, ignorance, of_what_was_used, run
from invsolve.testing.exact import Exact, exact_posterior
from invsolve.testing.report import Finding, Report

#: Standard errors that a figure of exact samples may be off: one in three hundred is further off, to one side 1 in 700.
SIGMAS = 3.0
#: Steps of the runs that are only compared with one another.
_STEPS = 20


class Trial:
    """One run of a strategy on an exact problem, taken when it is first looked at and shared by the cases."""

    def __init__(self, strategy: Strategy, operator: LinearOperator | None, device: str, options: Mapping[str, Any]):
        self.strategy, self.operator, self.device, self.options = strategy, operator, device, options

    def exact(self, **options: Any) -> Exact:
        """The problem; where nothing is drawn and no prior asked, rows are alike, and a few stand for all."""
        alike = {} if self.strategy.draws or "prior" in self.strategy.needs else {"samples": 2}
        return exact_posterior(self.operator, device=self.device, **{**self.options, **alike, **options})

    @cached_property
    def _seen(self) -> tuple[dict[str, float], dict[str, float], int, int, float]:
        exact = self.exact()
        outcome = run(self.strategy, exact.problem, 1)
        exact = of_what_was_used(exact, outcome)
        share = float(exact.covariance.square().sum() / exact.covariance.trace() ** 2)
        return distances(flat(outcome), exact), ignorance(exact), exact.problem.batch, len(exact.mean), share

    @property
    def figures(self) -> dict[str, float]:
        """`distances` of the strategy's samples."""
        return self._seen[0]

    @property
    def prior(self) -> dict[str, float]:
        """`ignorance`: the figures of a sampler that ignores the data, or of the prior's mean."""
        return self._seen[1]

    @property
    def draws(self) -> int:
        return self._seen[2]

    @property
    def floor(self) -> float:
        """The mean error that exact samples have: a mean of n is off by 1 / sqrt(n) standard deviations. A point: none."""
        return 1 / math.sqrt(self.draws) if self.strategy.draws else 0.0

    @property
    def spread(self) -> float:
        """Relative standard error of a standard deviation of n normal numbers, 1 / sqrt(2 (n - 1))."""
        return 1 / math.sqrt(2 * (self.draws - 1))

    @property
    def width_error(self) -> float:
        """Relative standard error of the width of all pixels of n exact samples: sqrt(tr C^2 / (2 (n - 1))) / tr C.

        The variances along the eigenvectors scatter independently, each by sqrt(2 / (n - 1)) of itself; a width by half as much.
        """
        return self.spread * math.sqrt(self._seen[4])

    @property
    def edge(self) -> float:
        """How far off 1, relative, the 5 % quantile of exact samples' widths along the eigenvectors may lie.

        The widths scatter normally with `spread`, so their quantile lies z = 1.64 of those off. That of m eigenvectors has the
        standard error sqrt(p (1 - p) / m) / density(z), again in units of `spread`.
        """
        normal, m = NormalDist(), self._seen[3]
        z = normal.inv_cdf(1 - TAIL)
        error = math.sqrt(TAIL * (1 - TAIL) / m) / normal.pdf(z)
        return (z + SIGMAS * error) * self.spread


def strategy_cases(
    strategy: Strategy, operator: LinearOperator | None = None, device: str = "cpu", **options: Any
) -> list[Case]:
    """The properties of a strategy, see `check_strategy`."""
    trial = Trial(strategy, operator, device, options)
    unmasked = operator is not None and not isinstance(operator, MaskableOperator)
    absent = "the operator is not maskable" if unmasked and "maskable" in strategy.needs else ""
    point = absent or ("" if strategy.draws else "a point estimate")
    return [
        Case("mean", partial(_mean, trial), absent),
        Case("width", partial(_width, trial), point),
        Case("widths along the eigenvectors", partial(_modes, trial), point),
        Case("mean better than the prior's", partial(_mean_says_something, trial), absent),
        Case("width better than the prior's", partial(_width_says_something, trial), point),
        Case("widths along the eigenvectors better than the prior's", partial(_modes_say_something, trial), point),
        Case("advice", partial(_advice, trial), absent or ("" if strategy.data_strength else "it names no parameters")),
        Case("repeatable", partial(_repeatable, trial), absent),
        Case("batch independence", partial(_independent, trial), absent),
    ]


def check_strategy(
    strategy: Strategy,
    operator: LinearOperator | None = None,
    device: str = "cpu",
    expected: Mapping[str, str] | None = None,
    **options: Any,
) -> Report:
    """Hold a strategy to what it claims against the exact posterior of a Gaussian field: the cases of `checks`.

    `mean_error`, `std_ratio` and `eigen_ratio` are what it claims; to each belongs a tolerance that follows from the number
    of draws. A claim that a sampler meets which ignores the data (draws from the prior, or its mean) says nothing and is
    refused. Where the strategy chooses what is measured, the posterior is that of what it acquired. Also that a sample does
    not depend on its batch, that repeating a run repeats it, and that what `data_strength` advises is right.

    Args:
        strategy: the strategy.
        operator: real-image linear operator on (1, 16, 16); default measures half of the pixels.
        device: where to run.
        expected: properties known not to hold, with the reason.
        options: passed to `exact_posterior`.

    Raises:
        UserError: `expected` names no property.
    """
    cases = strategy_cases(strategy, operator, device, **options)
    return report_of(f"strategy {strategy.name or type(strategy).__name__}", expecting(cases, expected or {}))


def _mean(t: Trial) -> Finding:
    remedy = "the samples' mean is further from the posterior's than claimed (mean_error)"
    return below(t.figures["mean_error"], t.strategy.mean_error + t.floor, remedy)


def _width(t: Trial) -> Finding:
    low, high = t.strategy.std_ratio
    error, width = SIGMAS * t.width_error, t.figures["std_ratio"]
    text = f"sample sd / posterior sd {width:.2f}, claimed (std_ratio) {low} to {high}, give or take {error:.2f}"
    return holds(low * (1 - error) <= width <= high * (1 + error), text, text)


def _modes(t: Trial) -> Finding:
    (low, high), narrow, wide = t.strategy.eigen_ratio, t.figures["eigen_low"], t.figures["eigen_high"]
    text = f"sample sd / posterior sd along its eigenvectors, 5 to 95 %: {narrow:.2f} to {wide:.2f}, "
    text += f"claimed (eigen_ratio) {low} to {high}, give or take {t.edge:.2f}"
    return holds(low * (1 - t.edge) <= narrow and wide <= high * (1 + t.edge), text, text)


def _mean_says_something(t: Trial) -> Finding:
    remedy = (
        f"the prior's mean, without any data, meets the claim mean_error = {t.strategy.mean_error}: it says nothing"
    )
    return below(t.strategy.mean_error + t.floor, math.nextafter(t.prior["mean_error"], 0), remedy)


def _width_says_something(t: Trial) -> Finding:
    low, high = t.strategy.std_ratio
    width, error = t.prior["std_ratio"], SIGMAS * t.width_error
    met = low * (1 - error) <= width <= high * (1 + error)
    text = f"draws from the prior are {width:.2f} times as wide as the posterior"
    return holds(not met, f"{text}, within the claim std_ratio = {low} to {high}: it says nothing", text)


def _modes_say_something(t: Trial) -> Finding:
    (low, high), narrow, wide = t.strategy.eigen_ratio, t.prior["eigen_low"], t.prior["eigen_high"]
    met = low * (1 - t.edge) <= narrow and wide <= high * (1 + t.edge)
    text = f"draws from the prior have widths of {narrow:.2f} to {wide:.2f} along the eigenvectors"
    return holds(not met, f"{text}, within the claim eigen_ratio = {low} to {high}: it says nothing", text)


def _advice(t: Trial) -> Finding:
    """Following the advice on a residual never moves it the other way, whatever the setting."""
    error, worst = 0.0, ""
    for setting, before, after in trials(t.strategy, t.exact(samples=2)):
        # Towards 1: down where it was too large, up where it was too small.
        wrong = (after / before if before > 1 else before / after) - 1
        if wrong > error:
            error, worst = wrong, f"at {setting} the residual went from {before:.3g} to {after:.3g} (data_strength)"
    return below(error, 1e-3, worst)


def _few(t: Trial) -> tuple[Strategy, list[tuple[int, int]], int, Any]:
    """The strategy in a short run, four chains of two items, how many of them stay together, and their problem."""
    together = 2 if t.strategy.couples_samples else 1
    problem = replace(t.exact(samples=4).problem, samples_per_item=together)
    return _short(t.strategy), [(0, 0), (0, 1), (1, 0), (1, 1)], together, problem


def _short(strategy: Strategy) -> Strategy:
    """Twenty steps at most: every step takes the same way, so that what one mixes up or draws twice shows early."""
    steps = getattr(strategy, "steps", None)
    if not isinstance(steps, int) or steps <= _STEPS:
        return strategy
    shorter = strategy.at_cost(_STEPS)
    return replace(strategy, steps=_STEPS) if shorter == strategy else shorter  # type: ignore[call-arg]


def _repeatable(t: Trial) -> Finding:
    strategy, chains, _, problem = _few(t)
    runs: list[Outcome] = [run_batch(problem, strategy, ChainRandom(5, chains)) for _ in range(2)]
    same = torch.equal(runs[0].images, runs[1].images)
    return holds(same or t.device != "cpu", "the same seed gives another result")


def _independent(t: Trial) -> Finding:
    strategy, chains, together, problem = _few(t)
    whole = run_batch(problem, strategy, ChainRandom(5, chains)).images
    parts: list[Tensor] = []
    for start in range(0, 4, together):
        some = replace(problem, y=problem.y[start : start + together])
        parts.append(run_batch(some, strategy, ChainRandom(5, chains[start : start + together])).images)
    error = float((torch.cat(parts) - whole).abs().max() / whole.abs().max())
    return below(error, 1e-3, "a sample depends on the others in its batch")
