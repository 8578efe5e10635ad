"""Operators whose measurement splits into groups that can be acquired one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from invsolve.contracts.operator import Composition, LinearOperator, Scaled, Sum
from invsolve.contracts.wrapped import HandedOn, WrappedLinear


class MaskableOperator(LinearOperator):
    """A linear operator whose measurement splits into groups (pixels, k-space columns, view angles) acquired one by one.

    Set `group_index`: an integer tensor that broadcasts against one measurement (without the batch axis) and holds the
    group of each entry, -1 for entries that cannot be acquired. What can be derived from a mask is better a property
    (`numbered` of the mask, remembered), so that it follows a mask that is replaced.

    Class attributes:
        group_layout: how groups lie to one another, for the orders in which they can be acquired: on a "grid" with a middle
            (k-space, pixels), on a "circle" (directions), or "none" (patterns in no order).
        frame_axis: the axis of `group_index`, from the end, whose entries are frames of a movie; None where there is none.
    """

    group_index: Tensor
    group_layout: ClassVar[Literal["grid", "circle", "none"]] = "grid"
    frame_axis: ClassVar[int | None] = None

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

    def group_mean(self, values: Tensor) -> Tensor:
        """The mean over the entries of each group of values that broadcast against one measurement; (groups,), float64."""
        index, spread = torch.broadcast_tensors(self.group_index.cpu(), values.cpu().double())
        inside = index >= 0
        group = index[inside]
        total = torch.zeros(self.groups, dtype=torch.float64).index_add_(0, group, spread[inside])
        return total / group.bincount(minlength=self.groups).clamp_min(1)

    def group_coordinates(self) -> dict[str, Tensor]:
        """What an instrument calls each group, by name: (groups,) float64 each; of a group of several entries their mean.

        By default the index along the axes of a measurement in which groups differ, "axis_-1" for the last; nothing where groups
        lie in no order. Operators whose axes have a meaning say more: "k_column" in cycles per field of view, "angle" in degrees.
        """
        return {} if self.group_layout == "none" else self._indices({})

    def _indices(self, names: Mapping[int, str]) -> dict[str, Tensor]:
        """The mean index of each group along the axes that have these names, from the end, and those in which groups differ."""
        shape = self.group_index.shape
        found = {}
        for axis in range(-len(shape), 0):
            mean = self.group_mean(torch.arange(shape[axis]).view(-1, *[1] * (-axis - 1)))
            if (axis in names and shape[axis] > 1) or bool((mean != mean[0]).any()):
                found[names.get(axis, f"axis_{axis}")] = mean
        return found

    def restricted(self, selected: Tensor) -> LinearOperator:
        """Return the same operator with only these groups measured: y has the same shape, and is zero elsewhere.

        Args:
            selected: boolean, (groups,).
        """
        return Restricted(self, selected)

    def _with_less(self, selected: Tensor) -> Self:
        """The same for operators whose buffer `mask` is what they measure: their closed forms then hold for the part, too."""
        other = self.twin()
        whole: Tensor = self.get_buffer("mask")
        mask = (whole * self.group_mask(selected[None])[0]).reshape(whole.shape)
        other.__dict__.update(_buffers=self._buffers | {"mask": mask}, _remembered={})
        return other

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, LinearOperator):
            return MaskableComposition(self, other)
        return super().__matmul__(other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        if isinstance(other, MaskableOperator) and _same_groups(self, other):
            return MaskableSum(self, other)
        return super().__add__(other)

    def __rmul__(self, factor: float) -> LinearOperator:
        return MaskableScaled(factor, self)


class MaskableView(WrappedLinear):
    """The base of views whose measurement, and so its groups, are those of the maskable operator inside."""

    group_index: Any = HandedOn()
    group_layout: Any = HandedOn()
    frame_axis: Any = HandedOn()

    def group_coordinates(self) -> dict[str, Tensor]:
        known: dict[str, Tensor] = self.inner.group_coordinates()
        return known


class MaskableScaled(Scaled, MaskableView, MaskableOperator):
    """s A, with the groups of A."""


class MaskableComposition(Composition, MaskableOperator):
    """A @ B, with the groups of A."""

    outer: MaskableOperator

    @property
    def group_index(self) -> Tensor:  # type: ignore[override]
        return self.outer.group_index

    @property
    def group_layout(self) -> Literal["grid", "circle", "none"]:  # type: ignore[override]
        return self.outer.group_layout

    @property
    def frame_axis(self) -> int | None:  # type: ignore[override]
        return self.outer.frame_axis

    def group_coordinates(self) -> dict[str, Tensor]:
        return self.outer.group_coordinates()


class MaskableSum(Sum, MaskableOperator):
    """A + B of the same groups, with them."""

    left: MaskableOperator

    @property
    def group_index(self) -> Tensor:  # type: ignore[override]
        return self.left.group_index

    @property
    def group_layout(self) -> Literal["grid", "circle", "none"]:  # type: ignore[override]
        return self.left.group_layout

    @property
    def frame_axis(self) -> int | None:  # type: ignore[override]
        return self.left.frame_axis

    def group_coordinates(self) -> dict[str, Tensor]:
        return self.left.group_coordinates()


def _same_groups(one: MaskableOperator, other: MaskableOperator) -> bool:
    first, second = one.group_index, other.group_index
    return first.shape == second.shape and bool((first.to(second.device) == second).all())


def numbered(mask: Tensor) -> Tensor:
    """Number what a mask measures, row by row, and -1 elsewhere: a `group_index` of single entries; int64, shaped like it."""
    measured = mask != 0
    return torch.where(measured, measured.flatten().cumsum(0).view(measured.shape) - 1, -1)


class Acquired(LinearOperator):
    """What was acquired of a measurement: the other entries are zero and say nothing.

    Args:
        inner: the whole measurement's operator.
        used: boolean, (B, ...) or (...), broadcasts to y: the entries that were acquired.
    """

    def __init__(self, inner: LinearOperator, used: Tensor) -> None:
        super().__init__()
        self.inner, self.used = inner, used
        self.name, self.image_shape, self.complex_image = inner.name, inner.image_shape, inner.complex_image

    def forward(self, x: Tensor) -> Tensor:
        return self.used * self.inner(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.used * y)

    def norm(self, like: Tensor | None = None) -> float:
        """That of the whole measurement, which bounds it."""
        return self.inner.norm(like)


class Restricted(MaskableView, MaskableOperator):
    """An operator of which some groups are measured and the others are not: those entries are zero and do not count.

    What has a closed form for the whole measurement has none for a part of it, so data steps are solved.

    Args:
        inner: the whole measurement's operator.
        selected: boolean, (groups,).
    """

    prox, tikhonov, pinv = LinearOperator.prox, LinearOperator.tikhonov, LinearOperator.pinv
    svd, svd_on_real_images = LinearOperator.svd, LinearOperator.svd_on_real_images
    baseline, normal = LinearOperator.baseline, LinearOperator.normal
    baseline_floor, ridge_by_noise = 1e-6, False

    def __init__(self, inner: MaskableOperator, selected: Tensor) -> None:
        super().__init__(inner)
        self.selected = selected.bool()

    def _mask(self) -> Tensor:
        return self.remembered("mask", lambda: self.inner.group_mask(self.selected[None])[0])

    def forward(self, x: Tensor) -> Tensor:
        return self._mask() * self.inner(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self._mask() * y)

    def measured(self) -> Tensor | None:
        inner, mask = self.inner.measured(), self._mask()
        return mask if inner is None else mask & inner.bool()
