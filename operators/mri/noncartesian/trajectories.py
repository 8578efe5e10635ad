"""Where k-space is sampled: radial, golden-angle and spiral trajectories, and what is asked of those that are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from invsolve.errors import UserError

Kind = Literal["radial", "golden", "spiral"]
Unit = Literal["cycles/fov", "cycles/pixel", "rad/pixel"]

_GOLDEN = (1 + math.sqrt(5)) / 2
#: Fractions of a turn that spread directions in space: the golden means in two dimensions (Chan 2009).
_GOLDEN_MEANS = (0.4656, 0.6823)
#: Points of a trajectory, 4 GiB of them.
_MOST_POINTS = 2**28


def radii(samples: int) -> Tensor:
    """Positions along a spoke in cycles per pixel, from -1/2 on; sample `samples // 2` is the centre."""
    return (torch.arange(samples, dtype=torch.float64) - samples // 2) / samples


def equispaced_angles(spokes: int) -> Tensor:
    """So many angles on [0, pi)."""
    return math.pi * torch.arange(spokes, dtype=torch.float64) / spokes


def golden_angles(spokes: int, order: int = 1) -> Tensor:
    """Angles that step by pi / (tau + order - 1), tau the golden ratio: 111.25 degrees (Winkelmann 2007), the tiny golden
    angles from order 2 on, 23.6 degrees for 7 (Wundrak 2015)."""
    return torch.arange(spokes, dtype=torch.float64) * math.pi / (_GOLDEN + order - 1)


def directions(angles: Tensor) -> Tensor:
    """Unit vectors (spokes, 2), along rows and columns: angles grow anticlockwise from the columns' axis."""
    return torch.stack([-angles.sin(), angles.cos()], -1)


def even_directions(spokes: int) -> Tensor:
    """Unit vectors (spokes, 3), evenly over half of the sphere, on a spiral from its rim to its pole (Wong and Roos 1994)."""
    height = (torch.arange(spokes, dtype=torch.float64) + 0.5) / spokes
    return _on_sphere(height, math.sqrt(2 * math.pi * spokes) * height.asin())


def golden_directions(spokes: int) -> Tensor:
    """Unit vectors (spokes, 3), of which any number in succession is spread evenly (Chan 2009)."""
    k = torch.arange(spokes, dtype=torch.float64)
    return _on_sphere(k * _GOLDEN_MEANS[0] % 1, 2 * math.pi * (k * _GOLDEN_MEANS[1] % 1))


def _on_sphere(height: Tensor, azimuth: Tensor) -> Tensor:
    radius = (1 - height**2).sqrt()
    return torch.stack([height, radius * azimuth.sin(), radius * azimuth.cos()], -1)


def spokes_along(unit_vectors: Tensor, samples: int) -> Tensor:
    """Lines through the centre, (spokes, samples, dimensions), cycles per pixel."""
    return radii(samples)[:, None] * unit_vectors[:, None]


def _arc(angle: Tensor) -> Tensor:
    """Length of the spiral r = angle from the centre to an angle."""
    return (angle * (1 + angle**2).sqrt() + angle.asinh()) / 2


def spiral_samples(size: float, turns: float) -> int:
    """Samples of an arm at one cycle per field of view from one to the next, for an image of so many pixels."""
    last = 2 * math.pi * turns
    return max(2, math.ceil(float(_arc(torch.tensor(last, dtype=torch.float64))) * size / 2 / last))


def spiral(arms: int, samples: int, turns: float) -> Tensor:
    """Archimedean spirals from the centre outwards, at constant speed; (arms, samples, 2), cycles per pixel."""
    last = torch.tensor(2 * math.pi * turns, dtype=torch.float64)
    way = _arc(last) * torch.arange(samples, dtype=torch.float64) / samples
    angle = (2 * way).sqrt()
    # Newton's method: the arc grows convexly with the angle, and starts below its square root.
    for _ in range(30):
        angle = angle - (_arc(angle) - way) / (1 + angle**2).sqrt()
    radius, start = 0.5 * angle / last, 2 * math.pi * torch.arange(arms, dtype=torch.float64) / arms
    turned = angle + start[:, None]
    return radius[:, None] * torch.stack([-turned.sin(), turned.cos()], -1)


def check_counts(spokes: float, samples: float, where: str) -> None:
    """Refuse trajectories that would fill the memory.

    Raises:
        UserError: more points than any scan has.
    """
    if spokes * samples > _MOST_POINTS:
        raise UserError(
            f"{where}: {spokes:g} spokes of {samples:g} samples are more than {_MOST_POINTS} points; give fewer of either"
        )


def checked(given: Tensor, unit: Unit, size: Sequence[int], where: str) -> Tensor:
    """A given trajectory in cycles per field of view, float64.

    Args:
        given: (samples, dimensions) or (spokes, samples, dimensions), along the axes of the image.
        unit: what it is in.
        size: of the image.
        where: whose trajectory, for the message.

    Raises:
        UserError: of another shape, not finite, out of range, or in another unit by all appearance.
    """
    axes = ("rows", "columns") if len(size) == 2 else ("depth", "rows", "columns")
    if given.ndim not in (2, 3) or given.shape[-1] != len(size) or 0 in given.shape or given.is_complex():
        raise UserError(
            f"{where}: trajectory must be real, (samples, {len(size)}) or (spokes, samples, {len(size)}), along "
            f"{', '.join(axes)} of the image; got {given.dtype} {tuple(given.shape)}"
        )
    if not bool(given.isfinite().all()):
        count = int((~given.isfinite()).sum())
        raise UserError(f"{where}: trajectory has {count} NaN or infinite entries; leave those samples out")
    pixels = torch.tensor(size, dtype=torch.float64)
    factor = {"cycles/fov": torch.ones(len(size)), "cycles/pixel": pixels, "rad/pixel": pixels / (2 * math.pi)}[unit]
    k = given.detach().cpu().double() * factor
    reach = k.abs().flatten(0, -2).amax(0)
    beyond = (reach > pixels / 2 * (1 + 1e-6)).nonzero().flatten().tolist()
    if beyond:
        axis = beyond[0]
        raise UserError(
            f"{where}: trajectory reaches {float(reach[axis]):.6g} cycles per field of view along {axes[axis]}, beyond half a "
            f"cycle per pixel, {size[axis] / 2:g}; give unit='cycles/pixel' or 'rad/pixel' if it is in those, or a larger image"
        )
    largest, least = float(reach.max()), min(size)
    if unit == "cycles/fov" and least >= 16 and (largest < 0.51 or abs(largest - math.pi) < 0.05):
        other = "cycles/pixel" if largest < 0.51 else "rad/pixel"
        raise UserError(
            f"{where}: trajectory reaches {largest:.3g}, which in cycles per field of view resolves next to nothing; it seems to "
            f"be in {other}: give unit={other!r}"
        )
    return k
