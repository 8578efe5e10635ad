"""Quantised cosine coefficients of blocks: what JPEG leaves of a picture."""

from __future__ import annotations

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.arguments import is_image
from invsolve.contracts.operator import Operator
from invsolve.errors import UserError
from invsolve.operators._rounding import STRAIGHT_THROUGH, rounded

#: Steps of the luminance coefficients at quality 50 (ITU-T T.81, table K.1).
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def steps(quality: int) -> Tensor:
    """The steps of the coefficients at this quality, as the Independent JPEG Group scales them; (8, 8), float64."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return torch.tensor(LUMINANCE, dtype=torch.float64).mul(scale).add(50).div(100).floor().clamp(1, 255)


class Jpeg(Operator):
    """What JPEG leaves of a picture: cosine coefficients of 8 x 8 blocks, quantised. Not linear.

    Each block less 128 of 255 becomes C' (Q round(C block C' / Q)) C, C the orthonormal cosine transform and Q the luminance
    table of the quality; the last blocks are filled with the picture's edge. Each channel for itself, without subsampled
    colour and without the last rounding to 8 bits. x and y (B, C, rows, columns), of any size. The gradient goes
    straight through.

    Args:
        quality: 1 to 100.
        peak: the value of white; black is 0.

    Raises:
        UserError: a quality or a peak out of range.
    """

    name = "jpeg"
    channelwise = True
    surrogate, flat = STRAIGHT_THROUGH, "rounding"
    shapes_tried = ((1, 12, 9),)
    examples = ({"quality": 40},)

    def __init__(self, quality: int = 10, peak: float = 1.0) -> None:
        super().__init__()
        if not 1 <= quality <= 100:
            raise UserError(f"operator 'jpeg': quality must be from 1 to 100, got {quality}")
        if not 0 < peak < float("inf"):
            raise UserError(f"operator 'jpeg': peak must be above 0, got {peak}")
        self.peak, self.table = peak, steps(quality)
        self.cosines = torch.from_numpy(scipy.fft.dct(np.eye(8), axis=0, norm="ortho"))

    def forward(self, x: Tensor) -> Tensor:
        is_image(x, "operator 'jpeg'")
        rows, columns = x.shape[-2:]
        filled = F.pad(x * (255 / self.peak) - 128, (0, -columns % 8, 0, -rows % 8), mode="replicate")
        blocks = filled.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
        cosines, table = self.cosines.to(x), self.table.to(x)
        kept = table * rounded(cosines @ blocks @ cosines.T / table)
        back = (cosines.T @ kept @ cosines).transpose(-3, -2).flatten(-2).flatten(-3, -2)
        return ((back + 128) * (self.peak / 255))[..., :rows, :columns]
