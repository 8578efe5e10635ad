"""Non-Cartesian MRI of images: radial, golden-angle and spiral k-space, or any trajectory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array, rows_and_columns
from invsolve.errors import UserError
from invsolve.operators.mri.noncartesian import trajectories
from invsolve.operators.mri.noncartesian.base import NonCartesian
from invsolve.operators.mri.noncartesian.maps import as_coil_maps, as_pairs, size_told
from invsolve.operators.mri.noncartesian.trajectories import Kind, Unit

_WHERE = "operator 'mri-noncartesian'"


class NonCartesianMRI(NonCartesian):
    """K-space along any trajectory: radial, golden angle, spiral, from a file; coils, a field map; complex.

    y_c[j] = sum over pixels n of coil_map_c[n] x[n] exp(-2 pi i (k_j . (n - c) / size + b0[n] t_j)) / sqrt(pixels), the pixel
    c at (rows // 2, columns // 2): on the Cartesian grid it is what `mri` measures. By gridding with a Kaiser-Bessel kernel
    (Fessler and Sutton 2003, Beatty 2005), to `tolerance`, with its exact transpose; A'A by convolution (Wajer and Pruessmann
    2001); the field map by time segments, as many as keep its phase factor to `tolerance`.

    x (B, 1, rows, columns) complex; y (B, coils, spokes, samples) complex, or (B, coils, samples) for trajectories without an
    axis of spokes. Groups for active acquisition are the spokes, or single samples.

    Args:
        image_size: N for N x N pixels, or [rows, columns], where coil maps or a field map do not tell them.
        trajectory: "radial" (equally spaced spokes), "golden" (by the golden angle), "spiral" (interleaved Archimedean arms);
            or points (samples, 2) or (spokes, samples, 2), along rows and columns. A trajectory for each item, or frame, is
            (items, spokes, samples, 2).
        coil_maps: (coils, rows, columns), complex, or with a last axis of real and imaginary part; for each item (items, coils,
            rows, columns).
        spokes: how many, or arms of a spiral; by default what the Nyquist rate asks for at the edge of k-space.
        samples: of each spoke; by default twice the image's longer side; of a spiral one for each cycle per field of view along
            it.
        turns: of each arm of a spiral; by default so many that the arms together are at the Nyquist rate.
        golden_order: of golden angles: 1 for 111.25 degrees, from 2 on the tiny ones, 7 for 23.6 degrees.
        unit: of a given trajectory: "cycles/fov" (cycles per field of view, from -N/2 to N/2), "cycles/pixel" (to 1/2) or
            "rad/pixel" (to pi).
        b0_map: off-resonance in Hz, (rows, columns); for each item (items, rows, columns).
        readout_time: with a b0_map: the duration of a readout in s, samples at equal intervals from 0 on; or the time of
            each sample, (samples,) or (spokes, samples).
        tolerance: relative error of y against the exact sum, from 1e-12 to 1e-2; single precision ends at 1e-6.

    Raises:
        UserError: the size cannot be told, shapes disagree, a trajectory beyond half a cycle per pixel or in another unit by all
            appearance, settings that do not go together, or (when applied) x is not complex.
    """

    name = "mri-noncartesian"
    item_axes: ClassVar[Mapping[str, int]] = {"trajectory": 3, "coil_maps": 3, "b0_map": 2}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"image_size": 12, "spokes": 7},
        {
            "coil_maps": torch.randn(3, 9, 11, 2, generator=torch.Generator().manual_seed(0)),
            "trajectory": "golden",
            "spokes": 5,
            "golden_order": 7,
        },
        {"image_size": [9, 12], "trajectory": "spiral", "spokes": 3},
        {
            "image_size": 8,
            "trajectory": [[0.0, 1.5], [-4.0, 4.0], [3.3, -2.1], [0.4, 0.0], [1.0, 1.0], [-2.5, 3.0]],
            "b0_map": [[10.0 * row * column - 200.0 for column in range(8)] for row in range(8)],
            "readout_time": [0.0, 0.001, 0.002, 0.003, 0.004, 0.005],
        },
    )

    def __init__(
        self,
        image_size: int | list[int] | None = None,
        trajectory: Tensor | Kind = "radial",
        coil_maps: Tensor | None = None,
        spokes: int | None = None,
        samples: int | None = None,
        turns: float | None = None,
        golden_order: int = 1,
        unit: Unit = "cycles/fov",
        b0_map: Tensor | None = None,
        readout_time: float | Tensor | None = None,
        tolerance: float = 2e-6,
    ) -> None:
        maps = as_coil_maps(coil_maps, 2, _WHERE)
        size = size_told(rows_and_columns(image_size, _WHERE), maps, b0_map, _WHERE)
        made = {"spokes": spokes, "samples": samples, "turns": turns}
        if isinstance(trajectory, str):
            points = _made(trajectory, made, golden_order, size) * torch.tensor(size, dtype=torch.float64)
        else:
            given = [name for name, value in made.items() if value is not None]
            if given:
                raise UserError(f"{_WHERE}: trajectory says it all, so leave out {', '.join(given)}")
            points = trajectories.checked(as_array(trajectory, f"{_WHERE}: trajectory"), unit, size, _WHERE)
        super().__init__(points, size, maps, b0_map, readout_time, tolerance)

    @classmethod
    def carries_items(cls, parameter: str, value: Tensor) -> bool:
        return super().carries_items(parameter, as_pairs(parameter, value))


def _made(kind: Kind, given: Mapping[str, float | None], order: int, size: tuple[int, ...]) -> Tensor:
    """A trajectory in cycles per pixel, (spokes, samples, 2).

    Raises:
        UserError: a count that is not above zero, or a setting of another kind of trajectory.
    """
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{_WHERE}: {name} must be above 0, got {value}")
    if order < 1 or (order > 1 and kind != "golden"):
        raise UserError(f"{_WHERE}: golden_order is 1 or more, of trajectory='golden'; got {order} for {kind!r}")
    if given["turns"] is not None and kind != "spiral":
        raise UserError(f"{_WHERE}: turns are of trajectory='spiral', not of {kind!r}; leave them out")
    longest = max(size)
    if kind == "spiral":
        arms = int(given["spokes"] or max(1, longest // 16))
        turns = float(given["turns"] or longest / (2 * arms))
        samples = int(given["samples"] or trajectories.spiral_samples(longest, turns))
        trajectories.check_counts(arms, samples, _WHERE)
        return trajectories.spiral(arms, samples, turns)
    spokes = int(given["spokes"] or math.ceil(math.pi / 2 * longest))
    samples = int(given["samples"] or 2 * longest)
    trajectories.check_counts(spokes, samples, _WHERE)
    angles = trajectories.golden_angles(spokes, order) if kind == "golden" else trajectories.equispaced_angles(spokes)
    return trajectories.spokes_along(trajectories.directions(angles), samples)
