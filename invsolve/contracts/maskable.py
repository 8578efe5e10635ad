"""Operators whose measurement splits into groups that can be acquired one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass
from invsolve.contracts.operator import LinearOperator


class MaskableOperator(LinearOperator):
    """A linear operator whose measurement splits into groups (pixels, k-space columns, view angles) acquired one by one.

    Set `group_index`: an integer tensor that broadcasts against one measurement (without the batch axis) and holds the
    group of each entry, -1 for entries that cannot be acquired.
    """

    group_index: Tensor

    @property
    def groups(self) -> int:
        """Number of groups."""
        return int(self.group_index.max()) + 1

    def group_mask(self, selected: Tensor) -> Tensor:
        """Turn selected groups (B, groups) into a boolean mask (B, ...) that broadcasts against y."""
        index = self.group_index
        return selected.bool()[:, index.clamp_min(0)] & (index >= 0)

    def group_sum(self, values: Tensor, groups: int | None = None) -> Tensor:
        """Sum real values (B, *measurement) over each group: (B, groups)."""
        groups = self.groups if groups is None else groups
        index = self.group_index.expand(values.shape[1:]).flatten()
        kept = torch.where(index >= 0, values.flatten(1), 0.0)
        return values.new_zeros(len(values), groups).index_add_(1, index.clamp_min(0), kept)
