"""What a run says at its end beside the judgement of its samples: what stopped at a limit, and how to raise the limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from invsolve.api import choice
from invsolve.contracts.strategy import Strategy
from invsolve.numerics import grouping


def remarks(diagnostics: Mapping[str, Any], strategy: Strategy) -> list[str]:
    """One line each on inner solves, and on iterations, that ended at their limit and not at their tolerance.

    Args:
        diagnostics: `inner_unconverged` and, of an iterative strategy, `at_ceiling`, (N, S), as the engine gives them.
        strategy: with its parameters.
    """
    lines = [line for line in [modes(diagnostics, strategy)] if line]
    ended = _counts(diagnostics, "at_ceiling")
    if ended is not None and bool(ended.any()):
        lines.append(
            f"{int((ended > 0).sum())} of {ended.numel()} images ended at the limit of iterations and not at the "
            f"tolerance: raise steps, now {getattr(strategy, 'steps', '?')}"
        )
    solves = _counts(diagnostics, "inner_unconverged")
    if solves is not None and bool(solves.any()):
        lines.append(
            f"{int(solves.sum())} inner solves of {int((solves > 0).sum())} of {solves.numel()} samples ended at their last "
            f"iteration and not at their tolerance: {_remedy(strategy)}"
        )
    return lines


def modes(diagnostics: Mapping[str, Any], strategy: Strategy) -> str:
    """One line where the samples of an item fall into groups (`numerics.grouping`); empty where they do not.

    Args:
        diagnostics: `grouping`, (N, S), as the engine gives it.
        strategy: that drew the samples, with its parameters.
    """
    value = _counts(diagnostics, "grouping")
    if value is None or not strategy.draws:
        return ""
    flagged = value[:, 0] > grouping.limit(value.shape[1])
    if not bool(flagged.any()):
        return ""
    which = f"of {int(flagged.sum())} of {len(flagged)} items " if len(flagged) > 1 else ""
    line = f"the samples {which}fall into groups (their distances are bimodal): mean and std describe none of them"
    return f"{line}{choice.other_modes(type(strategy))}"


def _counts(diagnostics: Mapping[str, Any], name: str) -> torch.Tensor | None:
    value = diagnostics.get(name)
    return None if value is None else torch.as_tensor(value)


def _remedy(strategy: Strategy) -> str:
    if strategy.inner_limit:
        return f"raise {strategy.inner_limit}, now {getattr(strategy, strategy.inner_limit)}"
    others = choice.strategies(lambda cls: bool(cls.inner_limit) and cls.needs == ("prior", "linear", "gaussian"))
    name = strategy.name or type(strategy).__name__
    more = f"; {others[0]!r} lets you set it" if others else ""
    return f"the limit of {name!r} is fixed, and little noise makes solves long{more}"
