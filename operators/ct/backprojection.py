"""Back-projection pixel by pixel, which the filter of parallel beams wants: linear between detector pixels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.numerics.sparse import sparse_product
from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.base import budget


def backproject(rays: Tensor, geometry: Geometry, first: int) -> Tensor:
    """Each pixel's sum over the angles of its ray's value, linearly between detector pixels; (B, rows, columns).

    Not the transpose of Joseph's projector: there a pixel gets from the detector by a tent that narrows with
    max(|cos|, |sin|) of the angle, and so more than all or less than all of what lies between two detector pixels. Of
    smooth images that left an error of 1 %, which smaller pixels did not mend.

    Args:
        rays: (B, angles, wide), filtered and weighted; zero beyond.
        geometry: of the image and the angles, parallel beams in 2-D by angles, the image on the axis.
        first: detector index of the first of the `wide` values; the detector's own pixels begin at 0.
    """
    g, dtype = geometry, rays.dtype
    items, angles, wide = len(rays), rays.shape[1], rays.shape[2] + 2
    # The batch runs fastest, as the product wants it.
    table = F.pad(rays, (1, 1)).permute(1, 2, 0).reshape(angles * wide, items).contiguous()
    start = torch.arange(angles, dtype=torch.int32, device=rays.device) * wide
    angle = torch.from_numpy(np.deg2rad(np.asarray(g.angles))).to(rays.device)
    right, down = (
        (torch.arange(size, dtype=torch.float64, device=rays.device) - (size - 1) / 2)
        * g.pixel_size
        / g.detector_spacing
        for size in (g.columns, g.rows)
    )
    across = (right[:, None] * angle.cos() + g.centre - first + 1).to(dtype)
    out = rays.new_empty(g.rows, g.columns, items)
    # Two taps of an angle and pixel: their places, and their weights.
    count = max(1, budget(rays) // (g.columns * angles * 2 * (4 + rays.element_size())))
    for r in range(0, g.rows, count):
        at = across - (down[r : r + count, None, None] * angle.sin()).to(dtype)
        low = at.clamp_(0, wide - 1).to(torch.int32).clamp_(max=wide - 2)
        share = at - low
        low += start
        taps = torch.stack([low, low + 1], -1).view(-1)
        weights = torch.stack([1 - share, share], -1).view(-1)
        ends = torch.arange(0, len(taps) + 1, 2 * angles, dtype=torch.int32, device=rays.device)
        out[r : r + count] = sparse_product(ends, taps, weights, table).view(-1, g.columns, items)
    return out.permute(2, 0, 1)
