"""Quantisation: a detector of few levels."""

from __future__ import annotations

from torch import Tensor

from invsolve.contracts.operator import Operator
from invsolve.errors import UserError
from invsolve.operators._rounding import STRAIGHT_THROUGH, rounded


class Quantize(Operator):
    """A detector of few levels: each value becomes the nearest of them. Not linear.

    y = low + step round((x - low) / step), clipped to [low, high], step = (high - low) / (levels - 1); y has the shape of x,
    any. The gradient is that of the clipping alone.

    Args:
        levels: how many, at least 2; 256 for 8 bits.
        low: the lowest.
        high: the highest.

    Raises:
        UserError: fewer than two levels, or an empty range.
    """

    name = "quantize"
    channelwise = True
    surrogate, flat = STRAIGHT_THROUGH, "rounding"
    examples = ({}, {"levels": 2, "low": -1.0, "high": 3.0})

    def __init__(self, levels: int = 16, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        if levels < 2:
            raise UserError(f"operator 'quantize': levels must be at least 2, got {levels}")
        if not -float("inf") < low < high < float("inf"):
            raise UserError(f"operator 'quantize': low must be below high, both finite, got {low} and {high}")
        self.levels, self.low, self.high = levels, low, high

    def forward(self, x: Tensor) -> Tensor:
        step = (self.high - self.low) / (self.levels - 1)
        return self.low + step * rounded((x.clamp(self.low, self.high) - self.low) / step)
