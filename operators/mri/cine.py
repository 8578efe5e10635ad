"""Cartesian MRI of a moving object, all of its frames as one image with an axis of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array
from invsolve.errors import UserError
from invsolve.operators.mri.encoding import CartesianEncoding
from invsolve.operators.mri.masks import Pattern


class CineMRI(CartesianEncoding):
    """Cartesian k-space of all frames of a moving object at once, through coils that stand still; complex.

    y_c,t = mask_t * F(coil_map_c * x_t), F the centred orthonormal Fourier transform of a frame. Strategies that couple the
    axes of a volume, such as "tv", then couple frames; with frames as items (`MRI`, frames=) each is reconstructed by itself.

    x (B, 1, frames, rows, columns) complex; y (B, coils, frames, rows, columns) complex, zero where nothing is measured. Groups
    for active acquisition are lines of a frame along the axes on which the mask has length 1.

    Args:
        mask: (frames, 1, columns) or (frames, rows, columns), centred, non-zero where measured; default everything. Or a pattern,
            with acceleration, see `invsolve.kspace_mask`: lines interleave in time, random points are drawn anew.
        coil_maps: (coils, rows, columns), complex, the same for all frames.
        image_size: [frames, rows, columns], where the mask does not tell them.
        acceleration: all of k-space over what is measured of it, by the pattern that mask names, default "random".
        centre_fraction: part of the undersampled axes around the centre that every frame measures, with acceleration.
        seed: of a random pattern.
        phase_axes: axes along which a pattern undersamples: 1, columns, or 2, points; default 2 for "poisson-disc", else 1.
        density_power: of "variable-density" and "poisson-disc": how fast the density falls, as (1 - radius)^density_power.

    Raises:
        UserError: the size cannot be told, shapes or parameters disagree, or (when applied) x is not complex.
    """

    name = "mri-cine"
    dims = 3
    transformed = 2
    frame_axis: ClassVar[int | None] = -3
    axes_named = "frames, rows, columns"
    examples = (
        {"image_size": [3, 5, 6], "mask": "uniform", "acceleration": 2, "centre_fraction": 0.0},
        {
            "coil_maps": torch.randn(2, 4, 5, 2, generator=torch.Generator().manual_seed(0)),
            "image_size": [3, 4, 5],
            "acceleration": 2,
        },
    )
    item_axes: ClassVar[Mapping[str, int]] = {"mask": 3, "coil_maps": 3}

    def __init__(
        self,
        mask: Tensor | Pattern | None = None,
        coil_maps: Tensor | None = None,
        image_size: list[int] | None = None,
        acceleration: float | None = None,
        centre_fraction: float = 0.08,
        seed: int = 0,
        phase_axes: int | None = None,
        density_power: float | None = None,
    ) -> None:
        pattern: dict[str, Any] = {"centre_fraction": centre_fraction, "seed": seed}
        pattern |= {"phase_axes": phase_axes, "density_power": density_power}
        super().__init__(mask, coil_maps, image_size, acceleration, None, **pattern)

    @classmethod
    def _maps(cls, coil_maps: Tensor) -> Tensor:
        # With an axis of time, of which there is one point for all frames.
        return super()._maps(as_array(coil_maps, f"{cls._title()}: coil_maps").unsqueeze(1))

    @classmethod
    def _size(cls, image_size: int | Sequence[int] | None, maps: Tensor | None) -> tuple[int, ...] | None:
        size = super()._size(image_size, None)
        if maps is not None and size is not None and tuple(maps.shape[2:]) != size[1:]:
            raise UserError(
                f"{cls._title()}: coil_maps of {maps.shape[2]} x {maps.shape[3]} do not fit frames of {size[1]} x {size[2]}"
            )
        return size

    @classmethod
    def _size_of_maps(cls, maps: Tensor | None) -> tuple[int, ...] | None:
        return None

    @classmethod
    def _patterned(
        cls,
        mask: Tensor | str | None,
        size: tuple[int, ...] | None,
        acceleration: float | None,
        frames: int | None,
        pattern: Mapping[str, Any],
    ) -> Tensor:
        count, still = (None, None) if size is None else (size[0], size[1:])
        return super()._patterned(mask, still, acceleration, count, pattern)
