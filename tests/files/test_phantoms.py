"""Phantoms: the closed form against the operator "ct", and against itself where the answer is known."""

from typing import Any

import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets.phantoms import Ellipse, render, shepp_logan, sinogram, thorax
from tests.support.types import offered

PHANTOMS = {"shepp_logan": shepp_logan(), "thorax": thorax()}


@pytest.mark.parametrize("name", PHANTOMS)
def test_values_lie_between_0_and_1(name: str) -> None:
    image = render(PHANTOMS[name], 256)
    assert image.shape == (1, 256, 256)
    assert image.dtype == torch.float32
    assert float(image.min()) >= -1e-6
    assert 0.8 <= float(image.max()) <= 1 + 1e-6


def test_axes_x_right_y_up() -> None:
    image = render([Ellipse(1.0, 0.2, 0.2, 0.5, 0.25)], 64)[0]
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    assert float((image * columns).sum() / image.sum()) == pytest.approx(31.5 + 0.5 * 32, abs=0.05)
    assert float((image * rows).sum() / image.sum()) == pytest.approx(31.5 - 0.25 * 32, abs=0.05)


# A ray through the middle of a detector pixel sees edges that pixels of an image cannot show; its average sees fewer.
@pytest.mark.parametrize("name", PHANTOMS)
@pytest.mark.parametrize(("bin_average", "tolerance"), [(False, 3e-2), (True, 2e-2)])
def test_closed_form_agrees_with_the_operator(name: str, bin_average: bool, tolerance: float) -> None:
    errors = []
    for size in (64, 128):
        operator = invsolve.operator("ct", image_size=size, angles=60)
        g = offered(operator).geometry
        exact = sinogram(PHANTOMS[name], g.angles, g.detectors, size, bin_average=bin_average)
        projected = operator(render(PHANTOMS[name], size, 8)[None])[0]
        assert exact.shape == projected.shape
        errors.append(float((projected - exact).norm() / exact.norm()))
    assert errors[1] < tolerance
    assert errors[1] < 0.6 * errors[0], "the error must fall with the pixel size"


def test_closed_form_agrees_off_centre_and_in_units() -> None:
    settings: dict[str, Any] = {"detectors": 150, "detector_spacing": 0.06, "centre": 70.3, "pixel_size": 0.05}
    angles = [0.0, 17.0, 45.0, 90.0, 133.3, 200.0, 301.0]
    operator = invsolve.operator("ct", image_size=128, angles=angles, **settings)
    exact = sinogram(thorax(), angles, image_size=128, bin_average=True, **settings)
    projected = operator(render(thorax(), 128, 8)[None])[0]
    assert float((projected - exact).norm() / exact.norm()) < 2e-2


def test_mass_of_each_projection_is_the_area() -> None:
    ellipse = Ellipse(0.7, 0.3, 0.5, 0.1, -0.2, 33.0)
    rays = sinogram([ellipse], np.arange(0, 180, 7.0), 200, 128, bin_average=True)
    area = 0.7 * np.pi * 0.3 * 0.5 * 64**2
    assert rays.double().sum(1).numpy() == pytest.approx(area, rel=1e-5)


def test_back_projection_resembles_the_phantom() -> None:
    operator = invsolve.operator("ct", image_size=128, angles=180)
    g = offered(operator).geometry
    image = operator.fbp(sinogram(thorax(), g.angles, g.detectors, 128, bin_average=True)[None])[0]
    truth = render(thorax(), 128)
    assert float((image - truth).norm() / truth.norm()) < 0.13
    mirrored = truth.flip(-1)
    assert float((image - mirrored).norm() / truth.norm()) > 0.2
