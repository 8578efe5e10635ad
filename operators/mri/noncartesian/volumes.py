"""Non-Cartesian MRI of volumes: spokes through the centre of 3-D k-space (kooshball), or any trajectory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array
from invsolve.errors import UserError
from invsolve.operators.mri.noncartesian import trajectories
from invsolve.operators.mri.noncartesian.base import NonCartesian
from invsolve.operators.mri.noncartesian.maps import as_coil_maps, as_pairs, size_told
from invsolve.operators.mri.noncartesian.trajectories import Unit

_WHERE = "operator 'mri-noncartesian-3d'"


class NonCartesianVolumeMRI(NonCartesian):
    """`mri-noncartesian` of volumes: 3-D radial (kooshball) or any trajectory in space.

    x (B, 1, depth, rows, columns) complex; y (B, coils, spokes, samples) complex, or (B, coils, samples). Directions of spokes:
    Wong and Roos (1994), Chan (2009).

    Args:
        volume_size: N for N x N x N voxels, or [depth, rows, columns], where coil maps or a field map do not tell them.
        trajectory: "radial" (spokes spread evenly in space), "golden" (any number in succession spread evenly); or points
            (samples, 3) or (spokes, samples, 3), along depth, rows and columns. A trajectory for each item is (items, spokes,
            samples, 3).
        coil_maps: (coils, depth, rows, columns), complex, or with a last axis of real and imaginary part; for each item with
            items in front.
        spokes: how many; by default a quarter of what the Nyquist rate asks for at the edge of k-space.
        samples: of each spoke; by default twice the volume's longest side.
        unit: of a given trajectory: "cycles/fov" (cycles per field of view, from -N/2 to N/2), "cycles/pixel" (to 1/2) or
            "rad/pixel" (to pi).
        b0_map: off-resonance in Hz, (depth, rows, columns); for each item with items in front.
        readout_time: with a b0_map: the duration of a readout in s, samples at equal intervals from 0 on; or the time of
            each sample, (samples,) or (spokes, samples).
        tolerance: relative error of y against the exact sum, from 1e-12 to 1e-2; single precision ends at 1e-6.

    Raises:
        UserError: the size cannot be told, shapes disagree, a trajectory beyond half a cycle per pixel or in another unit by all
            appearance, settings that do not go together, or (when applied) x is not complex.
    """

    name = "mri-noncartesian-3d"
    item_axes: ClassVar[Mapping[str, int]] = {"trajectory": 3, "coil_maps": 4, "b0_map": 3}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"volume_size": 6, "spokes": 9},
        {
            "coil_maps": torch.randn(2, 5, 7, 6, 2, generator=torch.Generator().manual_seed(0)),
            "trajectory": "golden",
            "spokes": 6,
        },
    )

    def __init__(
        self,
        volume_size: int | list[int] | None = None,
        trajectory: Tensor | Literal["radial", "golden"] = "radial",
        coil_maps: Tensor | None = None,
        spokes: int | None = None,
        samples: int | None = None,
        unit: Unit = "cycles/fov",
        b0_map: Tensor | None = None,
        readout_time: float | Tensor | None = None,
        tolerance: float = 2e-6,
    ) -> None:
        maps = as_coil_maps(coil_maps, 3, _WHERE)
        size = size_told(_volume(volume_size), maps, b0_map, _WHERE, "volume_size")
        made = {"spokes": spokes, "samples": samples}
        even = isinstance(trajectory, str)
        if isinstance(trajectory, str):
            for name, value in made.items():
                if value is not None and value < 1:
                    raise UserError(f"{_WHERE}: {name} must be above 0, got {value}")
            count = spokes or math.ceil(math.pi / 8 * max(size) ** 2)
            trajectories.check_counts(count, samples or 2 * max(size), _WHERE)
            kinds = {"radial": trajectories.even_directions, "golden": trajectories.golden_directions}
            along = trajectories.spokes_along(kinds[trajectory](count), samples or 2 * max(size))
            points = along * torch.tensor(size, dtype=torch.float64)
        else:
            given = [name for name, value in made.items() if value is not None]
            if given:
                raise UserError(f"{_WHERE}: trajectory says it all, so leave out {', '.join(given)}")
            points = trajectories.checked(as_array(trajectory, f"{_WHERE}: trajectory"), unit, size, _WHERE)
        super().__init__(points, size, maps, b0_map, readout_time, tolerance)
        self.even_spokes = even

    @classmethod
    def carries_items(cls, parameter: str, value: Tensor) -> bool:
        return super().carries_items(parameter, as_pairs(parameter, value))


def _volume(size: int | list[int] | None) -> tuple[int, ...] | None:
    if size is None:
        return None
    sides = (size,) * 3 if isinstance(size, int) else tuple(size)
    if len(sides) != 3 or min(sides) < 1:
        raise UserError(f"{_WHERE}: volume_size must be N or [depth, rows, columns], above 0, got {size}")
    return sides
