"""Inpainting with weights: a flat field or an exposure, against NumPy's dense least squares and closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets import hdf5
from invsolve.files.opening import open_measurement

WEIGHTS = np.array([[0.5, 1.0, 0.0, 2.0], [1.0, 0.25, 1.0, 0.0], [0.0, 1.0, 1.5, 1.0]])


def test_it_is_the_diagonal_of_the_weights() -> None:
    operator = invsolve.operator("inpainting", weights=WEIGHTS)
    x = torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = operator(x)
    np.testing.assert_array_equal(y.numpy(), WEIGHTS * x.numpy())
    matrix = np.diag(WEIGHTS.ravel())
    wanted = np.linalg.pinv(matrix) @ y.view(2, -1).numpy().T
    np.testing.assert_allclose(operator.pinv(y).view(2, -1).numpy().T, wanted, atol=1e-14)
    z, rho = torch.ones_like(x), 0.3
    wanted = np.linalg.solve(matrix.T @ matrix + rho * np.eye(12), matrix.T @ y.view(2, -1).numpy().T + rho)
    np.testing.assert_allclose(operator.prox(z, y, rho).view(2, -1).numpy().T, wanted, atol=1e-13)
    assert operator.norm() == 2.0
    measured = operator.measured()
    assert measured is not None
    assert measured.tolist() == (WEIGHTS > 0).tolist()


def test_the_posterior_weighs_pixels_by_them() -> None:
    """Independent pixels of mean 0 and sd 0.3 have the posterior variance 1 / (1 / 0.09 + w^2 / sigma^2)."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 2, (12, 12)) * (rng.random((12, 12)) > 0.2)
    operator, noise = invsolve.operator("inpainting", weights=weights), invsolve.Gaussian(0.1)

    class Pixels(invsolve.Prior):
        event_shape = (1, 12, 12)

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x * 0.09 / (0.09 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2)

        def error(self, sigma: float) -> float:
            return sigma**2 * 0.09 / (0.09 + sigma**2)

    truth = torch.from_numpy(0.3 * rng.normal(size=(1, 1, 12, 12))).float()
    y = invsolve.simulate(truth, operator, noise, seed=0)
    rec = invsolve.reconstruct(y, operator, Pixels(), noise=noise, samples=64, scale=(-1.0, 1.0), progress=False)
    variance = 1 / (1 / 0.09 + weights**2 / 0.01)
    off = (rec.mean[0, 0].numpy() - variance * weights * y[0, 0].numpy() / 0.01) / np.sqrt(variance)
    # The mean square of 144 means of 64 draws is 1 / 64, and scatters by sqrt(2 / 144) of itself; five of that.
    assert (off**2).mean() < (1 + 5 * (2 / 144) ** 0.5) / 64
    width = (rec.std[0, 0].numpy() ** 2 / variance).mean()
    assert width == pytest.approx(1, abs=5 * (2 / (144 * 63)) ** 0.5 + 0.02)


def test_a_scan_file_keeps_them(tmp_path: Path) -> None:
    operator = invsolve.operator("inpainting", weights=WEIGHTS)
    x = torch.ones(1, 1, 3, 4)
    hdf5.write_scan(tmp_path / "scan.h5", operator(x), operator, invsolve.Gaussian(0.1))
    measurement = open_measurement(tmp_path / "scan.h5")
    again: Any = measurement.operator
    torch.testing.assert_close(again(x), torch.from_numpy(WEIGHTS)[None, None].float())


@pytest.mark.parametrize("wrong", [[[1.0, -0.5]], [[1.0, float("nan")]], [[0.0, 0.0]], [[1.0 + 1j, 1.0]]])
def test_what_no_weights_are_is_one_line(wrong: Any) -> None:
    with pytest.raises(invsolve.UserError, match="weights must be finite, 0 or above and not all 0") as caught:
        invsolve.operator("inpainting", weights=np.array(wrong))
    assert "\n" not in str(caught.value)
