"""Operators against independent implementations and closed forms, and over random shapes and parameters."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import invsolve
from invsolve.contracts.operator import LinearOperator
from invsolve.numerics.linalg import inner, norm
from invsolve.operators.ct.folding import joseph
from invsolve.testing.operators import dense
from tests.support.types import linear_operator, offered

MODES = {"circular": "wrap", "reflect": "mirror", "zero": "constant"}


def dot_error(operator: invsolve.LinearOperator, x: torch.Tensor) -> float:
    y = operator(x)
    v = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return float(((inner(y, v) - inner(x, operator.adjoint(v))).abs() / (norm(y) * norm(v)).clamp_min(1e-30)).max())


@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("shape", [(3, 3), (5, 2), (4, 7)])
def test_blur_is_scipys_convolution(boundary: str, shape: tuple[int, int]) -> None:
    kernel = np.random.default_rng(0).random(shape)
    x = np.random.default_rng(1).normal(size=(13, 16))
    wanted = scipy.ndimage.convolve(x, kernel, mode=MODES[boundary])
    operator = invsolve.operator("blur", kernel=torch.from_numpy(kernel), boundary=boundary).double()
    operator.kernel = torch.from_numpy(kernel)
    got = operator(torch.from_numpy(x)[None, None])[0, 0]
    np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_blur_of_a_point_is_the_kernel() -> None:
    kernel = torch.rand(4, 3)
    x = torch.zeros(1, 1, 11, 12)
    x[0, 0, 5, 6] = 1
    for boundary in MODES:
        y = invsolve.operator("blur", kernel=kernel, boundary=boundary)(x)
        torch.testing.assert_close(y[0, 0, 3:7, 5:8], kernel, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_mri_is_the_centred_discrete_fourier_transform(size: tuple[int, int]) -> None:
    rows, columns = size
    n, m = (np.arange(k) - k // 2 for k in size)
    f_rows = np.exp(-2j * np.pi * np.outer(n, n) / rows) / math.sqrt(rows)
    f_columns = np.exp(-2j * np.pi * np.outer(m, m) / columns) / math.sqrt(columns)
    x = np.random.default_rng(0).normal(size=size) + 1j * np.random.default_rng(1).normal(size=size)
    wanted = f_rows @ x @ f_columns.T
    operator = invsolve.operator("mri", mask=torch.ones(size))
    np.testing.assert_allclose(operator(torch.from_numpy(x)[None, None])[0, 0], wanted, atol=1e-12)


def test_mri_with_maps_recovers_the_image_from_all_coils() -> None:
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 12, 10, 2, generator=g)
    operator = invsolve.operator("mri", coil_maps=maps, mask=[1, 1, 0, 1, 1, 0, 1, 1, 0, 1])
    x = torch.randn(2, 1, 12, 10, dtype=torch.complex64, generator=g)
    torch.testing.assert_close(operator.pinv(operator(x)), x, atol=1e-3, rtol=1e-3)


def test_mri_refuses_real_images() -> None:
    with pytest.raises(invsolve.UserError, match="complex"):
        invsolve.operator("mri", image_size=8)(torch.zeros(1, 1, 8, 8))


def test_ct_folded_matrix_is_the_plain_one() -> None:
    for angles in (12, [0.0, 30.0, 45.0, 80.0, 180.0], [float(k * 111.246 % 180) for k in range(9)]):
        operator = linear_operator(
            "ct", image_size=15, angles=torch.tensor(angles) if isinstance(angles, list) else angles
        )
        g = operator.geometry
        degrees, positions = np.broadcast_arrays(np.array(g.angles)[:, None], g.positions()[None])
        wanted = joseph((15, 15), degrees.ravel(), positions.ravel()).toarray()
        got, _ = dense(operator.double(), (1, 15, 15))
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_ct_folds_equispaced_angles_eightfold() -> None:
    operator = invsolve.operator("ct", image_size=64, angles=180)
    rays = 180 * operator.geometry.detectors
    assert operator.projector.rows_start.numel() - 1 < rays / 7


def test_ct_axial_rays_are_row_and_column_sums() -> None:
    x = torch.rand(1, 1, 9, 9)
    y = invsolve.operator("ct", image_size=9, angles=[0.0, 90.0], detectors=9)(x)
    torch.testing.assert_close(y[0, 0], x[0, 0].sum(0))
    torch.testing.assert_close(y[0, 1], x[0, 0].sum(1).flip(0))


def test_ct_units_scale_with_pixel_size() -> None:
    x = torch.rand(1, 1, 10, 10)
    one = invsolve.operator("ct", image_size=10, angles=7)(x)
    half = invsolve.operator("ct", image_size=10, angles=7, pixel_size=0.5)(x)
    torch.testing.assert_close(half, one / 2)


def test_fbp_keeps_the_grey_value_of_a_disc() -> None:
    axis = torch.arange(96) - 47.5
    disc = ((axis[:, None] ** 2 + axis[None] ** 2) < 30**2).float()[None, None] * 0.7
    for spacing in (1.0, 0.8):
        operator = invsolve.operator("ct", image_size=96, angles=180, detector_spacing=spacing)
        image = operator.fbp(operator(disc), "ramp")
        assert abs(float(image[0, 0, 38:58, 38:58].mean()) - 0.7) < 0.01
        assert abs(float(image[0, 0, :8].mean())) < 0.01


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(3, 20),
    angles=st.one_of(st.integers(1, 9), st.lists(st.floats(-400, 400), min_size=1, max_size=6)),
    detectors=st.one_of(st.none(), st.integers(1, 25)),
    spacing=st.floats(0.3, 2.5),
    shift=st.floats(-3, 3),
)
def test_ct_is_matched_for_any_geometry(
    size: int, angles: int | list[float], detectors: int | None, spacing: float, shift: float
) -> None:
    given_angles = angles if isinstance(angles, int) else torch.tensor(angles)
    operator = linear_operator(
        "ct",
        image_size=size,
        angles=given_angles,
        detectors=detectors,
        detector_spacing=spacing,
        centre=size / 2 + shift,
    )
    x = torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    assert dot_error(operator, x) < 1e-5
    assert dot_error(operator.double(), x.double()) < 1e-12


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(7, 15), st.integers(7, 15)),
    boundary=st.sampled_from(list(MODES)),
)
def test_blur_is_matched_for_any_kernel(kernel: tuple[int, int], size: tuple[int, int], boundary: str) -> None:
    g = torch.Generator().manual_seed(0)
    operator = linear_operator("blur", kernel=torch.randn(kernel, generator=g), boundary=boundary)
    x = torch.randn(2, 2, *size, generator=g)
    assert dot_error(operator, x) < 1e-5
    assert dot_error(operator.double(), x.double()) < 1e-12


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(4, 13), columns=st.integers(4, 13), coils=st.integers(1, 3), seed=st.integers(0, 99))
def test_mri_is_matched_for_any_mask(rows: int, columns: int, coils: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=g) < 0.4
    mask[rows // 2, columns // 2] = True
    maps = torch.randn(coils, rows, columns, 2, generator=g)
    operator = linear_operator("mri", coil_maps=maps, mask=mask)
    x = torch.randn(2, 1, rows, columns, dtype=torch.complex64, generator=g)
    assert dot_error(operator, x) < 1e-5
    assert dot_error(operator.double(), x.to(torch.complex128)) < 1e-12


def test_algebra_against_dense_matrices() -> None:
    shape = (1, 8, 8)
    a = linear_operator("blur", sigma=0.9).double()
    b = linear_operator("inpainting", fraction=0.6, image_size=8).double()
    da, db = dense(a, shape)[0], dense(b, shape)[0]
    cases: tuple[tuple[LinearOperator, torch.Tensor], ...] = (
        (b @ a, db @ da),
        (a + b, da + db),
        (0.3 * a, 0.3 * da),
        (invsolve.stack([a, b]), torch.cat([da, db])),
    )
    for combined, wanted in cases:
        combined.image_shape = shape
        forward, backward = dense(combined, shape)
        torch.testing.assert_close(forward, wanted, atol=1e-7, rtol=0)
        torch.testing.assert_close(backward, forward.T, atol=1e-12, rtol=0)


def test_an_adjoint_is_derived_where_none_is_given() -> None:
    class RowSums(invsolve.LinearOperator):
        image_shape = (1, 6, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(-1)[:, 0]

    forward, backward = dense(RowSums(), (1, 6, 7))
    torch.testing.assert_close(backward, forward.T)


def test_numpy_in_forward_says_that_an_adjoint_is_needed() -> None:
    class NotTorch(invsolve.LinearOperator):
        image_shape = (1, 4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.detach().numpy() * 2)

    with pytest.raises(invsolve.UserError, match="define adjoint"):
        NotTorch().adjoint(torch.ones(1, 1, 4, 4))


def test_complex_buffers_keep_their_imaginary_part_when_moved() -> None:
    maps = torch.randn(2, 5, 5, 2)
    operator = invsolve.operator("mri", coil_maps=maps).to(torch.float64)
    assert operator.coil_maps.dtype == torch.complex128
    torch.testing.assert_close(torch.view_as_real(offered(operator).coil_maps).float(), maps)
