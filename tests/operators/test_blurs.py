"""Blurs that vary over the image, in depth, or were measured: against SciPy, and their kernels from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import tifffile
import torch
from PIL import Image

import invsolve
from invsolve.testing.operators import dense
from tests.support.types import linear_operator, offered

MODES = {"circular": "wrap", "zero": "constant"}


def weights(size: int, tiles: int) -> np.ndarray:
    """Tiles' weights along an axis: cos^2 of the part of the way between two middles."""
    middles = (np.arange(tiles) + 0.5) * size / tiles - 0.5
    place = np.interp(np.arange(size), middles, np.arange(tiles))
    return np.array([np.cos(np.pi / 2 * np.minimum(abs(place - t), 1)) ** 2 for t in range(tiles)])


@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("shape", [(3, 3), (2, 5)])
def test_a_tiled_blur_is_the_sum_of_scipys_convolutions_of_the_tiles(boundary: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    kernels, x = rng.random((2, 3, *shape)), rng.normal(size=(9, 14))
    wanted = np.zeros_like(x)
    for a, down in enumerate(weights(9, 2)):
        for b, across in enumerate(weights(14, 3)):
            wanted += scipy.ndimage.convolve(down[:, None] * across * x, kernels[a, b], mode=MODES[boundary])
    operator = invsolve.operator("tiled-blur", kernels=kernels, boundary=boundary).double()
    operator.kernels = torch.from_numpy(kernels)
    np.testing.assert_allclose(operator(torch.from_numpy(x)[None, None])[0, 0], wanted, atol=1e-12)


def test_tiles_of_one_kernel_are_one_blur() -> None:
    kernel, x = torch.rand(3, 4), torch.rand(2, 3, 10, 11)
    for boundary in MODES:
        tiled = invsolve.operator("tiled-blur", kernels=kernel.expand(4, 2, 3, 4), boundary=boundary)
        torch.testing.assert_close(tiled(x), invsolve.operator("blur", kernel=kernel, boundary=boundary)(x))


@pytest.mark.parametrize("boundary", MODES)
def test_a_blurred_volume_is_scipys(boundary: str) -> None:
    rng = np.random.default_rng(0)
    kernel, x = rng.random((2, 3, 4)), rng.normal(size=(5, 6, 7))
    operator = invsolve.operator("blur-3d", kernel=kernel, boundary=boundary).double()
    operator.kernel = torch.from_numpy(kernel)
    wanted = scipy.ndimage.convolve(x, kernel, mode=MODES[boundary])
    np.testing.assert_allclose(operator(torch.from_numpy(x)[None, None])[0, 0], wanted, atol=1e-12)


def test_a_gaussian_in_depth_is_scipys() -> None:
    x = np.random.default_rng(0).normal(size=(9, 8, 7))
    operator = invsolve.operator("blur-3d", sigma=[1.0, 0.6, 0.0])
    wanted = scipy.ndimage.gaussian_filter(x, (1.0, 0.6, 0.0), mode="wrap", radius=(4, 3, 0))
    # The kernel is kept in single precision.
    np.testing.assert_allclose(operator(torch.from_numpy(x)[None, None])[0, 0], wanted, atol=1e-6)


def test_the_data_step_of_a_volume_is_that_of_the_dense_matrix() -> None:
    operator, shape = linear_operator("blur-3d", sigma=[0.5, 0.7, 0.9]), (1, 3, 4, 2)
    matrix = dense(operator, shape)[0]
    z, y = torch.randn(2, 1, *shape, dtype=torch.float64)
    left = matrix.T @ matrix + 0.2 * torch.eye(24, dtype=torch.float64)
    wanted = torch.linalg.solve(left, matrix.T @ y.flatten() + 0.2 * z.flatten())
    torch.testing.assert_close(operator.prox(z, y, 0.2).flatten(), wanted, atol=1e-10, rtol=0)


@pytest.fixture
def star() -> np.ndarray:
    """A bright point on a grey ground, beside the middle."""
    picture = np.full((7, 9), 20, np.uint8)
    picture[1:4, 5:8] = [[40, 60, 40], [60, 200, 60], [40, 60, 40]]
    return picture


@pytest.mark.parametrize("ending", ["npy", "tif", "png"])
@pytest.mark.parametrize("centre", ["peak", "mass"])
def test_a_measured_kernel_is_read_from_its_file_and_made_ready(
    ending: str, centre: str, star: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / f"star.{ending}"
    if ending == "npy":
        np.save(file, star)
    elif ending == "tif":
        tifffile.imwrite(file, star)
    else:
        Image.fromarray(star).save(file)
    kernel = offered(invsolve.operator("measured-blur", picture=str(file), centre=centre)).kernel
    point = np.array([[20, 40, 20], [40, 180, 40], [20, 40, 20]]) / 420
    rows, columns = (n // 2 for n in kernel.shape)
    np.testing.assert_allclose(kernel[rows - 1 : rows + 2, columns - 1 : columns + 2], point, atol=1e-7)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)


def test_a_scan_carries_the_measured_picture_itself(star: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "star.npy", star)
    operator = invsolve.operator("measured-blur", picture=str(tmp_path / "star.npy"), background=20.0, centre="peak")
    assert operator.parameters_given is not None
    np.testing.assert_array_equal(operator.parameters_given["picture"], star)


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("measured-blur", {"picture": np.zeros((2, 3, 3))}, "give one channel"),
        ("measured-blur", {"picture": np.ones((3, 3))}, "brighter than the background, 1;"),
        ("measured-blur", {"picture": [[np.nan, 1.0]]}, "NaN"),
        ("measured-blur", {"picture": "star.fits"}, ".npy, .tif or .png"),
        ("measured-blur", {"picture": "absent.png"}, "no such file"),
        ("tiled-blur", {"kernels": np.ones((3, 3))}, r"\(tile rows, tile columns, rows, columns\)"),
        ("blur-3d", {}, "exactly one of"),
        ("blur-3d", {"sigma": [1.0, 1.0]}, r"\[depth, rows, columns\]"),
        ("blur-3d", {"kernel": np.ones((3, 3))}, r"\(depth, rows, columns\)"),
    ],
)
def test_wrong_parameters_are_one_line(name: str, given: dict[str, object], line: str) -> None:
    with pytest.raises(invsolve.UserError, match=line) as error:
        invsolve.operator(name, **given)
    assert "\n" not in str(error.value)


def test_a_broken_picture_is_one_line(tmp_path: Path) -> None:
    for ending in ("npy", "tif", "png"):
        (tmp_path / f"star.{ending}").write_bytes(b"no picture at all")
        with pytest.raises(invsolve.UserError, match="cannot be read") as error:
            invsolve.operator("measured-blur", picture=str(tmp_path / f"star.{ending}"))
        assert "\n" not in str(error.value)


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(invsolve.UserError, match="take boundary='zero'"):
        invsolve.operator("tiled-blur", kernels=np.ones((1, 1, 5, 5)))(torch.zeros(1, 1, 4, 8))
    with pytest.raises(invsolve.UserError, match="takes volumes"):
        invsolve.operator("blur-3d", sigma=[1.0, 1.0, 1.0])(torch.zeros(1, 1, 4, 8))


@pytest.mark.parametrize("boundary", ["zero", "reflect"])
@pytest.mark.parametrize("size", [(2, 3), (5, 6), (8, 7), (13, 2), (9, 12)])
def test_blur_beyond_the_edges_is_that_of_scipy_and_its_adjoint_exact(boundary: str, size: tuple[int, int]) -> None:
    """Narrow kernels in space, wide ones by the Fourier transform."""
    draw = np.random.default_rng(4)
    kernel, image = draw.random(size), draw.random((15, 17))
    mode = "constant" if boundary == "zero" else "mirror"
    matrix: Any = np.stack(
        [scipy.ndimage.convolve(e.reshape(15, 17), kernel.astype(np.float32), mode=mode) for e in np.eye(255)], -1
    )
    blur = invsolve.operator("blur", kernel=torch.from_numpy(kernel), boundary=boundary)
    x = torch.from_numpy(image)[None, None]
    np.testing.assert_allclose(blur(x).numpy().ravel(), matrix.reshape(255, 255) @ image.ravel(), rtol=1e-12)
    np.testing.assert_allclose(blur.adjoint(x).numpy().ravel(), matrix.reshape(255, 255).T @ image.ravel(), rtol=1e-12)
