"""Whether what a strategy's declared parameters advise brings samples closer to the data: measured, never taken on trust."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from invsolve.contracts.strategy import Strategy
from invsolve.contracts.strength import moves
from invsolve.errors import NonFinite
from invsolve.testing.distances import run
from invsolve.testing.exact import Exact

#: Factors of a parameter, and numbers of steps, with which samples are made to miss the data, or to follow them too closely.
FACTORS, STEPS = (1 / 8, 1.0, 8.0), (4, 12)
#: Residuals over what the noise explains beyond which advice is given; most steps that a trial takes.
LOW, HIGH, MOST_STEPS = 0.8, 1.2, 24


def trials(strategy: Strategy, exact: Exact) -> Iterator[tuple[str, float, float]]:
    """Settings with which the advice is asked for, and what following it changes.

    Yields:
        (name and value, in words; the residual over what the noise explains before; after).
    """
    known: dict[Strategy, tuple[float, float]] = {}

    def residual(setting: Strategy) -> tuple[float, float]:
        if setting not in known:
            known[setting] = _residual(setting, exact)
        return known[setting]

    for name in strategy.data_strength:
        given: Any = getattr(strategy, name)
        # A parameter that is not in use is taken into use.
        base = strategy if given is not None else replace(strategy, **{name: 1.0})
        steps: int = getattr(base, "steps", 0)
        # Iterations of a solver are more than levels of a diffusion.
        more = 1 if "prior" in strategy.needs else 12
        if name == "steps":
            settings = [replace(base, steps=count * more) for count in STEPS]  # type: ignore[call-arg]
        else:
            short = {"steps": min(steps, MOST_STEPS * more)} if steps else {}
            settings = [replace(base, **{name: getattr(base, name) * factor}, **short) for factor in FACTORS]
        for setting in settings:
            before, stride = residual(setting)
            direction = 1 if before > HIGH else -1 if before < LOW and setting.draws else 0
            for parameter, way, value in moves(setting, direction, stride) if direction else []:
                if parameter == name and way:
                    changed = value * 4 if name == "steps" else value * 2.0**way
                    after, _ = residual(replace(setting, **{name: changed}))
                    yield f"{name} {value:g}", before, after


def _residual(strategy: Strategy, exact: Exact) -> tuple[float, float]:
    """Residual over what the noise explains, infinite where the run diverges; and the median of the longest strides."""
    try:
        outcome = run(strategy, exact.problem, 1)
    except NonFinite:
        return float("inf"), float("nan")
    stride = outcome.diagnostics.get("stride")
    longest = float("nan") if stride is None else float(stride.median())
    return float(outcome.discrepancy.square().mean().sqrt()), longest
