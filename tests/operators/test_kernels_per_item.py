"""Kernels, pictures of points and coded masks of each item, from Python and from files, against dense matrices by NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

import invsolve
from invsolve.contracts.operator import LinearOperator
from invsolve.datasets import hdf5
from invsolve.files.opening import open_measurement
from tests.support.types import Cli, linear_operator, offered

ITEMS, ROWS, COLUMNS = 3, 7, 9
SIGMA = 0.05


def circulant(kernel: np.ndarray) -> np.ndarray:
    """The matrix of the periodic convolution with a kernel (rows, columns), written out pixel by pixel."""
    matrix = np.zeros((ROWS, COLUMNS, ROWS, COLUMNS))
    for (i, j), (a, b) in ((p, q) for p in np.ndindex(ROWS, COLUMNS) for q in np.ndindex(*kernel.shape)):
        source = (i - (a - kernel.shape[0] // 2)) % ROWS, (j - (b - kernel.shape[1] // 2)) % COLUMNS
        matrix[i, j, source[0], source[1]] += kernel[a, b]
    return matrix.reshape(ROWS * COLUMNS, -1)


def tiled(kernels: np.ndarray) -> np.ndarray:
    """The matrix of kernels (tile rows, tile columns, rows, columns), cos^2 weights between the middles of tiles."""

    def weights(size: int, tiles: int) -> np.ndarray:
        place = np.interp(np.arange(size), (np.arange(tiles) + 0.5) * size / tiles - 0.5, np.arange(tiles))
        return np.array([np.cos(np.pi / 2 * np.minimum(abs(place - t), 1)) ** 2 for t in range(tiles)])

    down, across = (weights(n, t) for n, t in zip((ROWS, COLUMNS), kernels.shape[:2], strict=True))
    blend = np.einsum("ai,bj->abij", down, across).reshape(*kernels.shape[:2], -1)
    return sum(circulant(kernels[a, b]) * blend[a, b] for a, b in np.ndindex(*kernels.shape[:2]))


def seen(picture: np.ndarray) -> np.ndarray:
    """The matrix of a picture of a point, whose background is the median along its edge."""
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    light = np.clip(picture - np.sort(edge)[(len(edge) - 1) // 2], 0, None)
    return circulant(light / light.sum())


RNG = np.random.default_rng(7)
#: Operator, its parameter, a value for each item, and the matrix of one.
CASES: dict[str, tuple[str, np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
    "blur": ("kernel", RNG.random((ITEMS, 3, 4)) / 6, circulant),
    "measured-blur": ("picture", RNG.random((ITEMS, 5, 5)) + 4 * np.eye(5)[2][:, None] * np.eye(5)[2], seen),
    "tiled-blur": ("kernels", RNG.random((ITEMS, 2, 3, 3, 2)) / 3, tiled),
}


def whole(name: str) -> tuple[LinearOperator, np.ndarray]:
    """The operator with a value for each item, and the items' matrices."""
    parameter, values, matrix = CASES[name]
    return linear_operator(name, **{parameter: values}), np.stack([matrix(value) for value in values])


def images() -> torch.Tensor:
    return torch.randn(ITEMS, 1, ROWS, COLUMNS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CASES)
def test_each_item_is_measured_by_its_own_matrix(name: str) -> None:
    operator, matrices = whole(name)
    assert operator.items == ITEMS
    x = images()
    flat = x.flatten(1).numpy()
    y = operator(x)
    # Kernels are kept in single precision.
    np.testing.assert_allclose(y.flatten(1), np.einsum("nij,nj->ni", matrices, flat), atol=1e-6)
    np.testing.assert_allclose(operator.adjoint(x).flatten(1), np.einsum("nij,ni->nj", matrices, flat), atol=1e-6)
    solution = operator.prox(torch.zeros_like(x), x, 0.3).flatten(1)
    for k, matrix in enumerate(matrices):
        exact = np.linalg.solve(matrix.T @ matrix + 0.3 * np.eye(len(matrix.T)), matrix.T @ flat[k])
        # Where there is no closed form, the solver stops at a residual of 1e-5.
        np.testing.assert_allclose(solution[k], exact, atol=3e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_posterior_of_each_item_is_that_of_its_own_matrix(name: str) -> None:
    """White Gaussian pixels of standard deviation 0.3, from whose posterior `moment` draws."""
    operator, matrices = whole(name)
    prior = invsolve.load_prior("gaussian-mixture", means=torch.zeros(1, 1, ROWS, COLUMNS), std=0.3)
    truth, noise = 0.3 * images(), invsolve.Gaussian(SIGMA)
    y = invsolve.simulate(truth, operator, noise)
    result = invsolve.reconstruct(
        y, operator, prior, noise=noise, strategy="moment", samples=16, dtype="float64", scale=(-1, 1)
    )
    for k, matrix in enumerate(matrices):
        covariance = np.linalg.inv(matrix.T @ matrix / SIGMA**2 + np.eye(len(matrix)) / 0.3**2)
        exact = covariance @ matrix.T @ y[k].flatten().double().numpy() / SIGMA**2
        error = (result.mean[k].flatten().double().numpy() - exact) / np.sqrt(np.diag(covariance))
        # The mean of 16 draws: a mean square of 1 / 16, give or take sqrt(2 / pixels) of it, more as pixels are correlated;
        # with the matrix of another item it is far more.
        assert np.mean(error**2) < (1 + 5 * math.sqrt(2 / 63) + 0.3) / 16
        others = [m for j, m in enumerate(matrices) if j != k]
        for other in others:
            wrong = np.linalg.solve(other.T @ other / SIGMA**2 + np.eye(63) / 0.3**2, other.T / SIGMA**2)
            shift = (wrong @ y[k].flatten().double().numpy() - exact) / np.sqrt(np.diag(covariance))
            assert np.mean(shift**2) > 0.5


@pytest.mark.parametrize(
    ("name", "ending"), [*((name, "npy") for name in CASES), ("blur", "tif"), ("measured-blur", "tif")]
)
def test_kernels_of_each_item_come_from_a_file_and_stay_with_the_scan(
    name: str, ending: str, tmp_path: Path, cli: Cli
) -> None:
    parameter, values, matrix = CASES[name]
    file = tmp_path / f"kernels.{ending}"
    if ending == "npy":
        np.save(file, values)
    else:
        tifffile.imwrite(file, values, photometric="minisblack")
    x = images().float()
    hdf5.write_images(tmp_path / "x.h5", x)
    scan, out = tmp_path / "scan.h5", tmp_path / "r.h5"
    code, _, err = cli(
        *("simulate", tmp_path / "x.h5", "-o", scan, "--operator", name, "--set", f"{parameter}={file}"),
        *("--noise", f"gaussian:{SIGMA}"),
    )
    assert code == 0, err
    file.unlink()
    code, _, err = cli("reconstruct", scan, "-o", out, "--strategy", "linear", "--scale=-1:1")
    assert code == 0, err
    y = open_measurement(scan).y[0:ITEMS]
    mean = hdf5.read_result(out).mean[0:ITEMS]
    for k, value in enumerate(values):
        m, data = matrix(value), y[k].flatten().double().numpy()
        assert np.sqrt(np.mean((data - m @ x[k].flatten().double().numpy()) ** 2)) == pytest.approx(SIGMA, rel=0.4)
        # Tikhonov's, for a signal of standard deviation 0.5.
        wanted = np.linalg.solve(m.T @ m + SIGMA**2 / 0.5**2 * np.eye(len(m)), m.T @ data)
        np.testing.assert_allclose(mean[k].flatten().double(), wanted, atol=2e-3)


def test_kernels_in_depth_and_coded_masks_of_each_item() -> None:
    kernels = torch.rand(2, 2, 3, 2)
    volumes = torch.randn(2, 1, 4, 5, 6)
    deep = invsolve.operator("blur-3d", kernel=kernels, boundary="zero")
    masks, x = torch.rand(2, 3, 5, 6), torch.rand(2, 1, 5, 6)
    coded = invsolve.operator("phase-retrieval", masks=masks, oversampling=1)
    bent = invsolve.operator("nonlinear-blur", kernel=kernels[:, 0] / 8)
    for k in range(2):
        one = invsolve.operator("blur-3d", kernel=kernels[k], boundary="zero")
        torch.testing.assert_close(deep(volumes)[k : k + 1], one(volumes[k : k + 1]))
        wave = np.fft.fftshift(np.fft.fft2(masks[k].numpy() * x[k].numpy(), norm="ortho"), (-2, -1))
        np.testing.assert_allclose(coded(x)[k], abs(wave), atol=1e-5)
        single = invsolve.operator("nonlinear-blur", kernel=kernels[k, 0] / 8)
        torch.testing.assert_close(bent(x)[k : k + 1], single(x[k : k + 1]))
    assert (deep.items, coded.items, bent.items) == (2, 2, 2)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("measured-blur", {"picture": np.zeros((41, 41, 3))}, "give one channel of it"),
        ("measured-blur", {"picture": np.stack([np.eye(5), np.ones((5, 5))])}, r"nothing in picture .*\(item 1 of 2\)"),
        (
            "tiled-blur",
            {"kernels": np.full((2, 1, 1, 3, 3), np.nan)},
            r"kernels must be real and finite.*\(item 0 of 2\)",
        ),
        ("tiled-blur", {"kernels": np.ones((2, 3, 3))}, r"\(tile rows, tile columns, rows, columns\)"),
    ],
)
def test_what_is_wrong_with_the_kernels_of_an_item_is_one_line(name: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(invsolve.UserError, match=says) as caught:
        invsolve.operator(name, **given)
    assert "\n" not in str(caught.value)


def test_another_number_of_items_is_one_line() -> None:
    operator, _ = whole("tiled-blur")
    with pytest.raises(invsolve.UserError, match="has 2 items, but operator 'tiled-blur' has parameters for 3"):
        invsolve.simulate(images()[:2], operator, invsolve.Gaussian(0.1))
    assert offered(operator).for_item(2).kernels.shape == (2, 3, 3, 2)
