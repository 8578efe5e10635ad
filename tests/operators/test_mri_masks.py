"""Patterns of k-space: their number of points, their centre, distances of Poisson discs, densities, frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

import invsolve
from invsolve.datasets import hdf5
from invsolve.files.opening import open_measurement
from invsolve.operators.mri.masks import PATTERNS
from tests.support.types import offered

EXACT = [p for p in PATTERNS if p not in ("uniform", "partial-fourier")]


@pytest.mark.parametrize("size", [(40, 52), (33, 45), (12, 20, 31)])
@pytest.mark.parametrize("phase_axes", [1, 2])
@pytest.mark.parametrize("pattern", EXACT)
def test_as_many_points_as_the_acceleration_says(pattern: str, phase_axes: int, size: tuple[int, ...]) -> None:
    for acceleration in (1, 1.7, 4, 7):
        mask = invsolve.kspace_mask(pattern, size, acceleration, 0.1, phase_axes=phase_axes)
        shape = [1] * len(size)
        shape[-1] = size[-1]
        if phase_axes == 2:
            shape[0] = size[0]
        assert list(mask.shape) == shape
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == round(math.prod(shape) / acceleration)
        # The zero frequency and a tenth of each axis about it.
        for axis, n in enumerate(shape):
            if n > 1:
                middle = mask.movedim(axis, 0)[n // 2 - round(n / 10) // 2 : n // 2 + 1]
                others = [m // 2 for m in middle.shape[1:]]
                assert bool(middle[(slice(None), *others)].all())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_the_same_for_the_same_seed(pattern: str) -> None:
    acceleration = 1.5 if pattern == "partial-fourier" else 4
    one, two, other = (invsolve.kspace_mask(pattern, (48, 64), acceleration, seed=s) for s in (3, 3, 4))
    assert torch.equal(one, two)
    assert torch.equal(one, other) == (pattern in ("uniform", "partial-fourier", "centre"))
    torch.manual_seed(1)
    np.random.default_rng(0)
    assert torch.equal(one, invsolve.kspace_mask(pattern, (48, 64), acceleration, seed=3))


def test_uniform_lines() -> None:
    mask = invsolve.kspace_mask("uniform", (10, 21), 4, 0)[0]
    assert mask.nonzero().flatten().tolist() == [2, 6, 10, 14, 18]
    with_centre = invsolve.kspace_mask("uniform", (10, 21), 4, 0.24)[0]
    assert with_centre.nonzero().flatten().tolist() == [2, 6, 8, 9, 10, 11, 12, 14, 18]
    # An acceleration that is not whole is met on average.
    assert int(invsolve.kspace_mask("uniform", (1, 1000), 2.7, 0).sum()) == pytest.approx(1000 / 2.7, abs=1)
    points = invsolve.kspace_mask("uniform", (12, 18), 6, 0, phase_axes=2)
    assert points.nonzero().tolist() == [[r, c] for r in range(0, 12, 2) for c in range(0, 18, 3)]


def test_partial_fourier_is_one_side_and_a_part_of_the_other() -> None:
    mask = invsolve.kspace_mask("partial-fourier", (4, 32), 1.6, 0.2)
    assert mask.shape == (1, 32)
    assert mask[0].nonzero().flatten().tolist() == list(range(12, 32))
    with pytest.raises(invsolve.UserError, match="cuts into the centre"):
        invsolve.kspace_mask("partial-fourier", (4, 32), 1.6, 0.3)


@pytest.mark.parametrize("acceleration", [3, 6, 12])
@pytest.mark.parametrize("shape", [(64, 80), (24, 20, 96)])
def test_points_of_a_poisson_disc_keep_their_distance(shape: tuple[int, ...], acceleration: int) -> None:
    mask = invsolve.kspace_mask("poisson-disc", shape, acceleration, 0.0, seed=acceleration)
    plane = mask.reshape(mask.shape[0], mask.shape[-1]).numpy()
    places = np.argwhere(plane)
    nearest = cKDTree(places).query(places, 2)[0][:, 1].min()
    # Discs thrown at random until none fits cover 0.547 of a plane: so many of a diameter d have d^2 = 0.697 x acceleration. On
    # a grid the last points come at the next shorter distance that the grid has.
    saturated = 0.697 * acceleration
    squares = sorted({i * i + j * j for i in range(9) for j in range(9)})
    shorter = [s for s in squares if s <= saturated][-2:]
    assert nearest**2 >= min(shorter)
    # Points drawn alike are neighbours: the distance is none that chance gives.
    random = invsolve.kspace_mask("random", shape, acceleration, 0.0, phase_axes=2)
    chance = np.argwhere(random.reshape(plane.shape).numpy())
    assert cKDTree(chance).query(chance, 2)[0][:, 1].min() == 1
    # Nor are there holes: nowhere is a point farther away than twice what would leave room for another.
    holes = cKDTree(places).query(np.argwhere(np.ones_like(plane)))[0].max()
    assert holes <= 2 * math.sqrt(saturated)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_poisson_disc_thins_out_with_its_power(power: float) -> None:
    mask = invsolve.kspace_mask("poisson-disc", (96, 96), 6, 0.0, density_power=power, seed=1).numpy()
    places = np.argwhere(mask)
    offset = (places - 48) / 48
    radius = np.hypot(*offset.T) / (math.sqrt(2) * (1 + 1 / 96))
    stretch = (1 - radius) ** (-power / 2)
    pairs = cKDTree(places).query_pairs(12, output_type="ndarray")
    distance = np.linalg.norm(places[pairs[:, 0]] - places[pairs[:, 1]], axis=1)
    least = (distance / np.minimum(stretch[pairs[:, 0]], stretch[pairs[:, 1]])).min()
    # The mean over the plane of the density 1 / stretch^2, and saturation as above; the grid takes some of the distance.
    rows, columns = (np.mgrid[:96, :96] - 48) / 48
    mean = ((1 - np.hypot(rows, columns) / (math.sqrt(2) * (1 + 1 / 96))) ** power).mean()
    assert least > 0.7 * math.sqrt(0.697 * 6 * mean)
    inner, outer = radius < 0.25, radius > 0.6
    area = np.hypot(rows, columns) / (math.sqrt(2) * (1 + 1 / 96))
    assert inner.sum() / (area < 0.25).sum() > 1.5 * outer.sum() / (area > 0.6).sum()


@pytest.mark.parametrize("phase_axes", [1, 2])
def test_variable_density_is_the_density(phase_axes: int) -> None:
    """How often the points of a ring are measured, over many seeds, against min(1, s (1 - r)^p) with its s by bisection."""
    rows, columns, draws = 24, 40, 300
    masks = [
        invsolve.kspace_mask("variable-density", (rows, columns), 4, 0.0, seed, phase_axes, 2.0)
        for seed in range(draws)
    ]
    often = torch.stack(masks).double().mean(0).numpy()
    grid = (rows, columns) if phase_axes == 2 else (1, columns)
    r, c = np.mgrid[: grid[0], : grid[1]]
    radius = np.hypot((r - grid[0] // 2) / (grid[0] / 2) * (phase_axes == 2), (c - columns // 2) / (columns / 2))
    radius /= radius.max() * (1 + 1 / columns)
    weight, wanted = (1 - radius) ** 2.0, round(math.prod(grid) / 4)
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * weight).sum() < wanted else (low, middle)
    density = np.minimum(1, low * weight)
    rings = np.minimum((radius * 8).astype(int), 7)
    for ring in range(8):
        inside = rings == ring
        expected, count = density[inside].mean(), inside.sum() * draws
        # Points drawn without replacement scatter less than coins.
        spread = math.sqrt((density[inside] * (1 - density[inside])).mean() / count)
        assert often[inside].mean() == pytest.approx(expected, abs=4 * spread + 1e-9), ring
    # Every point for itself.
    spread = np.sqrt(density * (1 - density) / draws)
    assert (np.abs(often - density) <= 5 * spread + 1e-9).all()


def test_random_masks_are_those_of_before() -> None:
    """Columns at random: the centre, and the first of a permutation by torch's generator of that seed."""
    mask = invsolve.kspace_mask("random", (8, 50), 4, 0.1, seed=7)[0]
    others = torch.tensor([k for k in range(50) if not 23 <= k < 28])
    order = torch.randperm(45, generator=torch.Generator().manual_seed(7))
    wanted = torch.zeros(50, dtype=torch.bool)
    wanted[23:28] = True
    wanted[others[order[:7]]] = True
    assert torch.equal(mask, wanted)


def test_frames_of_lines_interleave_to_everything() -> None:
    masks = invsolve.kspace_mask("uniform", (6, 30), 5, 0.0, frames=10)
    assert masks.shape == (10, 1, 30)
    for first in range(6):
        assert bool((masks[first : first + 5].sum(0) == 1).all())
    assert torch.equal(masks[0], invsolve.kspace_mask("uniform", (6, 30), 5, 0.0))
    points = invsolve.kspace_mask("uniform", (12, 4, 18), 6, 0.0, frames=6)
    assert points.shape == (6, 12, 1, 18)
    assert bool((points.sum(0) == 1).all())


@pytest.mark.parametrize("pattern", ["random", "variable-density", "poisson-disc"])
def test_random_frames_differ(pattern: str) -> None:
    masks = invsolve.kspace_mask(pattern, (24, 30), 5, frames=3)
    assert len({tuple(m.flatten().tolist()) for m in masks}) == 3
    assert len({int(m.sum()) for m in masks}) == 1
    assert torch.equal(masks[0], invsolve.kspace_mask(pattern, (24, 30), 5))


def test_the_command_line_measures_by_a_pattern(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    truth = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    hdf5.write_images(tmp_path / "x.h5", truth)
    common = ("simulate", tmp_path / "x.h5", "--operator", "mri", "--noise", "gaussian:0.01")
    words = ("--set", "mask=poisson-disc", "--set", "acceleration=4", "--set", "seed=2")
    code, _, err = cli(*common, "-o", tmp_path / "y.h5", *words)
    assert code == 0, err
    wanted = invsolve.kspace_mask("poisson-disc", (32, 32), 4, seed=2)
    scan = open_measurement(tmp_path / "y.h5")
    assert torch.equal(offered(scan.operator).mask, wanted)
    assert offered(scan.operator).acceleration == 4
    assert torch.equal(scan.y[0:2].abs() > 0, wanted.expand(2, 1, 32, 32))
    frames = ("--set", "mask=uniform", "--set", "acceleration=4", "--set", "frames=2", "--set", "centre_fraction=0")
    code, _, err = cli(*common, "-o", tmp_path / "z.h5", *frames)
    assert code == 0, err
    code, out, _ = cli("inspect", tmp_path / "z.h5")
    assert code == 0
    assert "mask=uniform, 25.0% measured" in out
    scan = open_measurement(tmp_path / "z.h5")
    for item in range(2):
        assert offered(scan.operator_for(item)).mask[0].nonzero().flatten().tolist() == list(range(item, 32, 4))
    code, _, err = cli(*common, "-o", tmp_path / "w.h5", "--set", "mask=poisson", "--set", "acceleration=4")
    assert code == 2
    assert err.strip().count("\n") == 0
    assert "poisson-disc" in err


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: invsolve.kspace_mask("spiral", (8, 8), 2), "is no pattern; known: uniform, random"),
        (lambda: invsolve.kspace_mask("random", (8,), 2), r"size must be \(rows, columns\)"),
        (lambda: invsolve.kspace_mask("random", (8, 8), float("nan")), "acceleration must be 1 or more"),
        (
            lambda: invsolve.kspace_mask("variable-density", (8, 8), 2, seed=-1),
            "seed must be a whole number of 0 or more",
        ),
        (lambda: invsolve.kspace_mask("random", (8, 8), 2, frames=0), "frames must be 1 or more"),
        (lambda: invsolve.kspace_mask("poisson-disc", (8, 8), 2, density_power=-1), "density_power must be 0 or more"),
    ],
)
def test_what_does_not_fit_is_one_line(make: Callable[[], object], says: str) -> None:
    with pytest.raises(invsolve.UserError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
