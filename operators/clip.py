"""Clipping: a detector that saturates, from which high dynamic range is to be recovered."""

from __future__ import annotations

from torch import Tensor

from invsolve.contracts.operator import Operator
from invsolve.errors import UserError


class Clip(Operator):
    """A detector that saturates: values outside of a range are clipped; high dynamic range. Not linear.

    y = min(max(gain * x, low), high); y has the shape of x, any. The gradient is zero where the detector is saturated, so
    that strategies that go by the operator's tangent ("moment") refuse it.

    Args:
        low: the least that the detector gives.
        high: the most.
        gain: from x to the detector's units, such as an exposure.

    Raises:
        UserError: an empty range.
    """

    name = "clip"
    channelwise = True
    flat = "saturation"
    examples = ({}, {"low": 0.3, "high": 2.0, "gain": 1.5})

    def __init__(self, low: float = 0.0, high: float = 1.0, gain: float = 1.0) -> None:
        super().__init__()
        if not low < high:
            raise UserError(f"operator 'clip': low must be below high, got {low} and {high}")
        self.low, self.high, self.gain = low, high, gain

    def forward(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(self.low, self.high)
