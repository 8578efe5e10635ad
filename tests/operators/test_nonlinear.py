"""Detectors that clip, quantise or compress, and a camera's blur: against formulas, SciPy and Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from PIL import Image
from torch import nn

import invsolve
from tests.support.types import offered


def test_clipped_values_are_numpys_and_saturated_ones_have_no_gradient() -> None:
    x = torch.linspace(-1, 2, 24, dtype=torch.float64).view(1, 1, 4, 6).requires_grad_()
    y = invsolve.operator("clip", low=0.1, high=1.2, gain=1.5)(x)
    np.testing.assert_allclose(y.detach(), np.clip(1.5 * x.detach().numpy(), 0.1, 1.2), rtol=1e-15)
    y.sum().backward()
    assert x.grad is not None
    inside = (1.5 * x > 0.1) & (1.5 * x < 1.2)
    assert torch.equal(x.grad, 1.5 * inside)


def test_quantised_values_are_the_nearest_levels_and_the_gradient_goes_through() -> None:
    levels = np.linspace(-1, 3, 9)
    x = torch.linspace(-1.4, 3.4, 64, dtype=torch.float64).view(1, 1, 8, 8).requires_grad_()
    y = invsolve.operator("quantize", levels=9, low=-1.0, high=3.0)(x)
    nearest = levels[np.abs(x.detach().numpy()[..., None] - levels).argmin(-1)]
    np.testing.assert_allclose(y.detach(), nearest, atol=1e-14)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, ((x > -1) & (x < 3)).double())


@pytest.fixture
def picture() -> np.ndarray:
    """Grey values with an edge and a slope, 17 x 22, no whole number of blocks."""
    x = 80 + 3.0 * np.arange(22) + 2.0 * np.arange(17)[:, None] + np.random.default_rng(0).normal(0, 6, (17, 22))
    x[4:11, 9:15] += 50
    return np.round(x.clip(0, 255))


def coefficients(grey: np.ndarray) -> np.ndarray:
    """Cosine coefficients of the blocks of a picture that is filled up with its edge, less 128."""
    filled = np.pad(grey, [(0, -n % 8) for n in grey.shape], mode="edge") - 128
    blocks = filled.reshape(filled.shape[0] // 8, 8, -1, 8).swapaxes(1, 2)
    return scipy.fft.dctn(blocks, axes=(-2, -1), norm="ortho")


@pytest.mark.parametrize("quality", [5, 30, 50, 90])
def test_jpeg_quantises_as_pillow_does(quality: int, picture: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(file, "jpeg", quality=quality)
    theirs = Image.open(file)
    operator = invsolve.operator("jpeg", quality=quality, peak=255.0)
    table = operator.table.numpy()
    assert offered(theirs).quantization[0] == table.flatten().tolist()
    # Whole blocks of both, as the last ones were cut after they had been decoded.
    ours = coefficients(operator(torch.from_numpy(picture)[None, None])[0, 0].numpy()[:16, :16]) / table
    decoded = coefficients(np.asarray(theirs, dtype=float)[:16, :16]) / table
    # Pillow transforms and decodes in whole numbers: coefficients are off by about 0.3, so those within 1 of the middle between
    # two steps may fall to either, and steps of 4 and more are told apart.
    exact = coefficients(picture[:16, :16]) / table
    clear = (np.abs(np.abs(exact - np.round(exact)) - 0.5) * table > 1) & (table >= 4)
    assert clear.mean() > 0.5
    np.testing.assert_allclose(ours, np.round(exact), atol=1e-9)
    np.testing.assert_array_equal(np.round(decoded)[clear], np.round(exact)[clear])


def test_jpeg_quantises_scipys_cosine_coefficients(picture: np.ndarray) -> None:
    operator = invsolve.operator("jpeg", quality=20, peak=2.0)
    x = torch.from_numpy(picture[:16, :8] / 255 * 2)[None, None]
    y = operator(x)[0, 0].numpy() * 255 / 2 - 128
    table = operator.table.numpy()
    for block, kept in ((picture[:8, :8], y[:8]), (picture[8:16, :8], y[8:])):
        wanted = np.round(scipy.fft.dctn(block - 128, norm="ortho") / table) * table
        np.testing.assert_allclose(scipy.fft.dctn(kept, norm="ortho"), wanted, atol=1e-9)


def test_what_was_compressed_once_stays_as_it_is(picture: np.ndarray) -> None:
    operator = invsolve.operator("jpeg", quality=30, peak=255.0)
    once = operator(torch.from_numpy(picture[:16, :16])[None, None])
    torch.testing.assert_close(operator(once), once)


def test_a_cameras_blur_is_that_of_light() -> None:
    kernel = np.array([[0.1, 0.2, 0.1], [0.2, 0.3, 0.1]])
    x = np.random.default_rng(0).random((8, 9))
    light = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    blurred = scipy.ndimage.convolve(light, kernel, mode="wrap")
    wanted = np.where(blurred <= 0.0031308, 12.92 * blurred, 1.055 * blurred ** (1 / 2.4) - 0.055)
    y = invsolve.operator("nonlinear-blur", kernel=kernel)(torch.from_numpy(x)[None, None])
    # The kernel is kept in single precision.
    np.testing.assert_allclose(y[0, 0], wanted, atol=1e-6)


def test_a_networks_blur_is_the_network() -> None:
    network = nn.Conv2d(1, 2, 3)
    x = torch.rand(2, 1, 6, 7)
    assert torch.equal(invsolve.operator("nonlinear-blur", network=network)(x), network(x))


def test_images_far_from_display_values_have_finite_gradients() -> None:
    x = torch.linspace(-5, 5, 36).view(1, 1, 6, 6).requires_grad_()
    invsolve.operator("nonlinear-blur", sigma=0.7)(x).sum().backward()
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("clip", {"low": 1.0}, "low must be below high"),
        ("quantize", {"levels": 1}, "at least 2"),
        ("quantize", {"low": 2.0}, "low must be below high"),
        ("jpeg", {"quality": 0}, "from 1 to 100"),
        ("jpeg", {"peak": 0.0}, "above 0"),
        ("nonlinear-blur", {}, "exactly one of"),
        ("nonlinear-blur", {"network": "net.pt"}, "network='net.pt'"),
    ],
)
def test_wrong_parameters_are_one_line(name: str, given: dict[str, object], line: str) -> None:
    with pytest.raises(invsolve.UserError, match=line) as error:
        invsolve.operator(name, **given)
    assert "\n" not in str(error.value)
