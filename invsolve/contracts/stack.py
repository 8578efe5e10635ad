"""Several operators on one image, their measurements side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from invsolve.contracts.operator import LinearOperator, called, items_of
from invsolve.numerics.linalg import size_of


class Stack(LinearOperator):
    """Several operators on one image, measurements flattened side by side: y (B, m1 + m2 + ...)."""

    parts: nn.ModuleList

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(operators)
        self.image_shape = next((a.image_shape for a in operators if a.image_shape is not None), None)
        self.complex_image = any(a.complex_image for a in operators)
        self.image_unit = next((a.image_unit for a in operators if a.image_unit), "")
        self.name, self.items = f"stack of {', '.join(called(a) for a in operators)}", items_of(*operators)
        self.waits = next((a.waits for a in operators if a.waits), "")

    def of_item(self, item: int) -> Any:
        one = Stack([part.for_item(item) for part in self.parts])  # type: ignore[operator]
        one.image_shape = self.image_shape
        return one

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each part's measurement.

        Raises:
            UserError: no part knows its image's shape, and none was assigned to `image_shape`.
        """
        shape = tuple(self.blank().shape[1:])
        return self.remembered(shape, lambda: [part.measurement_shape(shape) for part in self.parts])  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        shapes = self.shapes()
        parts = zip(self.parts, y.split([size_of(s) for s in shapes], 1), shapes, strict=True)
        return torch.stack([part.adjoint(piece.reshape(-1, *s)) for part, piece, s in parts]).sum(0)  # type: ignore[operator]

    def measured(self) -> Tensor | None:
        masks = [part.measured() for part in self.parts]  # type: ignore[operator]
        if all(mask is None for mask in masks):
            return None
        place = next(mask.device for mask in masks if mask is not None)
        whole = torch.ones((), dtype=torch.bool, device=place)
        pairs = zip(masks, self.shapes(), strict=True)
        return torch.cat([(whole if m is None else m.bool()).expand(s).flatten() for m, s in pairs])

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        return self.image_shape


def stack(operators: Sequence[LinearOperator]) -> LinearOperator:
    """Measure one image with several operators at once; y is their flattened measurements side by side, (B, m1 + m2 + ...)."""
    return Stack(operators)
