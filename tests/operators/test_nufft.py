"""The non-uniform FFT and A'A by convolution, against direct sums and against finufft."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch

from invsolve.numerics import gridding, nufft
from invsolve.numerics.gridding import width_for
from invsolve.numerics.nufft import Nufft
from invsolve.numerics.toeplitz import convolved, doubled, spectrum

CPU = torch.device("cpu")
SIZES = [(24,), (20, 33), (9, 12), (1, 7), (7, 8, 9)]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed)).to(dtype)


def points(count: int, dimensions: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, dimensions, dtype=torch.float64, generator=generator) - 0.5


def matrix(k: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """exp(-2 pi i k . (n - size // 2)), (points, pixels), complex128."""
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 for n in size]
    n = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, len(size))
    return torch.exp(-2j * math.pi * (k @ n.T))


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("often", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 2e-6, 1e-9, 1e-12])
def test_it_is_the_direct_sum_to_its_tolerance(size: tuple[int, ...], tolerance: float, often: bool) -> None:
    k, x = points(400, len(size)), drawn(3, *size)
    y, wanted = Nufft(k, size, tolerance, torch.float64, CPU, often).forward(x), x.flatten(1) @ matrix(k, size).T
    assert relative(y, wanted) < tolerance
    # In single precision, rounding of some hundred numbers comes on top.
    single = Nufft(k, size, tolerance, torch.float32, CPU, often).forward(x.to(torch.complex64))
    assert single.dtype == torch.complex64
    assert relative(single, wanted) < tolerance + 2e-6


@pytest.mark.parametrize("often", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_the_adjoint_is_the_exact_transpose(
    size: tuple[int, ...], dtype: torch.dtype, rounding: float, often: bool
) -> None:
    transform = Nufft(points(50, len(size)), size, 1e-3, dtype, CPU, often)
    x, v = drawn(20, *size, dtype=dtype.to_complex()), drawn(20, 50, seed=2, dtype=dtype.to_complex())
    y, back = transform.forward(x), transform.adjoint(v)
    assert float(((y.conj() * v).sum() - (x.conj() * back).sum()).abs() / (y.norm() * v.norm())) < rounding


def test_points_beyond_half_a_cycle_repeat() -> None:
    k, x = points(60, 2), drawn(2, 9, 12)
    one, other = (Nufft(p, (9, 12), 1e-9, torch.float64, CPU).forward(x) for p in (k, k + torch.tensor([3.0, -7.0])))
    # A whole cycle per pixel turns the image's middle by whole cycles.
    assert relative(other, one) < 1e-8


def test_gradients_are_the_transpose_and_their_gradients_too() -> None:
    transform = Nufft(points(7, 2), (4, 5), 1e-3, torch.float64, CPU)
    x = drawn(2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(transform.forward, x)
    assert torch.autograd.gradgradcheck(transform.forward, x)


@pytest.mark.parametrize("often", [True, False])
def test_backward_stores_nothing(often: bool) -> None:
    transform = Nufft(points(60, 2), (9, 12), 1e-3, torch.float64, CPU, often)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    response = spectrum(points(60, 2), torch.ones(60, dtype=torch.float64), (9, 12), torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        convolved(transform.adjoint(transform.forward(drawn(1, 9, 12).requires_grad_())), response)
    assert not saved


@pytest.mark.parametrize("often", [True, False])
@pytest.mark.parametrize("size", [(9, 12), (5, 6, 7)])
def test_parts_of_points_and_of_rows_add_up(
    size: tuple[int, ...], often: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, x = points(83, len(size)), drawn(5, *size)
    whole = Nufft(k, size, 1e-6, torch.float64, CPU)
    y = whole.forward(x)
    monkeypatch.setattr(nufft, "_GRID_BYTES", 20_000)
    monkeypatch.setattr(gridding, "_TABLE_BYTES", 10_000)
    parts = Nufft(k, size, 1e-6, torch.float64, CPU, often)
    assert len(parts.gridding.parts) > 1
    torch.testing.assert_close(parts.forward(x), y)
    torch.testing.assert_close(parts.adjoint(y), whole.adjoint(y))


def test_wider_kernels_are_for_smaller_tolerances() -> None:
    widths = [width_for(10.0**-digits, 2) for digits in range(2, 13)]
    assert widths == sorted(widths)
    assert widths[0] == 4
    assert widths[-1] <= 17


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-11)])
def test_convolution_is_the_weighted_normal_matrix(size: tuple[int, ...], dtype: torch.dtype, error: float) -> None:
    k, x = points(300, len(size)), drawn(3, *size)
    weights = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.2
    sums = matrix(k, size)
    wanted = (x.flatten(1) @ sums.T * weights @ sums.conj()).view(x.shape)
    response = spectrum(k, weights, size, dtype)
    assert response.dtype == dtype
    assert response.shape == doubled(size)
    assert relative(convolved(x.to(dtype.to_complex()), response).to(torch.complex128), wanted) < error


@pytest.mark.parametrize("n", [1, 2, 9, 318, 320, 331])
def test_sizes_of_transforms_are_large_enough_and_have_small_factors(n: int) -> None:
    (m,) = doubled((n,))
    assert 2 * n - 1 <= m <= 2.2 * n
    for factor in (2, 3, 5, 7, 11):
        while m % factor == 0:
            m //= factor
    assert m == 1


@pytest.mark.parametrize("size", SIZES[1:])
def test_it_is_finufft(size: tuple[int, ...]) -> None:
    try:
        finufft: Any = importlib.import_module("finufft")
    except ImportError as error:
        pytest.skip(f"no finufft: {error}")
    k, x = points(500, len(size)), drawn(2, *size)
    there = {2: finufft.nufft2d2, 3: finufft.nufft3d2}[len(size)]
    wanted = there(*(2 * np.pi * k.numpy().T.copy()), x.numpy(), eps=1e-13, isign=-1)
    got = Nufft(k, size, 1e-11, torch.float64, CPU).forward(x)
    assert relative(got, torch.from_numpy(wanted)) < 1e-11


def test_many_samples_of_one_place_add_up_in_single_precision() -> None:
    """The centre of k-space, which every spoke crosses: sums of thousands of numbers, against double precision."""
    draw = np.random.default_rng(2)
    k = draw.uniform(-0.01, 0.01, (6000, 2))
    y = (1 + draw.random(6000) + 1j * draw.random(6000)).astype(np.complex64)
    n = np.arange(12) - 6
    waves = [np.exp(2j * np.pi * np.outer(k[:, axis], n)) for axis in range(2)]
    exact = np.einsum("j,jx,jy->xy", y.astype(np.complex128), *waves, optimize=True)
    nufft = Nufft(torch.from_numpy(k), (12, 12), 1e-6, torch.float32, torch.device("cpu"))
    ours = nufft.adjoint(torch.from_numpy(y)[None])[0].numpy()
    assert np.linalg.norm(ours - exact) < 2e-6 * np.linalg.norm(exact)
