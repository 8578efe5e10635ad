"""Operators with orthogonal rows: mosaics, grey pictures, regions, transforms; against plain loops, NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from torch import Tensor

import invsolve
from invsolve.testing.operators import dense
from tests.support.types import linear_operator, offered


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "grbg", "gbrg"])
def test_a_mosaic_holds_the_patterns_colour_in_each_pixel(pattern: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 4))
    wanted = [[x["rgb".index(pattern[2 * (i % 2) + j % 2]), i, j] for j in range(4)] for i in range(5)]
    y = invsolve.operator("demosaic", pattern=pattern)(torch.from_numpy(x)[None])
    np.testing.assert_array_equal(y[0, 0], wanted)


def test_grey_is_luma() -> None:
    x = np.random.default_rng(0).random((3, 4, 5))
    y = invsolve.operator("grey")(torch.from_numpy(x)[None])
    np.testing.assert_allclose(y[0, 0], 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2], rtol=1e-14)


def test_a_region_is_a_slice() -> None:
    x = torch.rand(2, 1, 6, 7)
    assert torch.equal(invsolve.operator("crop", box=[1, 2, 3, 4], image_size=[6, 7])(x), x[..., 1:4, 2:6])


def test_an_operator_of_a_region_measures_what_lies_in_it() -> None:
    inner = linear_operator("ct", image_size=5, angles=4)
    both = inner @ linear_operator("crop", box=[1, 1, 5, 5], image_size=8)
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(both(x), inner(x[..., 1:6, 1:6]))
    torch.testing.assert_close(both.adjoint(both(x))[..., 1:6, 1:6], inner.normal(x[..., 1:6, 1:6]))


@pytest.mark.parametrize("order", ["low", "random"])
def test_cosine_coefficients_are_scipys(order: str) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 5))
    operator = invsolve.operator(
        "compressive", image_size=[6, 5], fraction=0.3, transform="dct", order=order, channels=3
    )
    wanted = scipy.fft.dctn(x, axes=(-2, -1), norm="ortho").reshape(2, 3, 30)
    chosen = offered(operator).chosen
    assert len(set(chosen.tolist())) == 9
    assert chosen[0] == 0
    np.testing.assert_allclose(operator(torch.from_numpy(x)), wanted[..., chosen], atol=1e-13)


def test_hadamard_coefficients_are_those_of_scipys_matrix() -> None:
    x = np.random.default_rng(0).normal(size=(8, 4))
    operator = invsolve.operator("compressive", image_size=[8, 4], fraction=1.0)
    y = operator(torch.from_numpy(x)[None, None])[0, 0]
    natural = scipy.linalg.hadamard(8) @ x @ scipy.linalg.hadamard(4) / np.sqrt(32)
    np.testing.assert_allclose(np.sort(y), np.sort(natural.ravel()), atol=1e-13)
    # In the order of sign changes, a row with as many as a square wave has one coefficient.
    waves = np.where(np.arange(8) % 2, -1.0, 1.0)[:, None] * np.ones(4)
    spectrum = offered(operator).coefficients(torch.from_numpy(waves)[None, None])[0, 0]
    assert spectrum.abs().gt(1e-12).nonzero().tolist() == [[7, 0]]


def test_gaussian_rows_are_independent_of_variance_one_over_their_number() -> None:
    matrix = offered(invsolve.operator("compressive", image_size=32, fraction=0.1, transform="gaussian")).matrix
    assert matrix.shape == (102, 1024)
    # 10^5 numbers: mean and variance within five standard errors.
    assert abs(float(matrix.mean())) * 102**0.5 < 5 / matrix.numel() ** 0.5
    assert abs(float(matrix.var()) * 102 - 1) < 5 * (2 / matrix.numel()) ** 0.5


@pytest.mark.parametrize(
    ("name", "given", "shape"),
    [
        ("demosaic", {}, (3, 4, 5)),
        ("grey", {"weights": [0.5, -2.0]}, (2, 3, 4)),
        ("crop", {"box": [1, 0, 2, 3], "image_size": 4}, (1, 4, 4)),
        ("compressive", {"image_size": 4, "fraction": 0.5}, (1, 4, 4)),
        ("compressive", {"image_size": [3, 5], "fraction": 0.5, "transform": "dct"}, (1, 3, 5)),
        ("compressive", {"image_size": 4, "fraction": 0.5, "transform": "gaussian"}, (1, 4, 4)),
    ],
)
def test_closed_forms_are_those_of_the_dense_matrix(
    name: str, given: dict[str, object], shape: tuple[int, ...]
) -> None:
    operator = linear_operator(name, **given).double()
    matrix = dense(operator, shape)[0]
    z = torch.randn(2, *shape, dtype=torch.float64)
    y = torch.randn_like(operator(z))
    rho = torch.tensor([0.1, 3.0], dtype=torch.float64)

    def solved(k: int) -> Tensor:
        left = matrix.T @ matrix + rho[k] * torch.eye(len(matrix.T), dtype=torch.float64)
        return torch.linalg.solve(left, matrix.T @ y[k].flatten() + rho[k] * z[k].flatten())

    got = operator.prox(z, y, rho.view(2, 1, 1, 1), invsolve.CG(1e-12)).flatten(1)
    torch.testing.assert_close(got, torch.stack([solved(0), solved(1)]), atol=1e-9, rtol=0)
    pseudo = operator.pinv(y, invsolve.CG(1e-12, 200)).flatten(1)
    torch.testing.assert_close(pseudo, y.flatten(1) @ torch.linalg.pinv(matrix).T, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("demosaic", {"pattern": "rgbg"}, "pattern='rgbg'"),
        ("grey", {"weights": [0.0, 0.0]}, "not all zero"),
        ("grey", {"weights": []}, "not all zero"),
        ("crop", {"box": [1, 1, 4, 4], "image_size": 4}, "inside 4 x 4"),
        ("crop", {"box": [0, 0, 4], "image_size": 4}, r"\[top, left, height, width\]"),
        ("compressive", {"image_size": 6}, "powers of two.*transform='dct'"),
        ("compressive", {"image_size": 8, "fraction": 0.0}, r"in \(0, 1\]"),
        ("compressive", {"image_size": [8, 8, 8]}, r"N or \[rows, columns\]"),
        ("compressive", {"image_size": 512, "transform": "gaussian"}, "exceed"),
    ],
)
def test_wrong_parameters_are_one_line(name: str, given: dict[str, object], line: str) -> None:
    with pytest.raises(invsolve.UserError, match=line) as error:
        invsolve.operator(name, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "line"), [("demosaic", r"\(items, 3, "), ("grey", "one for each channel")])
def test_another_number_of_channels_is_refused(name: str, line: str) -> None:
    with pytest.raises(invsolve.UserError, match=line):
        invsolve.operator(name)(torch.zeros(1, 1, 4, 4))
