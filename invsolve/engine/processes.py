"""The processes that share a volume; here the one that has it alone."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from invsolve.contracts.through_plane import AlongRows, ThroughPlane

T = TypeVar("T")


class SingleProcess:
    """One process that has the whole volume. `invsolve.engine.slabs.Slabs` is several that have a slab each.

    Attributes:
        leads: whether this process writes and speaks.
    """

    leads: bool = True

    def through_plane(self) -> ThroughPlane:
        """The direction across the slices, of which this process has those that `share` gives it."""
        return AlongRows()

    def share(self, rows: int) -> slice:
        """Which of so many rows are this process's."""
        return slice(0, rows)

    def gather(self, part: Tensor, rows: int) -> Tensor:
        """All rows of a tensor of which each process has its share; only what the leading process gets is complete."""
        return part

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes."""
        return flag

    def same(self, value: T) -> T:
        """The leading process's value, in all processes."""
        return value
