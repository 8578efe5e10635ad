"""Which points of k-space to measure: patterns of a given acceleration, around a centre that is measured whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from invsolve.errors import UserError

#: The patterns.
Pattern = Literal["uniform", "random", "variable-density", "poisson-disc", "partial-fourier", "centre"]
PATTERNS: tuple[str, ...] = get_args(Pattern)
#: Exponents of the density where none is given.
_POWER = {"variable-density": 3.0, "poisson-disc": 0.0}


def kspace_mask(
    pattern: str,
    size: Sequence[int],
    acceleration: float,
    centre_fraction: float = 0.08,
    seed: int = 0,
    phase_axes: int | None = None,
    density_power: float | None = None,
    frames: int | None = None,
) -> Tensor:
    """A mask of k-space, centred, True where measured; the same for the same arguments.

    Of n points along the undersampled axes, round(n / acceleration) are measured, the centre among them; "uniform" measures
    the centre beside its lines, so that fewer are saved than it says.

    - "uniform": every so many lines, counted from the zero frequency. Of two axes each takes a factor of the acceleration.
    - "random": all points alike.
    - "variable-density": with a probability proportional to (1 - r)^density_power, at most 1; r is the distance from the zero
      frequency, each axis in units of half its length, and 1 just beyond the farthest point (Lustig et al. 2007).
    - "poisson-disc": at random, but no two nearer than a distance that is as large as the number allows, from a large
      one down (McCool & Fiume 1992); the centre keeps no distance. With density_power p two points p and q keep
      (1 - r)^(-p / 2) of that distance, the smaller of the two.
    - "partial-fourier": all of one side, and as much of the other as is left; acceleration below 2. Along columns alone.
    - "centre": the points nearest to the zero frequency, a low resolution.

    Args:
        pattern: one of these.
        size: of the image, (rows, columns) or (depth, rows, columns).
        acceleration: all points over those measured, 1 or more.
        centre_fraction: part of each undersampled axis around the zero frequency that is always measured, for calibration;
            0 for none.
        seed: of the random patterns.
        phase_axes: along how many axes k-space is undersampled: 1, the columns (whole lines along the others), or 2, columns
            and rows, of volumes columns and depth. Default 1 for images, 2 for volumes and Poisson discs.
        density_power: see above; default 3 for "variable-density", 0 for "poisson-disc".
        frames: so many masks of a moving object: random ones differ, the lines of "uniform" move on by one with each frame, so
            that as many frames as the acceleration measure everything.

    Returns:
        Boolean, with `size`'s axes, of length 1 along those that are measured whole; with frames, these in front.

    Raises:
        UserError: an unknown pattern, or numbers that do not fit together.
    """
    if pattern not in PATTERNS:
        raise UserError(f"mask={pattern!r} is no pattern; known: {', '.join(PATTERNS)}, or give an array")
    _check(pattern, size, acceleration, centre_fraction, seed, phase_axes, density_power, frames)
    two = (len(size) == 3 or pattern == "poisson-disc") if phase_axes is None else phase_axes == 2
    axes = [len(size) - 1] if not two or pattern == "partial-fourier" else [0, len(size) - 1]
    grid = tuple(size[axis] for axis in axes)
    centre = _centre(grid, centre_fraction)
    wanted = round(math.prod(grid) / acceleration)
    if pattern != "uniform" and int(centre.sum()) > wanted:
        raise UserError(
            f"acceleration={acceleration:g} measures {wanted} of {math.prod(grid)} points, but the centre alone has "
            f"{int(centre.sum())}; lower acceleration, or centre_fraction={centre_fraction:g}"
        )
    power = _POWER.get(pattern, 0.0) if density_power is None else density_power
    generators = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    masks = []
    for frame in range(frames or 1):
        if pattern == "uniform":
            mask = centre | _uniform(grid, acceleration, frame)
        elif pattern == "random":
            mask = _random(centre, wanted, generators[0])
        elif pattern == "variable-density":
            mask = _variable_density(centre, wanted, power, generators[1])
        elif pattern == "poisson-disc":
            mask = _poisson_disc(centre, wanted, power, generators[1])
        elif pattern == "partial-fourier":
            mask = np.arange(grid[0]) >= grid[0] - wanted
            if (centre & ~mask).any():
                raise UserError(
                    f"mask='partial-fourier': acceleration={acceleration:g} cuts into the centre; lower it, or "
                    f"centre_fraction={centre_fraction:g}"
                )
        else:
            mask = _nearest(centre, wanted)
        masks.append(mask.reshape([n if axis in axes else 1 for axis, n in enumerate(size)]))
    return torch.from_numpy(np.stack(masks) if frames is not None else masks[0])


def _check(
    pattern: str,
    size: Sequence[int],
    acceleration: float,
    centre_fraction: float,
    seed: int,
    phase_axes: int | None,
    density_power: float | None,
    frames: int | None,
) -> None:
    wrong = ""
    if len(size) not in (2, 3) or min(size) < 1:
        wrong = f"size must be (rows, columns) or (depth, rows, columns), got {tuple(size)}"
    elif not 1 <= acceleration < math.inf:
        wrong = f"acceleration must be 1 or more, got {acceleration:g}"
    elif not 0 <= centre_fraction <= 1:
        wrong = f"centre_fraction must be from 0 to 1, got {centre_fraction:g}"
    elif not 0 <= seed < 2**63:
        wrong = f"seed must be a whole number of 0 or more, got {seed}"
    elif phase_axes not in (None, 1, 2):
        wrong = f"phase_axes must be 1 or 2, got {phase_axes}"
    elif density_power is not None and pattern not in _POWER:
        wrong = f"mask={pattern!r} has no density_power; that is for {' and '.join(_POWER)}"
    elif density_power is not None and not 0 <= density_power < math.inf:
        wrong = f"density_power must be 0 or more, got {density_power:g}"
    elif frames is not None and frames < 1:
        wrong = f"frames must be 1 or more, got {frames}"
    elif pattern == "partial-fourier" and acceleration >= 2:
        wrong = f"mask='partial-fourier' measures more than half: acceleration must be below 2, got {acceleration:g}"
    elif pattern == "partial-fourier" and phase_axes == 2:
        wrong = "mask='partial-fourier' is along columns alone: leave phase_axes out"
    if wrong:
        raise UserError(wrong)


def _centre(grid: Sequence[int], fraction: float) -> np.ndarray:
    """The middle of each axis, at least a point of it where there is a fraction at all."""
    region = np.zeros(grid, bool)
    if fraction > 0:
        extents = [max(1, round(n * fraction)) for n in grid]
        region[tuple(slice(n // 2 - e // 2, n // 2 - e // 2 + e) for n, e in zip(grid, extents, strict=True))] = True
    return region


def _offsets(grid: Sequence[int]) -> list[np.ndarray]:
    """Distance of each point from the zero frequency along each axis, to broadcast."""
    return list(np.ogrid[tuple(slice(-(n // 2), n - n // 2) for n in grid)])


def _radius(grid: Sequence[int]) -> np.ndarray:
    """Elliptical distance from the zero frequency, 1 just beyond the farthest point."""
    squares = sum((2 * k / n) ** 2 for k, n in zip(_offsets(grid), grid, strict=True))
    radius = np.sqrt(np.broadcast_to(squares, grid))
    return np.asarray(radius / (radius.max() * (1 + 1 / max(grid)) or 1.0))


def _uniform(grid: Sequence[int], acceleration: float, frame: int) -> np.ndarray:
    offsets = _offsets(grid)
    if len(grid) == 1:
        # The line that begins each interval of that length, which need not be whole.
        steps = offsets[0] - frame
        return np.asarray(np.floor(steps / acceleration) != np.floor((steps - 1) / acceleration))
    whole = round(acceleration)
    if whole != acceleration:
        raise UserError(
            f"mask='uniform' along two axes takes a whole acceleration, a factor of it each, got {acceleration:g}"
        )
    first = max(d for d in range(1, math.isqrt(whole) + 1) if whole % d == 0)
    second = whole // first
    along, across = (offsets[0] - frame // second) % first == 0, (offsets[1] - frame) % second == 0
    return np.asarray(along & across)


def _random(centre: np.ndarray, wanted: int, generator: torch.Generator) -> np.ndarray:
    mask = centre.copy()
    others = np.flatnonzero(~centre)
    order = torch.randperm(len(others), generator=generator).numpy()
    mask.flat[others[order[: wanted - int(centre.sum())]]] = True
    return mask


def _variable_density(centre: np.ndarray, wanted: int, power: float, rng: np.random.Generator) -> np.ndarray:
    mask = centre.copy()
    others = rng.permutation(np.flatnonzero(~centre))
    count = wanted - int(centre.sum())
    if count == 0:
        return mask
    probability = _probabilities((1 - _radius(centre.shape).flat[others]) ** power, count)
    # Systematic sampling of a random order: a fixed number, and each point with exactly its probability (Madow 1949).
    ends = np.cumsum(probability)
    ends *= count / ends[-1]
    ends[-1] = count
    marks = np.floor(ends - (1 - rng.random())).astype(int)
    mask.flat[others[np.diff(marks, prepend=-1) > 0]] = True
    return mask


def _probabilities(weights: np.ndarray, count: int) -> np.ndarray:
    """min(1, s w), with the s that makes their sum `count`."""
    certain = np.zeros(len(weights), bool)
    while True:
        rest = weights[~certain]
        scaled = weights * ((count - certain.sum()) / rest.sum() if len(rest) else 0.0)
        more = ~certain & (scaled >= 1)
        if not more.any():
            return np.where(certain, 1.0, scaled)
        certain |= more


def _poisson_disc(centre: np.ndarray, wanted: int, power: float, rng: np.random.Generator) -> np.ndarray:
    """Points of the grid in a random order, each taken if far enough from all before it; then again with a shorter distance."""
    mask = centre.copy()
    grid = centre.shape if centre.ndim == 2 else (1, *centre.shape)
    count = wanted - int(centre.sum())
    others = rng.permutation(np.flatnonzero(~centre))
    stretch = (1 - _radius(centre.shape).ravel()) ** (-power / 2)
    # Twice what a hexagonal lattice of as many points has.
    longest = 2 * math.sqrt(2 / math.sqrt(3) * len(others) / max(count, 1))
    squared = np.full(centre.size, np.inf)
    rows, columns = (index.ravel() for index in np.indices(grid))
    levels = _distances(longest) if power == 0 else longest * 0.97 ** np.arange(200)
    for level in levels:
        if count == 0:
            break
        reach = (level * stretch) ** 2
        for point in others[squared[others] >= reach[others]].tolist():
            # Earlier points of this round may have come near.
            if count and squared[point] >= reach[point]:
                mask.flat[point] = True
                count -= 1
                _approach(squared.reshape(grid), int(rows[point]), int(columns[point]), longest * stretch[point])
    if count:
        others = others[~mask.flat[others]]
        mask.flat[others[:count]] = True
    return mask


def _distances(longest: float) -> list[float]:
    """Distances between points of a grid, from the longest down to 1."""
    squares = {i * i + j * j for i in range(int(longest) + 1) for j in range(int(longest) + 1)}
    return [math.sqrt(s) for s in sorted(squares, reverse=True) if 1 <= s <= longest**2]


def _approach(squared: np.ndarray, row: int, column: int, reach: float) -> None:
    """Note the squared distance to a new point where it is the nearest so far."""
    r = math.ceil(reach)
    rows = np.arange(max(row - r, 0), min(row + r + 1, squared.shape[0]))
    columns = np.arange(max(column - r, 0), min(column + r + 1, squared.shape[1]))
    window = squared[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.minimum(window, (rows[:, None] - row) ** 2 + (columns - column) ** 2, out=window)


def _nearest(centre: np.ndarray, wanted: int) -> np.ndarray:
    mask = np.zeros_like(centre)
    mask.flat[np.argsort(_radius(centre.shape) - 2 * centre, axis=None, kind="stable")[:wanted]] = True
    return mask
