"""Trajectories of non-Cartesian MRI, and the areas of k-space that their samples stand for, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special

import invsolve
from invsolve.operators.mri.noncartesian import trajectories
from invsolve.operators.mri.noncartesian.density import areas_of_spokes, pipe_menon
from tests.support.types import linear_operator, offered

SIZE = (20, 26)


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def test_trajectories_are_what_they_are_called() -> None:
    radial = offered(invsolve.operator("mri-noncartesian", image_size=[8, 12], spokes=4, samples=6)).trajectory
    assert radial.shape == (4, 6, 2)
    # Angles of 0, 45, 90, 135 degrees, anticlockwise from the columns' axis, rows growing downwards; to half a cycle per pixel.
    step = torch.tensor([8, 12]) / 6 * math.sqrt(0.5)
    torch.testing.assert_close(radial[0, :, 1], torch.arange(-3, 3) * 2.0, check_dtype=False)
    torch.testing.assert_close(radial[1, 4], step * torch.tensor([-1, 1]), check_dtype=False)
    torch.testing.assert_close(radial[2, :, 0], -torch.arange(-3, 3) * 8 / 6, check_dtype=False)
    assert float(radial[0, :, 0].abs().max()) < 1e-12
    golden = np.rad2deg(np.asarray(trajectories.golden_angles(3)))
    np.testing.assert_allclose(golden, [0, 111.246118, 222.492236], atol=1e-6)
    tiny = [math.degrees(float(trajectories.golden_angles(2, order)[1])) for order in range(1, 8)]
    # Wundrak 2015, table 1.
    np.testing.assert_allclose(tiny, [111.2461, 68.7539, 49.7508, 38.9776, 32.0397, 27.1984, 23.6281], atol=1e-4)


def test_a_spiral_is_archimedean_at_constant_speed() -> None:
    k = trajectories.spiral(3, 500, 7.0).numpy()
    radius = np.hypot(k[..., 0], k[..., 1])
    angle = np.unwrap(np.arctan2(-k[..., 0], k[..., 1]), axis=1)
    np.testing.assert_allclose(angle[:, 1:] - angle[:, 1:2], (radius[:, 1:] - radius[:, 1:2]) * 28 * math.pi, atol=1e-6)
    turned = np.exp(1j * (angle[:, 100] - angle[0, 100]))
    np.testing.assert_allclose(turned, np.exp(2j * math.pi / 3 * np.arange(3)), atol=1e-9)
    # The closed form of the arc: chords of 500 steps are shorter by the square of their share of the turn.
    arc = 0.5 / (14 * math.pi) * special_arc(14 * math.pi) / 500
    chords = np.hypot(*np.diff(k, axis=1)[:, 20:].transpose(2, 0, 1))
    np.testing.assert_allclose(chords, arc, rtol=3e-3)
    # Arms together at the Nyquist rate: half of 64 cycles, in as many rounds.
    whole = offered(invsolve.operator("mri-noncartesian", image_size=64, trajectory="spiral", spokes=4)).trajectory
    assert float(whole[0, -1].norm()) == pytest.approx(32, rel=0.01)
    assert float((whole[0, 1:] - whole[0, :-1]).norm(dim=-1).max()) <= 1.0


def special_arc(angle: float) -> float:
    return (angle * math.sqrt(1 + angle**2) + math.asinh(angle)) / 2


@pytest.mark.parametrize("make", [trajectories.even_directions, trajectories.golden_directions])
def test_spokes_in_space_are_spread_evenly(make: Callable[[int], torch.Tensor]) -> None:
    u = make(400)
    torch.testing.assert_close(u.norm(dim=-1), torch.ones(400, dtype=torch.float64))
    # Of lines evenly spread, u u' is 1/3 in the mean, and the mean even Legendre polynomials along any axis vanish.
    torch.testing.assert_close(u.T @ u / 400, torch.eye(3, dtype=torch.float64) / 3, atol=0.02, rtol=0)
    axes = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    assert abs(special.eval_legendre(4, (u @ axes.T).numpy()).mean(0)).max() < 0.05


@pytest.mark.parametrize("trajectory", ["radial", "golden"])
def test_areas_of_spokes_are_their_ring_sectors(trajectory: str) -> None:
    operator: Any = invsolve.operator(
        "mri-noncartesian", image_size=[8, 12], trajectory=trajectory, spokes=5, samples=10
    )
    areas = operator.density(torch.zeros(1, 1, 5, 10, dtype=torch.complex128))
    assert areas.shape == (5, 10)
    # Rings from -1/2 to 1/2 - 1/10 cycles per pixel and half a step beyond, in fields of view of 8 and 12 pixels.
    outer, inner = math.pi / 2 * 0.55**2, math.pi / 2 * 0.45**2
    assert float(areas.sum()) == pytest.approx(96 * (outer + inner), rel=1e-12)
    ring = 96 * math.pi * 0.1 * 0.2
    assert float(areas[:, 3].sum() + areas[:, 7].sum()) == pytest.approx(2 * ring, rel=1e-12)
    if trajectory == "golden":
        # Of angles 0, 111.2, 42.5, 153.7, 85.0 degrees (mod 180): half of the gaps 26.3 and 42.5 beside the first.
        first = 111.2461179749811 * torch.arange(5, dtype=torch.float64) % 180
        gaps = torch.diff(first.sort().values, append=torch.tensor([180.0]).double())
        share = (gaps[0] + gaps[-1]) / 360
        assert float(areas[0].sum() / areas.sum()) == pytest.approx(float(share), rel=1e-9)
    else:
        torch.testing.assert_close(areas, areas[:1].expand(5, -1))


def test_shells_of_even_spokes_fill_the_ball() -> None:
    operator: Any = invsolve.operator("mri-noncartesian-3d", volume_size=[4, 6, 8], spokes=11, samples=10)
    areas = operator.density(torch.zeros(1, 1, 11, 10, dtype=torch.complex128))
    shell = 4 * math.pi * 0.3**2 * 0.1 * 192
    assert float(areas[:, 2].sum() + areas[:, 8].sum()) == pytest.approx(shell, rel=1e-12)
    assert float(areas[:, 5].sum()) == pytest.approx(4 / 3 * math.pi * 0.05**3 * 192, rel=1e-12)


def test_spokes_are_known_by_their_points() -> None:
    points = trajectories.spokes_along(trajectories.directions(trajectories.golden_angles(7)), 12)
    assert areas_of_spokes(points, False) is not None
    assert areas_of_spokes(points.flatten(0, 1), False) is None
    assert areas_of_spokes(points + 0.01, False) is None
    assert areas_of_spokes(trajectories.spiral(3, 40, 2.0), False) is None
    assert areas_of_spokes(points[:, :1], False) is None


def test_iterated_areas_are_those_of_the_grid_and_of_spokes() -> None:
    # Every point of a grid of 1 cycle per field of view stands for 1, away from its edge.
    k = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) - n // 2 for n in SIZE))
    areas = pipe_menon(k / torch.tensor(SIZE), SIZE).view(SIZE)
    inside = areas[5:15, 5:21]
    # Single areas vary with where in a cell of the kernel's grid a point lies; together they are right to what a kernel of 3
    # points errs by, 1 % in each dimension.
    assert abs(float(inside.mean()) - 1) < 0.02
    torch.testing.assert_close(inside, torch.ones(10, 16, dtype=torch.float64), atol=0.1, rtol=0)
    points = trajectories.spokes_along(trajectories.directions(trajectories.equispaced_angles(64)), 64)
    exact = areas_of_spokes(points, False)
    assert exact is not None
    iterated = pipe_menon(points.flatten(0, 1), (32, 32)).view(64, 64) / 32**2
    # Along spokes samples are closer than a cycle per field of view, so that only sums over neighbours are determined.
    torch.testing.assert_close(iterated.mean(0)[6:26], exact.mean(0)[6:26], atol=0, rtol=0.1)
    assert float(iterated[:, 6:26].sum()) == pytest.approx(float(exact[:, 6:26].sum()), rel=0.01)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"spokes": 101}, 0.03),
        ({"trajectory": "golden", "spokes": 101}, 0.03),
        ({"trajectory": "spiral"}, 0.06),
    ],
)
def test_gridding_keeps_the_grey_value_of_a_disc(given: dict[str, Any], error: float) -> None:
    radius = torch.hypot(torch.arange(48.0)[:, None] - 24, torch.arange(64.0) - 32)
    disc = (0.7 * torch.sigmoid(12 - radius))[None, None].to(torch.complex64)
    operator = linear_operator("mri-noncartesian", image_size=[48, 64], **given)
    image = operator.baseline(operator(disc))
    assert abs(float(image[0, 0, 20:28, 28:36].real.mean()) - 0.7) < 0.02
    assert relative(image, disc) < error


def test_gridding_keeps_the_grey_value_of_a_ball() -> None:
    axis = torch.arange(20.0) - 10
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    ball = (0.7 * torch.sigmoid(2 * (5 - radius)))[None, None].to(torch.complex64)
    operator = linear_operator("mri-noncartesian-3d", volume_size=20, spokes=400)
    image = operator.baseline(operator(ball))
    assert abs(float(image[0, 0, 9:12, 9:12, 9:12].real.mean()) - 0.7) < 0.03
