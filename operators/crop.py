"""A region of interest: the measurement sees a box of a larger image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.arguments import rows_and_columns
from invsolve.errors import UserError
from invsolve.operators._orthogonal import OrthogonalRows


class Crop(OrthogonalRows):
    """A region of interest: a box of a larger image; `A @ crop` measures with A what lies in it.

    y = x[top : top + height, left : left + width]; x (B, C, rows, columns), y (B, C, height, width).

    Args:
        box: what is seen, [top, left, height, width] in pixels.
        image_size: of x: N for N x N pixels, or [rows, columns].
        channels: of x.

    Raises:
        UserError: the box does not lie in the image.
    """

    name = "crop"
    examples = ({"box": [1, 2, 4, 3], "image_size": [7, 6], "channels": 2}, {"box": [0, 0, 5, 5], "image_size": 5})

    def __init__(self, box: list[int], image_size: int | list[int], channels: int = 1) -> None:
        super().__init__()
        size = rows_and_columns(image_size, "operator 'crop'")
        assert size is not None
        rows, columns = size
        if channels < 1:
            raise UserError(f"operator 'crop': channels must be at least 1, got {channels}")
        inside = len(box) == 4 and min(box[:2]) >= 0 and min(box[2:]) >= 1
        if not inside or box[0] + box[2] > rows or box[1] + box[3] > columns:
            raise UserError(
                f"operator 'crop': box must be [top, left, height, width] inside {rows} x {columns} pixels, got {box}"
            )
        self.box, self.image_shape = tuple(box), (channels, rows, columns)

    def forward(self, x: Tensor) -> Tensor:
        top, left, height, width = self.box
        return x[..., top : top + height, left : left + width]

    def adjoint(self, y: Tensor) -> Tensor:
        assert self.image_shape is not None
        top, left, height, width = self.box
        rows, columns = self.image_shape[1:]
        return F.pad(y, (left, columns - left - width, top, rows - top - height))
