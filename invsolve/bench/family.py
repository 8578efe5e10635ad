"""A family of problems with a known posterior, and how a strategy is run on one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from invsolve.contracts.strategy import Strategy

#: Runs a strategy on one problem, with the seed of its draws, and returns the figures.
Measure = Callable[[Strategy, int], dict[str, float]]


@dataclass(frozen=True)
class Family:
    """Problems whose posterior is known exactly or can be sampled as precisely as wished.

    Attributes:
        problems: names of all.
        usual: those that run when none is named.
        columns: figure -> heading of the table.
        legend: what the figures mean, one line; `{samples}` and `{floor}` = 1 / sqrt(samples) are filled in.
        make: (problem, seed, samples, device) -> how to measure a strategy on it. The seed draws the problem.
        repeats: random problems of each name unless told otherwise.
    """

    problems: Sequence[str]
    usual: Sequence[str]
    columns: Mapping[str, str]
    legend: str
    make: Callable[[str, int, int, str], Measure]
    repeats: int = 1
