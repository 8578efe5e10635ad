"""The one map between a prior's network units and an instrument's physical units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.errors import UserError


@dataclass(frozen=True)
class Scale:
    """physical = factor * network + offset.

    Args:
        factor: > 0; a number, or a tensor (N,) with one value per item.
        offset: a number, or a tensor (N,).
        origin: where it came from, for the record: "identity", "prior", "given" or "estimated".
    """

    factor: float | Tensor = 1.0
    offset: float | Tensor = 0.0
    origin: str = "identity"

    @classmethod
    def from_range(cls, low: float | Tensor, high: float | Tensor, origin: str = "given") -> Scale:
        """Map network [-1, 1] onto physical [low, high].

        Raises:
            UserError: high is not above low.
        """
        if not bool((torch.as_tensor(high) > torch.as_tensor(low)).all()):
            raise UserError(f"scale: the range must rise, got {low} .. {high}")
        return cls((high - low) / 2, (high + low) / 2, origin)

    @property
    def range(self) -> tuple[float, float]:
        """The physical values of network -1 and +1 (of the first item)."""
        factor, offset = (float(torch.as_tensor(v).flatten()[0]) for v in (self.factor, self.offset))
        return offset - factor, offset + factor

    def rows(self, items: list[int]) -> Scale:
        """Return the scale of these items, one value a row."""

        def pick(value: float | Tensor) -> float | Tensor:
            return value[items] if isinstance(value, Tensor) and value.ndim else value

        return Scale(pick(self.factor), pick(self.offset), self.origin)

    def broadcast(self, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Return (factor, offset) shaped to broadcast against (B, ...), on its device."""

        def shape(value: float | Tensor) -> float | Tensor:
            if not isinstance(value, Tensor):
                return value
            real = like.real if like.is_complex() else like
            return value.to(real.device, real.dtype).reshape(-1, *[1] * (like.ndim - 1))

        return shape(self.factor), shape(self.offset)

    def to_physical(self, x: Tensor) -> Tensor:
        """Network units to physical units, (B, ...)."""
        factor, offset = self.broadcast(x)
        return factor * x + offset

    def to_network(self, x: Tensor) -> Tensor:
        """Physical units to network units, (B, ...)."""
        factor, offset = self.broadcast(x)
        return (x - offset) / factor
