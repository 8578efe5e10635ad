"""Operators that differ from item to item, such as masks, kernels or coil maps of their own: one operator for each item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from invsolve.contracts.module import placed
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG


class PerItem(Operator):
    """One operator for each item of a measurement, all of one kind and with the same shapes.

    A run takes the operator of each item, `for_item`, and never this one: norms, closed forms, groups and what is measured
    are then those of the item. Called itself, it takes all items at once, one per row: x (items, C, *spatial).

    Args:
        items: how many there are.
        make: makes the operator of an item, counted from 0, when it is asked for.

    Raises:
        UserError: no items, or (when an item's operator is made) operators that differ in kind or image shape.
    """

    def __init__(self, items: int, make: Callable[[int], Operator]) -> None:
        super().__init__()
        if items < 1:
            raise UserError("an operator for each item needs at least one item, got none")
        self.items, self.make = items, make
        first = make(0)
        self.image_shape, self.complex_image = first.image_shape, first.complex_image
        self.image_unit, self.name, self.waits = first.image_unit, first.name, first.waits

    def of_item(self, item: int) -> Operator:
        if not 0 <= item < self.count:
            raise UserError(f"{self._title()} has {self.count} items, asked for item {item} (the first is 0)")
        one = self.make(item)
        if isinstance(one, LinearOperator) != isinstance(self, LinearOperator) or one.image_shape != self.image_shape:
            raise UserError(
                f"{self._title()}: the operator of item {item} takes images {one.image_shape}, that of item 0 "
                f"{self.image_shape}; give operators of one kind and size"
            )
        return one

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        return self.for_item(0).image_shape_for(measurement_shape, channels)

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        return self.for_item(0).measurement_shape(image_shape)

    def measured(self) -> Tensor | None:
        """(items, *measurement), as far as the masks of the items have axes; None where every item is measured whole."""
        masks = [self.for_item(item).measured() for item in range(self.count)]
        known = [mask for mask in masks if mask is not None]
        if not known:
            return None
        return torch.stack([torch.ones_like(known[0], dtype=torch.bool) if m is None else m.bool() for m in masks])

    def forward(self, x: Tensor) -> Tensor:
        return self._each(lambda operator, row: operator(row), x)

    @property
    def count(self) -> int:
        """`items`, which here is never None."""
        assert self.items is not None
        return self.items

    def _title(self) -> str:
        return f"operator {self.name or type(self).__name__!r} with parameters for each item"

    def _each(self, apply: Callable[..., Tensor], *values: Any) -> Tensor:
        """`apply(operator, value, ...)` of each row, with the operator of its item; other values go in whole."""
        count = len(values[0])
        if count != self.items:
            raise UserError(
                f"{self._title()} takes its {self.items} items at once, one per row, got {count} rows; for_item(k) is the "
                "operator of item k alone"
            )

        def row(value: Any, item: int) -> Any:
            whole = not isinstance(value, Tensor) or not value.ndim or len(value) != count
            return value if whole else value[item : item + 1]

        operators = (placed(self.for_item(item), values[0].device) for item in range(count))
        return torch.cat([apply(one, *(row(v, item) for v in values)) for item, one in enumerate(operators)])


class LinearPerItem(PerItem, LinearOperator):
    """`PerItem` of linear operators."""

    def adjoint(self, y: Tensor) -> Tensor:
        return self._each(lambda operator, row: operator.adjoint(row), y)

    def normal(self, x: Tensor) -> Tensor:
        return self._each(lambda operator, row: operator.normal(row), x)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        def solve(operator: Any, z: Tensor, y: Tensor, rho: float | Tensor, start: Tensor | None) -> Tensor:
            return operator.prox(z, y, rho, replace(solver, start=start))

        return self._each(solve, z, y, rho, solver.start)

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        def solve(operator: Any, y: Tensor, start: Tensor | None) -> Tensor:
            return operator.pinv(y, replace(solver, start=start))

        return self._each(solve, y, solver.start)

    @property
    def baseline_floor(self) -> float | None:
        floor: float | None = self.for_item(0).baseline_floor
        return floor

    @property
    def ridge_by_noise(self) -> bool:
        return bool(self.for_item(0).ridge_by_noise)

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        given = () if solver is None else (solver,)
        return self._each(lambda operator, row, level: operator.baseline(row, level, *given), y, sigma)

    def norm(self, like: Tensor | None = None) -> float:
        """The largest of the items' norms."""
        one = None if like is None else like[:1]
        return max(self.for_item(item).norm(one) for item in range(self.count))


def made_for_items(items: int, make: Callable[[int], Operator]) -> PerItem:
    """An operator for each of so many items, made when asked for; see `PerItem`."""
    return (LinearPerItem if isinstance(make(0), LinearOperator) else PerItem)(items, make)


def per_item(operators: Sequence[Operator]) -> Operator:
    """Several operators as one for as many items: the first measures item 0, the second item 1, and so on.

    Operators registered by name take parameters for each item themselves, such as a mask (items, 1, rows, columns) of
    `invsolve.operator("inpainting", mask=...)`.

    Args:
        operators: of one kind, with the same image and measurement shapes.

    Raises:
        UserError: none are given, or their kinds or shapes differ.
    """
    given = list(operators)
    if not given:
        raise UserError("per_item takes one operator for each item, got none")
    whole = made_for_items(len(given), given.__getitem__)
    # So that their tensors count as this operator's: they move with it, and a record of it covers them.
    whole.parts = nn.ModuleList(given)
    for item in range(len(given)):
        whole.for_item(item)
    return whole
