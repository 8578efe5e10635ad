"""Every registered operator measures rectangular images, and colour where it says so: from Python and from files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import invsolve
from invsolve import jobs, registry
from invsolve.api import fill_image_size
from invsolve.contracts.operator import Operator
from invsolve.datasets import hdf5
from invsolve.engine import Options
from invsolve.engine.volume import for_images
from invsolve.files.opening import open_measurement
from invsolve.registry.parameters import parameters
from invsolve.testing import Case, checks
from invsolve.testing.operators import dense
from tests.support.types import linear_operator, offered

ROWS, COLUMNS = 9, 12
NOISE = invsolve.Gaussian(0.01)
#: What an operator cannot do without, beside the size.
NEEDED: dict[str, dict[str, Any]] = {
    "blur": {"sigma": 0.8},
    "compressive": {"fraction": 0.7, "transform": "dct"},
    "crop": {"box": [1, 2, 7, 9]},
    "ct": {"angles": 5},
    "downsample": {"factor": [3, 2]},
    "inpainting": {"fraction": 0.6},
    "measured-blur": {"picture": [[0.0, 1.0, 0.0, 0.0], [1.0, 4.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0]]},
    "mri": {"acceleration": 2},
    "mri-noncartesian": {"spokes": 19},
    "tiled-blur": {"kernels": [[[[0.1, 0.8, 0.1]], [[0.2, 0.4, 0.4]]]]},
}
#: Operators of volumes alone; tests/operators/test_mri.py and tests/files/test_dynamic_mri.py take these all the way.
VOLUMES = ("mri-3d", "mri-cine")
BUILT_IN = {
    name: cls
    for name, cls in registry.available("operator").items()
    if issubclass(cls, Operator) and cls.__module__.startswith("invsolve.")
}
OPERATORS: dict[str, Any] = {name: cls for name, cls in BUILT_IN.items() if name in NEEDED}
COLOUR = [name for name, cls in OPERATORS.items() if cls.channelwise]
GREY = [n for n, cls in OPERATORS.items() if n not in COLOUR and "channels" not in {p.name for p in parameters(cls)}]


def made(name: str, shape: tuple[int, ...] = (1, ROWS, COLUMNS)) -> Operator:
    """An operator as `simulate` makes it for images (C, rows, columns), of which its parameters say nothing."""
    return invsolve.operator(name, **fill_image_size(name, NEEDED[name], shape))


def images(channels: int = 1, items: int = 2) -> torch.Tensor:
    return torch.rand(items, channels, ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def _cases() -> list[Any]:
    shapes = [(name, (1, ROWS, COLUMNS)) for name in OPERATORS] + [(name, (3, ROWS, COLUMNS)) for name in COLOUR]
    return [
        pytest.param(case, id=f"{name}-{shape[0]}-{case.name}")
        for name, shape in shapes
        for case in checks(made(name, shape), image_shape=shape)
    ]


def test_every_operator_that_is_made_for_a_size_is_here() -> None:
    for name, cls in BUILT_IN.items():
        kind: Any = cls
        sized = cls.channelwise or "image_size" in {p.name for p in parameters(kind)}
        assert name in (*NEEDED, *VOLUMES) or not sized or not issubclass(cls, invsolve.LinearOperator), (
            f"{name}: add what it cannot do without to NEEDED"
        )


@pytest.mark.parametrize("case", _cases())
def test_operator_of_rectangular_images(case: Case) -> None:
    case()


@pytest.mark.parametrize("name", COLOUR)
def test_channels_are_measured_alike(name: str) -> None:
    colour, grey = made(name, (3, ROWS, COLUMNS)), made(name)
    y = colour(images(3))
    for channel in range(3):
        assert torch.allclose(y[:, channel : channel + 1], grey(images(3)[:, channel : channel + 1]), atol=1e-6)


@pytest.mark.parametrize("name", GREY)
def test_colour_is_refused_with_a_remedy_where_it_cannot_be_measured(name: str) -> None:
    with pytest.raises(invsolve.UserError, match=r"grey=true\), or each channel as an item"):
        invsolve.simulate(images(3), made(name), NOISE)


@pytest.mark.parametrize("name", OPERATORS)
def test_rectangular_files_go_all_the_way(name: str, tmp_path: Path) -> None:
    """Measured, written, read back and reconstructed: the operator in the file takes images of that shape."""
    channels = 3 if name in COLOUR else 1
    truth = images(channels)
    hdf5.write_images(tmp_path / "x.h5", truth)
    jobs.simulate_file(tmp_path / "x.h5", tmp_path / "y.h5", name, NEEDED[name], "gaussian:0.01", 0, False)
    scan = open_measurement(tmp_path / "y.h5")
    again = made(name, (channels, ROWS, COLUMNS))
    x = truth.to(torch.complex64) if again.complex_image else truth
    assert torch.equal(scan.operator(x), again(x))
    jobs.reconstruct_file(jobs.Request(tmp_path / "y.h5", tmp_path / "r.h5", None, "linear", {}, Options(scale=(0, 1))))
    mean = hdf5.read_result(tmp_path / "r.h5").mean[0:2]
    assert mean.shape[-2:] == (ROWS, COLUMNS)
    assert jobs.evaluate_file(tmp_path / "r.h5", None, None)["mean"]["psnr"] > 5


@pytest.mark.parametrize("name", OPERATORS)
def test_an_image_without_channels_is_no_stack_of_lines(name: str) -> None:
    for truth in (images()[0, 0], images()[:, 0]):
        with pytest.raises(invsolve.UserError) as caught:
            invsolve.simulate(truth, invsolve.operator(name, **NEEDED[name]) if name in COLOUR else made(name), NOISE)
        assert "\n" not in str(caught.value)


def ellipse(
    rows: int, columns: int, a: float, b: float, turn: float, at: tuple[float, float], fine: int = 8
) -> torch.Tensor:
    """The part of each pixel that an ellipse covers, x to the right and y up from the middle; (1, 1, rows, columns)."""
    y = (rows - 1) / 2 - (torch.arange(rows * fine, dtype=torch.float64) - (fine - 1) / 2) / fine - at[1]
    x = (torch.arange(columns * fine, dtype=torch.float64) - (fine - 1) / 2) / fine - (columns - 1) / 2 - at[0]
    c, s = math.cos(turn), math.sin(turn)
    inside = ((x * c + y[:, None] * s) / a) ** 2 + ((y[:, None] * c - x * s) / b) ** 2 < 1
    return inside.float().view(rows, fine, columns, fine).mean((1, 3))[None, None]


@pytest.mark.parametrize(("rows", "columns"), [(40, 64), (64, 41)])
def test_the_sinogram_of_an_ellipse_in_a_rectangle_is_the_closed_form(rows: int, columns: int) -> None:
    a, b, turn, at = 11.0, 7.0, 0.4, (4.0, -3.5)
    degrees = np.arange(0, 180, 7.5)
    operator = invsolve.operator("ct", image_size=[rows, columns], angles=degrees, detectors=80, centre=38.2)
    y = offered(operator(ellipse(rows, columns, a, b, turn, at)))[0].double().numpy()
    theta = np.deg2rad(degrees)[:, None]
    s = np.arange(80) - 38.2 - (at[0] * np.cos(theta) + at[1] * np.sin(theta))
    # Kak & Slaney, equation 3.6: the chord of an ellipse whose extent along the detector is r.
    r = a**2 * np.cos(theta - turn) ** 2 + b**2 * np.sin(theta - turn) ** 2
    exact = 2 * a * b * np.sqrt(np.clip(r - s**2, 0, None)) / r
    # A line meets the edge twice, where pixels are covered in part and a line's length through one is at most sqrt(2): away from
    # the ends of the profile, where chords change fastest, interpolation is off by a tenth of that at each.
    assert np.abs(y - exact)[s**2 < r - 8 * np.sqrt(r)].max() < 0.3
    assert np.linalg.norm(y - exact) < 0.04 * np.linalg.norm(exact)
    # Every projection has the ellipse's area.
    assert abs(y.sum(1) / (np.pi * a * b) - 1).max() < 0.005


def test_a_rectangle_is_a_square_whose_other_pixels_are_empty() -> None:
    degrees = [0.0, 17.0, 45.0, 90.0, 133.0, 135.0]
    x = torch.rand(2, 1, 10, 16, generator=torch.Generator().manual_seed(1))
    square = invsolve.operator("ct", image_size=16, angles=degrees, detectors=23, centre=10.4)
    rectangle = linear_operator("ct", image_size=[10, 16], angles=degrees, detectors=23, centre=10.4)
    assert torch.allclose(rectangle(x), square(torch.nn.functional.pad(x, (0, 0, 3, 3))), atol=1e-5)
    upright = linear_operator("ct", image_size=[16, 10], angles=degrees, detectors=23, centre=10.4)
    assert torch.allclose(upright(x.mT), square(torch.nn.functional.pad(x.mT, (3, 3))), atol=1e-5)
    forward, backward = dense(upright.double(), (1, 16, 10))
    assert torch.allclose(forward.T, backward)


def test_filtered_back_projection_keeps_the_grey_value_in_a_rectangle() -> None:
    operator = invsolve.operator("ct", image_size=[48, 80], angles=120)
    image = offered(operator).fbp(operator(0.7 * ellipse(48, 80, 30, 16, 0, (0, 0))), "ramp")[0, 0]
    assert float(image[18:30, 25:55].mean()) == pytest.approx(0.7, abs=0.01)
    assert abs(float(image[:4].mean())) < 0.02


def test_a_grey_prior_takes_colour_channel_by_channel() -> None:
    """White Gaussian pixels: where measured the posterior is known, elsewhere it is the prior, in every channel."""
    mean = torch.randn(1, 1, ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))
    prior = invsolve.load_prior("gaussian-mixture", means=mean, std=0.3)
    operator = made("inpainting", (3, ROWS, COLUMNS))
    truth = mean + 0.3 * torch.randn(2, 3, ROWS, COLUMNS, generator=torch.Generator().manual_seed(4))
    y = invsolve.simulate(truth, operator, invsolve.Gaussian(0.4))
    result = invsolve.reconstruct(y, operator, prior, noise=invsolve.Gaussian(0.4), strategy="moment", samples=16)
    gain = 0.09 / (0.09 + 0.16) * offered(operator).mask
    exact, std = mean + gain * (y - mean), (0.09 * (1 - gain)).sqrt()
    assert result.mean.shape == (2, 3, ROWS, COLUMNS)
    # 702 pixels, each a mean of 16 draws: their mean square is 1 / 16, give or take sqrt(2 / 702) of it.
    error = ((result.mean - exact) / std).square().mean()
    assert float(error) == pytest.approx(1 / 16, rel=5 * math.sqrt(2 / 702) + 0.05)
    assert float((result.std / std).square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / (15 * 702)) + 0.02)


def test_a_grey_prior_denoises_every_channel_as_a_grey_image() -> None:
    inner = invsolve.load_prior("gaussian-field", size=9)
    prior = for_images(inner, (3, 9, 9), 2, torch.device("cpu"))
    x, sigma = torch.randn(2, 3, 9, 9), torch.tensor([0.3, 0.6])
    wanted = torch.stack([inner.denoise(x[:, c : c + 1], sigma)[:, 0] for c in range(3)], 1)
    assert torch.allclose(prior.denoise(x, sigma), wanted, atol=1e-6)
    assert prior.event_shape == (3, 9, 9)
    assert for_images(inner, (1, 9, 9), 2, torch.device("cpu")) is inner


def test_masks_of_each_channel() -> None:
    mask = torch.rand(3, ROWS, COLUMNS, generator=torch.Generator().manual_seed(2)) < 0.5
    operator = linear_operator("inpainting", mask=mask)
    x = images(3)
    assert torch.equal(operator(x), torch.where(mask, x, 0.0))
    y = invsolve.simulate(x, operator, NOISE)
    result = invsolve.reconstruct(y, operator, noise=NOISE, strategy="linear", scale=(0, 1))
    assert torch.allclose(result.mean, y, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: invsolve.operator("ct", image_size=[3, 4, 5]), r"N or \[rows, columns\]"),
        (lambda: invsolve.operator("inpainting", fraction=0.5, image_size=[0, 4]), "above 0"),
        (
            lambda: invsolve.operator("inpainting", mask=torch.ones(8, 9), image_size=[9, 8]),
            "does not fit images of 9 x 8",
        ),
        (
            lambda: invsolve.operator("inpainting", mask=torch.ones(2, 8, 9), channels=3),
            "does not fit images of 3 channels",
        ),
        (
            lambda: invsolve.simulate(images(), invsolve.operator("mri", mask=torch.ones(12)), NOISE),
            r"image_size=\[9, 12\]",
        ),
        (
            lambda: invsolve.simulate(images(3), invsolve.operator("inpainting", fraction=0.5, image_size=9), NOISE),
            "image_size",
        ),
        (lambda: invsolve.simulate(images(3), made("inpainting"), NOISE), "channels=3"),
        (
            lambda: invsolve.simulate(images(), invsolve.operator("inpainting", mask=torch.ones(2, 9, 12)), NOISE),
            r"give mask\[:, None\], \(items, 1, rows, columns\)",
        ),
        (
            lambda: invsolve.reconstruct(
                images(), invsolve.operator("inpainting", mask=torch.ones(2, 9, 12)), noise=NOISE
            ),
            r"give mask\[:, None\], \(items, 1, rows, columns\)",
        ),
        (lambda: invsolve.operator("ct", image_size=8, angles=torch.zeros(2, 3)), "angles must be a count or a list"),
    ],
)
def test_what_does_not_fit_is_one_line(make: Callable[[], object], says: str) -> None:
    with pytest.raises(invsolve.UserError, match=says):
        make()


def test_the_posterior_of_a_rectangular_field_is_the_matrix_formula() -> None:
    """Prior and operator of one rectangle, against the dense posterior of their matrices."""
    prior: Any = invsolve.load_prior("gaussian-field", size=[ROWS, COLUMNS], std=0.5, length=1.5)
    frequencies = [np.fft.fftfreq(n) * 2 * np.pi * 1.5 for n in (ROWS, COLUMNS)]
    power = (1 + frequencies[0][:, None] ** 2 + frequencies[1] ** 2) ** -1.5
    power *= 0.25 / power.mean()
    # The covariance of two pixels of a stationary field is the Fourier transform of its spectrum at their distance.
    correlation = np.fft.ifft2(power).real
    i, j = (index.ravel() for index in np.indices((ROWS, COLUMNS)))
    covariance = torch.from_numpy(correlation[(i[:, None] - i) % ROWS, (j[:, None] - j) % COLUMNS])
    torch.testing.assert_close(prior.covariance(), covariance)
    operator = linear_operator("ct", image_size=[ROWS, COLUMNS], angles=4)
    matrix = dense(operator.double(), (1, ROWS, COLUMNS))[0]
    truth = (torch.linalg.cholesky(covariance) @ torch.randn(len(i), dtype=torch.float64)).view(1, 1, ROWS, COLUMNS)
    noise = invsolve.Gaussian(0.5)
    y = invsolve.simulate(truth, operator, noise)
    gain = covariance @ matrix.T @ torch.linalg.inv(matrix @ covariance @ matrix.T + 0.25 * torch.eye(len(matrix)))
    exact = (gain @ y.double().flatten()).view(ROWS, COLUMNS)
    std = (covariance - gain @ matrix @ covariance).diagonal().sqrt().view(ROWS, COLUMNS)
    result = invsolve.reconstruct(y, operator, prior, noise=noise, strategy="moment", samples=32, dtype="float64")
    # A mean of 32 draws is off by 1 / sqrt(32) of their width; pixels are correlated, so the bound is wide.
    assert float(((result.mean[0, 0] - exact) / std).square().mean()) < 3 / 32
    assert float((result.std[0, 0] / std).square().mean()) == pytest.approx(1, abs=0.3)
