"""Cartesian MRI of images and of volumes, through one receive coil or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.operators.mri.encoding import CartesianEncoding
from invsolve.operators.mri.masks import Pattern


class MRI(CartesianEncoding):
    """Cartesian k-space, one coil or several with coil maps; complex.

    y_c = mask * F(coil_map_c * x), F the centred orthonormal Fourier transform.

    x (B, 1, rows, columns) complex; y (B, coils, rows, columns) complex, zero where nothing is measured; without coil maps
    one coil of sensitivity 1. Groups for active acquisition are the k-space columns, or lines along the axis on which the mask
    has length 1 (single points for a 2-D mask).

    Args:
        mask: (columns,) or (rows, columns), of length 1 along an axis that is measured whole; centred, non-zero where measured;
            default everything. A mask for each item is (items, rows, columns), or (items, 1, columns). Or a pattern, with
            acceleration, see `invsolve.kspace_mask`: "poisson-disc" measures points, the others columns.
        coil_maps: (coils, rows, columns), complex. Maps for each item are (items, coils, rows, columns).
        image_size: N for N x N pixels, or [rows, columns], where neither a 2-D mask nor coil maps tell them.
        acceleration: all of k-space over what is measured of it, by the pattern that mask names, default "random".
        centre_fraction: part of the undersampled axes around the centre that is always measured, with acceleration.
        seed: of a random pattern.
        phase_axes: axes along which a pattern undersamples: 1, columns, or 2, points; default 2 for "poisson-disc", else 1.
        density_power: of "variable-density" and "poisson-disc": how fast the density falls, as (1 - radius)^density_power.
        frames: with a pattern, one of it for each of so many items, the frames of a moving object: lines interleaved in time,
            random points drawn anew.

    Raises:
        UserError: the size cannot be told, shapes or parameters disagree, or (when applied) x is not complex.
    """

    name = "mri"
    dims = transformed = 2
    axes_named = "rows, columns"
    examples = (
        {"image_size": 12, "acceleration": 2},
        {
            "coil_maps": torch.randn(3, 9, 11, 2, generator=torch.Generator().manual_seed(0)),
            "mask": [1, 0, 1, 1] * 2 + [1, 0, 1],
        },
        {"image_size": [9, 14], "acceleration": 2},
        {
            "coil_maps": torch.randn(2, 8, 10, 2, generator=torch.Generator().manual_seed(1)),
            "mask": "poisson-disc",
            "acceleration": 3,
        },
        {"coil_maps": torch.randn(2, 7, 8, 2, generator=torch.Generator().manual_seed(2))},
        {
            "coil_maps": torch.polar(torch.ones(1, 8, 9), torch.arange(72.0).view(1, 8, 9)),
            "mask": [[1], [0], [1], [1], [1], [1], [0], [0]],
        },
    )
    item_axes: ClassVar[Mapping[str, int]] = {"mask": 2, "coil_maps": 3}

    def __init__(
        self,
        mask: Tensor | Pattern | None = None,
        coil_maps: Tensor | None = None,
        image_size: int | list[int] | None = None,
        acceleration: float | None = None,
        centre_fraction: float = 0.08,
        seed: int = 0,
        phase_axes: int | None = None,
        density_power: float | None = None,
        frames: int | None = None,
    ) -> None:
        pattern: dict[str, Any] = {"centre_fraction": centre_fraction, "seed": seed}
        pattern |= {"phase_axes": phase_axes, "density_power": density_power}
        super().__init__(mask, coil_maps, image_size, acceleration, frames, **pattern)


class VolumeMRI(CartesianEncoding):
    """Cartesian k-space of volumes, encoded in phase along depth and columns; one coil or several; complex.

    y_c = mask * F(coil_map_c * x), F the centred orthonormal Fourier transform along all three axes.

    x (B, 1, depth, rows, columns) complex; y (B, coils, depth, rows, columns) complex, zero where nothing is measured; without
    coil maps one coil of sensitivity 1. Readouts run along the rows. Groups for active acquisition are lines along the axes on
    which the mask has length 1.

    Args:
        mask: (depth, rows, columns), of length 1 along axes that are measured whole, (depth, 1, columns) for a scan in which
            every readout is whole, or fewer axes; centred, non-zero where measured; default everything. A mask for each item
            is (items, depth, rows, columns). Or a pattern, with acceleration, see `invsolve.kspace_mask`.
        coil_maps: (coils, depth, rows, columns), complex. Maps for each item have these in front.
        image_size: N for N x N x N voxels, or [depth, rows, columns], where neither mask nor coil maps tell them.
        acceleration: all of k-space over what is measured of it, by the pattern that mask names, default "random".
        centre_fraction: part of the undersampled axes around the centre that is always measured, with acceleration.
        seed: of a random pattern.
        phase_axes: axes along which a pattern undersamples: 2, depth and columns, or 1, columns; default 2.
        density_power: of "variable-density" and "poisson-disc": how fast the density falls, as (1 - radius)^density_power.
        frames: with a pattern, one of it for each of so many items, the frames of a moving object.

    Raises:
        UserError: the size cannot be told, shapes or parameters disagree, or (when applied) x is not complex.
    """

    name = "mri-3d"
    dims = transformed = 3
    axes_named = "depth, rows, columns"
    examples = (
        {"image_size": [4, 5, 6], "acceleration": 2},
        {
            "coil_maps": torch.randn(2, 4, 3, 5, 2, generator=torch.Generator().manual_seed(0)),
            "mask": [[[1, 0, 1, 1, 1]], [[0, 1, 1, 1, 0]], [[1, 1, 1, 1, 1]], [[0, 1, 1, 0, 1]]],
        },
    )
    item_axes: ClassVar[Mapping[str, int]] = {"mask": 3, "coil_maps": 4}

    def __init__(
        self,
        mask: Tensor | Pattern | None = None,
        coil_maps: Tensor | None = None,
        image_size: int | list[int] | None = None,
        acceleration: float | None = None,
        centre_fraction: float = 0.08,
        seed: int = 0,
        phase_axes: int | None = None,
        density_power: float | None = None,
        frames: int | None = None,
    ) -> None:
        pattern: dict[str, Any] = {"centre_fraction": centre_fraction, "seed": seed}
        pattern |= {"phase_axes": phase_axes, "density_power": density_power}
        super().__init__(mask, coil_maps, image_size, acceleration, frames, **pattern)
