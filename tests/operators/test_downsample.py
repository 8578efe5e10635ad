"""Downsampling against Pillow, SciPy and means of blocks; its closed forms against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

import invsolve
from invsolve.testing.operators import dense
from tests.support.types import linear_operator

MODES = {"circular": "wrap", "reflect": "mirror", "zero": "constant"}


@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize(("factor", "shape"), [((2, 2), (3, 3)), ((3, 2), (5, 2)), ((2, 4), (4, 7)), ((4, 1), (2, 1))])
def test_it_is_scipys_convolution_decimated(boundary: str, factor: tuple[int, int], shape: tuple[int, int]) -> None:
    kernel = np.random.default_rng(0).random(shape)
    x = np.random.default_rng(1).normal(size=(12, 16))
    blurred = scipy.ndimage.convolve(x, kernel, mode=MODES[boundary])
    wanted = blurred[(factor[0] - 1) // 2 :: factor[0], (factor[1] - 1) // 2 :: factor[1]]
    operator = invsolve.operator("downsample", factor=list(factor), kernel=kernel, boundary=boundary).double()
    operator.kernel = torch.from_numpy(kernel)
    np.testing.assert_allclose(operator(torch.from_numpy(x)[None, None])[0, 0], wanted, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_pillows_away_from_the_edges(factor: int) -> None:
    x = np.random.default_rng(0).normal(size=(16 * factor, 13 * factor)).astype("f4")
    small = Image.fromarray(x).resize((13, 16), Image.Resampling.BICUBIC)
    got = invsolve.operator("downsample", factor=factor, kernel="bicubic")(torch.from_numpy(x)[None, None])
    # Single precision on both sides; outside the image Pillow renormalises, and here it repeats.
    np.testing.assert_allclose(got[0, 0, 2:-2, 2:-2], np.asarray(small)[2:-2, 2:-2], atol=2e-6)


@pytest.mark.parametrize("boundary", MODES)
def test_area_is_the_mean_of_blocks_whatever_lies_outside(boundary: str) -> None:
    x = torch.rand(2, 3, 6, 8)
    y = invsolve.operator("downsample", factor=[3, 2], boundary=boundary)(x)
    torch.testing.assert_close(y, x.view(2, 3, 2, 3, 4, 2).mean((3, 5)))


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"factor": [2, 3], "kernel": "bicubic"}, (1, 6, 9)),
        # Wider than the image, and with frequencies that it does not pass: the sum of two neighbours, over even rows.
        ({"factor": 2, "kernel": np.ones((2, 11)) / 9}, (1, 8, 6)),
        ({"factor": [1, 2], "kernel": np.array([[0.5], [0.5]])}, (1, 6, 4)),
    ],
)
def test_closed_forms_are_those_of_the_dense_matrix(given: dict[str, object], shape: tuple[int, ...]) -> None:
    operator = linear_operator("downsample", **given).double()
    matrix, transpose = dense(operator_of(operator, shape), shape)
    torch.testing.assert_close(transpose, matrix.T, atol=1e-13, rtol=0)
    x = torch.randn(3, *shape, dtype=torch.float64)
    y = operator(x) + torch.randn_like(operator(x))
    rho = torch.tensor([0.03, 0.2, 4.0], dtype=torch.float64)
    for k in range(3):
        left = matrix.T @ matrix + rho[k] * torch.eye(matrix.shape[1], dtype=torch.float64)
        wanted = torch.linalg.solve(left, matrix.T @ y[k].flatten() + rho[k] * x[k].flatten())
        got = operator.prox(x, y, rho.view(-1, 1, 1, 1))[k].flatten()
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
    pseudo = torch.linalg.pinv(matrix, rtol=1e-6)
    torch.testing.assert_close(operator.pinv(y).flatten(1), y.flatten(1) @ pseudo.T, atol=1e-9, rtol=0)
    system = operator.svd(shape, y)
    assert system is not None
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(system.values.flatten().sort(descending=True).values, values, atol=1e-6, rtol=0)
    assert operator.norm(y) == pytest.approx(float(values[0]), rel=1e-12)


def operator_of(operator: invsolve.LinearOperator, shape: tuple[int, ...]) -> invsolve.LinearOperator:
    """The same, of one size."""
    other = operator.twin()
    other.__dict__["image_shape"] = shape
    return other


def test_a_replaced_kernel_is_followed_by_the_closed_forms() -> None:
    operator = linear_operator("downsample", factor=2)
    y = torch.rand(1, 1, 4, 4)
    operator.prox(torch.zeros(1, 1, 8, 8), y, 0.1)
    operator.kernel = 2 * operator.kernel
    fresh = linear_operator("downsample", factor=2, kernel=np.full((2, 2), 0.5))
    torch.testing.assert_close(
        operator.prox(torch.zeros(1, 1, 8, 8), y, 0.1), fresh.prox(torch.zeros(1, 1, 8, 8), y, 0.1)
    )


@pytest.mark.parametrize("boundary", MODES)
def test_real_and_imaginary_parts_are_measured_and_solved_alike(boundary: str) -> None:
    operator = linear_operator("downsample", factor=2, kernel="bicubic", boundary=boundary)
    x, z = torch.randn(2, 1, 1, 10, 12, dtype=torch.complex128)
    y = operator(x)
    assert torch.equal(y.real, operator(x.real))
    parts = [operator.prox(a, b, 0.1) for a, b in ((z.real, y.real), (z.imag, y.imag))]
    # Without a closed form the parts end their iterations apart, each within its tolerance.
    close = 1e-10 if boundary == "circular" else 1e-4
    torch.testing.assert_close(operator.prox(z, y, 0.1), torch.complex(*parts), atol=close, rtol=0)
    parts = [operator.pinv(y.real), operator.pinv(y.imag)]
    torch.testing.assert_close(operator.pinv(y), torch.complex(*parts), atol=close, rtol=0)
    assert operator.norm(y) == pytest.approx(operator.norm(y.real))


def test_the_image_size_is_told_by_the_measurement() -> None:
    assert invsolve.operator("downsample", factor=[2, 3]).image_shape_for((3, 5, 7)) == (3, 10, 21)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"factor": 0}, "factor must be N or"),
        ({"factor": [2]}, "factor must be N or"),
        ({"factor": 2, "kernel": [1.0]}, r"kernel must be real, \(rows, columns\)"),
        ({"factor": 2, "kernel": "cubic"}, "kernel='cubic'"),
        ({"factor": 4, "image_shape": [1, 10, 8]}, "crop it to 8 x 8"),
        ({"factor": 2, "image_shape": [4, 4]}, "image_shape must be"),
    ],
)
def test_wrong_parameters_are_one_line(given: dict[str, object], line: str) -> None:
    with pytest.raises(invsolve.UserError, match=line) as error:
        invsolve.operator("downsample", **given)
    assert "\n" not in str(error.value)


def test_an_image_that_the_factor_does_not_divide_and_a_far_reflection_are_refused() -> None:
    with pytest.raises(invsolve.UserError, match="crop it to 9 x 9"):
        invsolve.operator("downsample", factor=3)(torch.zeros(1, 1, 10, 11))
    with pytest.raises(invsolve.UserError, match="reflects beyond"):
        invsolve.operator("downsample", factor=4, kernel="bicubic", boundary="reflect")(torch.zeros(1, 1, 4, 4))
