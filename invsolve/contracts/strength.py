"""Which way to change a strategy's parameters so that its samples follow the data more closely, or less."""

from __future__ import annotations

import math

from invsolve.contracts.strategy import Strategy

#: Data steps longer than this part of the misfit step over it; shorter ones than the other lag behind it. In between neither
#: can be told from the residual alone.
LONG, SHORT = 1.0, 0.15


def moves(strategy: Strategy, direction: int, stride: float = math.nan) -> list[tuple[str, int, float]]:
    """Which parameters to change: name, 1 to raise it, -1 to lower it, 0 to try both; and its value now.

    Args:
        strategy: with its parameters.
        direction: 1 for samples that miss the data, -1 for samples that follow them too closely.
        stride: of the longest data step, see `contracts.strategy.State`; NaN where it is not known.
    """
    settings = [(name, sign, getattr(strategy, name)) for name, sign in strategy.data_strength.items()]
    settings = [(name, sign, value) for name, sign, value in settings if isinstance(value, int | float)]
    way = -1 if stride > LONG else 1 if stride < SHORT else 0
    depends = any(sign == 0 for _, sign, _ in settings)
    changes = []
    for name, sign, value in settings:
        if name == "steps":
            # Fewer steps are no remedy, and more of a length that is too long lead nowhere.
            if direction > 0 and (way > 0 or not depends):
                changes.append((name, 1, value))
        elif sign:
            changes.append((name, sign * direction, value))
        elif direction > 0:
            changes.append((name, way, value))
        elif way >= 0:
            changes.append((name, -1, value))
    return changes
