"""Density compensation: the area of k-space that each sample stands for, in closed form or by iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from invsolve.numerics.gridding import kernel_transform
from invsolve.numerics.nufft import Nufft

#: Of Pipe and Menon: steps, and the width of the kernel in points of the grid. Wider ones see farther than the field of view
#: asks for and settle slowly, narrower ones do not reach the next sample: discs gridded from spokes and spirals err least by 3.
_ITERATIONS, _WIDTH = 30, 3


def ring_sectors(angles: Tensor, radii: Tensor) -> Tensor:
    """Areas of the parts of rings around samples of spokes, (spokes, samples), in (cycles per pixel)^2: a ramp in radius.

    These are the Voronoi cells of spokes through the centre, as they are around a circle: each has half of the angle to the
    next spoke on both sides; the centre's disc is shared in that proportion.

    Args:
        angles: (spokes,), in radians.
        radii: (samples,), equally spaced, one of them 0.
    """
    turned = angles % math.pi
    order = turned.argsort()
    gaps = torch.diff(turned[order], append=turned[order][:1] + math.pi)
    width = torch.empty_like(gaps)
    width[order] = (gaps + gaps.roll(1)) / 2
    step = radii[1] - radii[0] if len(radii) > 1 else torch.ones((), dtype=radii.dtype)
    # The disc in the centre has the area pi step^2 / 4, and the widths add up to pi.
    ring = torch.where(radii == 0, step / 4, radii.abs()) * step
    return width[:, None] * ring


def shell_sectors(spokes: int, radii: Tensor) -> Tensor:
    """Volumes of the parts of shells around samples of evenly spread spokes, (spokes, samples), in (cycles per pixel)^3."""
    step = radii[1] - radii[0] if len(radii) > 1 else torch.ones((), dtype=radii.dtype)
    shell = torch.where(radii == 0, step**3 / 12, radii**2 * step) * 2 * math.pi / spokes
    return shell.expand(spokes, -1)


def areas_of_spokes(points: Tensor, even: bool) -> Tensor | None:
    """Areas in (cycles per pixel)^dimensions of a trajectory of spokes, (spokes, samples); None where it is none.

    Args:
        points: (spokes, samples, dimensions), float64, in cycles per pixel.
        even: whether the spokes' directions are spread evenly, which closed forms in 3-D ask for.
    """
    if points.ndim != 3 or (points.shape[-1] == 3 and not even):
        return None
    ends = points[:, 0]
    reach = ends.norm(dim=-1)
    samples = points.shape[1]
    step = (points[0, -1] - points[0, 0]).norm() / max(samples - 1, 1)
    if samples < 2 or float(step) == 0:
        return None
    along = torch.arange(samples, dtype=points.dtype, device=points.device) * step - reach[0]
    along = torch.where(along.abs() < 1e-6 * step, 0.0, along)
    made = -along[:, None] * (ends / reach[:, None].clamp_min(1e-30))[:, None]
    if not bool((along == 0).any()) or float((made - points).abs().max()) > 1e-4 * float(step):
        return None
    return shell_sectors(len(points), along) if even else ring_sectors(torch.atan2(-ends[:, 0], ends[:, 1]), along)


def pipe_menon(points: Tensor, size: Sequence[int]) -> Tensor:
    """Areas by iteration, w <- w / (C w) with C the kernel's autocorrelation (Pipe and Menon 1999); (points,), (cycles/fov)^d.

    Args:
        points: (points, dimensions), float64, in cycles per pixel.
        size: of the images.
    """
    gridding = Nufft(points, size, 1e-2, torch.float64, points.device, width=_WIDTH).gridding
    weights = torch.ones(len(points), 1, dtype=torch.float64, device=points.device)
    for _ in range(_ITERATIONS):
        weights = weights / gridding.interpolated(gridding.spread(weights))
    # Where C w = 1, w is the area over the integral of the autocorrelation, both in points of the grid.
    scale = 1.0
    for n, grid in zip(size, gridding.grid, strict=True):
        scale *= float(kernel_transform(np.zeros(1), grid, _WIDTH)[0]) ** 2 * n / grid
    return weights[:, 0] * scale
