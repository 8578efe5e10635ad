"""The direction across the slices of a volume: differences between neighbours, their transpose, and inner products."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.numerics.linalg import inner


class ThroughPlane:
    """Where each batch row is a volume of one slice: there are no neighbours, and every row is solved for itself.

    A strategy that couples the slices of a volume asks `problem.through_plane` for what it needs and is then independent of where
    the slices lie: in the rows of the batch, along an axis of the image, or in the rows of several processes.
    """

    def difference(self, x: Tensor) -> Tensor:
        """Forward differences to the next slice, zero at the last one (not circular); shaped like x."""
        return torch.zeros_like(x)

    def transpose(self, d: Tensor) -> Tensor:
        """The exact transpose of `difference`."""
        return torch.zeros_like(d)

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Real inner product over a whole volume: (B,), or (1,) where all rows are one volume."""
        return inner(a, b)


class AlongRows(ThroughPlane):
    """Where the rows of the batch are the slices of one volume, in their order.

    Subclasses whose rows are a slab of a larger volume override the three private methods.
    """

    def difference(self, x: Tensor) -> Tensor:
        following = self._following(x)
        last = torch.zeros_like(x[-1:]) if following is None else following - x[-1:]
        return torch.cat([x.diff(dim=0), last])

    def transpose(self, d: Tensor) -> Tensor:
        # The difference of the volume's last slice is no function of x: what stands there in d does not count.
        forward = d if self._has_following() else torch.cat([d[:-1], torch.zeros_like(d[-1:])])
        preceding = self._preceding(d)
        first = torch.zeros_like(d[:1]) if preceding is None else preceding
        return torch.cat([first, d[:-1]]) - forward

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        return inner(a, b).sum(0, keepdim=True)

    def _has_following(self) -> bool:
        """Whether the volume goes on after these rows."""
        return False

    def _following(self, x: Tensor) -> Tensor | None:
        """The slice (1, ...) of x after the last row; None at the end of the volume."""
        return None

    def _preceding(self, d: Tensor) -> Tensor | None:
        """The slice (1, ...) of d before the first row; None at the start of the volume."""
        return None


class AlongAxis(ThroughPlane):
    """Where each batch row is a volume, its slices along an axis of the image.

    Args:
        axis: of tensors (B, C, *spatial).
    """

    def __init__(self, axis: int = 2) -> None:
        self.axis = axis

    def difference(self, x: Tensor) -> Tensor:
        return torch.cat([x.diff(dim=self.axis), torch.zeros_like(x.narrow(self.axis, 0, 1))], self.axis)

    def transpose(self, d: Tensor) -> Tensor:
        inside = d.narrow(self.axis, 0, d.shape[self.axis] - 1)
        edge = torch.zeros_like(d.narrow(self.axis, 0, 1))
        return torch.cat([edge, inside], self.axis) - torch.cat([inside, edge], self.axis)
