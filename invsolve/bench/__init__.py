"""How far strategies are from exact posteriors: families of problems whose posterior is known, one module a family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from invsolve import api, registry
from invsolve.bench import gaussian, levy, mixture, phase, quadratic
from invsolve.bench.family import Family
from invsolve.errors import NonFinite, UserError, suggestion

FAMILIES: dict[str, Family] = {
    "gaussian": gaussian.FAMILY,
    "mixture": mixture.FAMILY,
    "levy": levy.FAMILY,
    "quadratic": quadratic.FAMILY,
    "phase": phase.FAMILY,
}


def family(name: str) -> Family:
    """A family of problems by name.

    Raises:
        UserError: an unknown name.
    """
    if name not in FAMILIES:
        raise UserError(f"unknown family {name!r}.{suggestion(name, FAMILIES)}")
    return FAMILIES[name]


def bench_posterior(
    name: str,
    strategies: Sequence[str],
    problems: Sequence[str],
    evaluations: int | None,
    samples: int,
    repeats: int | None,
    device: str,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Compare strategies with the exact posteriors of a family of problems.

    Args:
        name: of the family.
        strategies: names; empty for all that draw samples.
        problems: names of the family's problems; empty for its usual ones.
        evaluations: network calls and vector-Jacobian products a sample; None for each strategy's default.
        samples: draws a problem.
        repeats: random problems of each name, over which the median is taken; None for the family's own count.
        device: where to compute.
        say: told what is running, and what cannot run.

    Returns:
        One row a strategy and problem: the figures in the family's `columns`, `evaluations`, `seconds`, and `failed`, the
        number of repeats without a finite result (the figures are then the median of the others).

    Raises:
        UserError: an unknown name.
    """
    chosen = family(name)
    for problem in problems:
        if problem not in chosen.problems:
            raise UserError(f"unknown problem {problem!r}.{suggestion(problem, chosen.problems)}")
    known = registry.available("strategy")
    # By their names, whatever alias was given.
    strategies = [registry.find("strategy", n).name for n in strategies]  # type: ignore[attr-defined]
    names = list(strategies) or [n for n, cls in known.items() if cls.draws]  # type: ignore[attr-defined]
    made = {n: api.strategy(n) if evaluations is None else api.strategy(n).at_cost(evaluations) for n in names}
    rows = []
    for problem in problems or chosen.usual:
        runs_by_name: dict[str, list[dict[str, float]]] = {n: [] for n in names}
        failed = dict.fromkeys(names, 0)
        for seed in range(repeats or chosen.repeats):
            measure = chosen.make(problem, seed, samples, device)
            for n in list(runs_by_name):
                say(f"{problem}, {n}" + (f", random problem {seed + 1}" if (repeats or chosen.repeats) > 1 else ""))
                try:
                    runs_by_name[n].append(measure(made[n], seed + 1))
                except UserError as error:
                    if n in strategies and len(problems) == 1:
                        raise
                    say(f"left out: {error}")
                    del runs_by_name[n]
                except NonFinite as error:
                    say(f"failed: {error}")
                    failed[n] += 1
        for n, runs in runs_by_name.items():
            figures = {key: median(run[key] for run in runs) for key in runs[0]} if runs else {}
            rows.append({"family": name, "problem": problem, "strategy": n, **figures, "failed": failed[n]})
    return rows
