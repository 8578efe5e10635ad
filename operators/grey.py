"""Colour to grey: one weighted sum of the channels is measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.contracts.operator import matching
from invsolve.errors import UserError
from invsolve.operators._orthogonal import OrthogonalRows


class Grey(OrthogonalRows):
    """A weighted sum of the channels: a grey picture of a colour image.

    y = sum_c weights[c] x[c]; x (B, channels, rows, columns), y (B, 1, rows, columns); of any size.

    Args:
        weights: one for each channel; by default luma of red, green and blue (ITU-R BT.601).

    Raises:
        UserError: no weights, or all of them zero; (when applied) another number of channels.
    """

    name = "grey"
    shapes_tried = ((3, 6, 7),)

    def __init__(self, weights: list[float] | None = None) -> None:
        super().__init__()
        self.weights = torch.tensor([0.299, 0.587, 0.114] if weights is None else weights, dtype=torch.float64)
        if not 0 < float(self.weights.square().sum()) < float("inf"):
            raise UserError(f"operator 'grey': weights must be finite and not all zero, got {weights}")

    @property
    def gain(self) -> float:
        return self.remembered("gain", lambda: float(self.weights.double().square().sum()))

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        fits = len(measurement_shape) == 3 and measurement_shape[0] == 1
        return (len(self.weights), *measurement_shape[1:]) if fits else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != len(self.weights):
            raise UserError(
                f"operator 'grey' takes images (items, {len(self.weights)}, rows, columns), got {tuple(x.shape)}; give weights, "
                "one for each channel"
            )
        return (matching(self.weights, x)[:, None, None] * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return matching(self.weights, y)[:, None, None] * y
