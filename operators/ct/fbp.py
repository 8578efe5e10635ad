"""Filtered back-projection: of parallel beams and fans, and of cones after Feldkamp, Davis and Kress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from invsolve.errors import UserError
from invsolve.operators.ct.backprojection import backproject
from invsolve.operators.ct.edges import (
    angle_weights,
    cut_off,
    extended,
    half_acquisition,
    overlap,
)
from invsolve.operators.ct.filters import ramp_filter
from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.base import budget
from invsolve.operators.ct.projectors.sampling import interpolate, on_grid
from invsolve.operators.ct.weights import redundancy, view_weights


def missing_formula(geometry: Geometry) -> str:
    """Why a geometry has no filtered back-projection; empty where it has one."""
    if geometry.vectors:
        return "its views are given by vectors"
    for name in ("feed", "tilt", "roll", "source_offset"):
        if getattr(geometry, name):
            return f"it has a {name} of {getattr(geometry, name):g}"
    return ""


def filtered_backprojection(
    y: Tensor, geometry: Geometry, adjoint: Callable[[Tensor], Tensor] | None, window: str, extend: bool
) -> Tensor:
    """The image of line integrals, (B, *image_size); see `CT.fbp`.

    Args:
        y: (B, *measurement_shape).
        geometry: of y.
        adjoint: of a projector that interpolates without error, to back-project parallel beams with; None to go pixel by
            pixel.
        window, extend: as in `CT.fbp`.

    Raises:
        UserError: the geometry has no such formula.
    """
    missing = missing_formula(geometry)
    if missing:
        raise UserError(
            f"operator 'ct': there is no filtered back-projection of this geometry, because {missing}; take baseline(), "
            "or pinv() for least squares"
        )
    if geometry.beam == "parallel" and geometry.dimensions == 2 and not any(geometry.image_offset):
        return _parallel(y, geometry, adjoint, window, extend)
    return _weighted(y, geometry, window, extend)


def _filtered(y: Tensor, geometry: Geometry, spacing: float, pad: int, window: str) -> Tensor:
    """Projections (B, n, detectors), `pad` longer at both sides, through the ramp filter."""
    arc = geometry.source_distance if geometry.curved else math.inf
    response = torch.from_numpy(
        ramp_filter(geometry.detectors + 2 * pad, spacing, window, arc, geometry.pixel_size)
    ).to(y)
    points = 2 * (len(response) - 1)
    long = extended(y, geometry, pad) if pad else y
    return torch.fft.irfft(torch.fft.rfft(long, points) * response, points)[..., : geometry.detectors + 2 * pad]


def _parallel(y: Tensor, g: Geometry, adjoint: Callable[[Tensor], Tensor] | None, window: str, extend: bool) -> Tensor:
    """Kak & Slaney, chapter 3."""
    rays = half_acquisition(g)
    if rays is not None:
        y = y * torch.from_numpy(rays).to(y)
    # What lies between the short side of the detector and the picture's edge is seen from the other side only.
    side = math.ceil(g.width / g.detector_spacing)
    wide = side if rays is not None and g.width > 2 * overlap(g) else 0
    pad = max(2 * g.detectors if extend and bool(cut_off(y).any()) else 0, wide)
    weights = torch.from_numpy(angle_weights(g)).to(y)[:, None]
    filtered = _filtered(y, g, g.detector_spacing, pad, window) * weights
    if wide:
        return backproject(filtered, g, -pad)
    filtered = filtered[..., pad : pad + g.detectors]
    if adjoint is None:
        return backproject(filtered, g, 0)
    # The transpose sums pixel_size^2 / detector_spacing of a constant over each angle's detector.
    return adjoint(filtered)[:, 0] * (g.detector_spacing / g.pixel_size**2)


def _weighted(y: Tensor, g: Geometry, window: str, extend: bool) -> Tensor:
    """Kak & Slaney, sections 3.4 (fans) and 3.6 (cones; Feldkamp 1984), as on a detector through the axis."""
    count = g.detectors
    rows = y.reshape(len(y), len(g.angles), g.detector_rows, count)
    along, up = (torch.from_numpy(n).to(y) / g.magnification for n in (g.positions(), _heights(g)))
    if g.beam == "parallel":
        slant = torch.ones_like(along).expand(len(up), -1)
        rays = half_acquisition(g)
        shares = (np.ones(count) if rays is None else rays)[None]
        views = angle_weights(g)
    else:
        distance = g.source_distance
        if g.curved:
            slant = torch.cos(along / distance) * distance / (distance**2 + up[:, None] ** 2).sqrt()
        else:
            slant = distance / (distance**2 + along**2 + up[:, None] ** 2).sqrt()
        shares, views = redundancy(g), view_weights(g)
    rows = rows * slant * torch.from_numpy(shares).to(y)[:, None]
    side = math.ceil(2 * g.radius * g.magnification / g.detector_spacing)
    pad = side if half_acquisition(g) is not None or (extend and bool(cut_off(rows.mean(2)).any())) else 0
    out = y.new_zeros(len(y), *((1, *g.image_size) if g.dimensions == 2 else g.image_size))
    flat = rows.transpose(1, 2).reshape(-1, len(g.angles), count)
    spacing = g.detector_spacing / g.magnification
    filtered = _filtered(flat, g, spacing, pad, window).view(len(y), g.detector_rows, len(g.angles), -1)
    weights = torch.from_numpy(views).to(y)
    for view, chosen, grid, share in _voxels(g, y, pad):
        images = filtered[:, :, view][None]
        out[:, chosen] += interpolate(images, grid)[0].view(len(y), *share.shape) * (share * weights[view])
    return out[:, 0] if g.dimensions == 2 else out


def _heights(g: Geometry) -> np.ndarray:
    return (np.arange(g.detector_rows) - g.row_centre) * g.row_spacing


def _voxels(g: Geometry, like: Tensor, pad: int) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """View, slices of the image, where its voxels are seen on the padded detector, and what they count."""
    offset = (*g.image_offset, 0.0)[:3]

    def axis(count: int, side: float, middle: float) -> Tensor:
        return (torch.arange(count, device=like.device, dtype=torch.float64) - (count - 1) / 2) * side + middle

    x, y = axis(g.columns, g.pixel_size, offset[0]), axis(g.rows, -g.pixel_size, offset[1])[:, None]
    z = axis(g.slices, g.slice_thickness, offset[2])
    wide = g.detectors + 2 * pad
    count = max(1, budget(like) // (g.rows * g.columns * (3 + len(like)) * like.element_size()))
    for view, degrees in enumerate(g.angles):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        across, depth = x * cos + y * sin, y * cos - x * sin
        if g.beam == "parallel":
            s, grown, share = across, torch.ones_like(across), torch.ones_like(across)
        else:
            behind = g.source_distance + depth
            reach = g.source_distance + g.detector_distance
            s = reach * torch.atan2(across, behind) if g.curved else reach * across / behind
            # Rows of a curved detector are as far from the source everywhere.
            grown = reach / (torch.hypot(across, behind) if g.curved else behind)
            share = g.source_distance**2 / (across**2 + behind**2 if g.curved else behind**2)
        column = on_grid(s / g.detector_spacing + g.centre + pad, wide)
        for first in range(0, g.slices, count):
            chosen = slice(first, min(first + count, g.slices))
            row = on_grid(z[chosen, None, None] * grown / g.row_spacing + g.row_centre, g.detector_rows)
            if g.dimensions == 2:
                row = torch.zeros_like(row)
            grid = torch.stack([column.expand_as(row), row], -1).to(like.dtype)
            yield view, chosen, grid.flatten(0, 1)[None], share.to(like.dtype).expand(grid.shape[:-1])
