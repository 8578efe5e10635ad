"""SENSE by dense algebra: its ridge is what the noise explains, and what that is worth beside plain least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import invsolve
from invsolve import api
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.whitening import weighted
from invsolve.engine import Options
from invsolve.numerics.krylov import CG

N, COILS = 24, 4
ROWS, COLUMNS = (np.mgrid[:N, :N] - N / 2) / N
BODY = (np.hypot(COLUMNS, ROWS) < 0.35) + 0.5 * (np.hypot(COLUMNS - 0.1, ROWS) < 0.1)
#: Every third column, and the middle.
KEPT = (np.arange(N) % 3 == 0) | (abs(np.arange(N) - N // 2) < 3)


def maps() -> np.ndarray:
    """Wide bells of one phase: they tell aliases apart poorly, so that least squares alone is mostly noise."""
    places = ((-0.4, 0), (0.4, 0), (0, -0.4), (0, 0.4))
    bells = np.stack([np.exp(-((COLUMNS - a) ** 2 + (ROWS - b) ** 2) / 0.5) for a, b in places])
    return bells / np.linalg.norm(bells, axis=0)


def mri() -> invsolve.Operator:
    return invsolve.operator(
        "mri", mask=torch.from_numpy(KEPT), coil_maps=torch.from_numpy(maps()).to(torch.complex128)
    )


def matrices(weights: np.ndarray) -> np.ndarray:
    """What each row of the image goes through: (rows, measured, columns), complex."""
    transform = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(np.eye(N), 0), axis=0, norm="ortho"), 0)[KEPT]
    coils = (weights[:, None, None] * maps()).transpose(1, 0, 2)
    return (transform[None, None] * coils[:, :, None, :]).reshape(N, -1, N)


def measured(levels: np.ndarray, seed: int = 0) -> torch.Tensor:
    """K-space (1, coils, N, N) of both parts' noise `levels`."""
    rng = np.random.default_rng(seed)
    clean = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(maps() * BODY, (-2, -1)), norm="ortho"), (-2, -1))
    noise = levels[:, None, None] * (rng.normal(size=clean.shape) + 1j * rng.normal(size=clean.shape))
    return torch.from_numpy((clean + noise) * KEPT)[None]


def by_rows(y: torch.Tensor) -> np.ndarray:
    """The same data along the columns' frequencies alone: (rows, measured)."""
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(y[0].numpy(), -2), axis=-2, norm="ortho"), -2)
    return image[:, :, KEPT].transpose(1, 0, 2).reshape(N, -1)


def error(image: np.ndarray) -> float:
    return float(np.linalg.norm(image - BODY) / np.linalg.norm(BODY))


class Dense:
    """Every ridge by singular values of the whitened problem, noise of level 1."""

    def __init__(self, y: torch.Tensor, levels: np.ndarray) -> None:
        left, self.values, self.right = np.linalg.svd(matrices(1 / levels), full_matrices=False)
        data = by_rows(y) / np.repeat(levels, KEPT.sum())
        self.data = np.einsum("rmk,rm->rk", left.conj(), data)
        self.beside = np.linalg.norm(data) ** 2 - np.linalg.norm(self.data) ** 2
        self.numbers = 2 * data.size

    def image(self, rho: float) -> np.ndarray:
        return np.einsum("rkn,rk->rn", self.right.conj(), self.values / (self.values**2 + rho) * self.data)

    def ratio(self, rho: float) -> float:
        """|y - A x|^2 over what noise leaves of it after a fit of so many degrees of freedom."""
        kept = self.values**2 / (self.values**2 + rho)
        return float((self.beside + np.linalg.norm((1 - kept) * self.data) ** 2) / (self.numbers - 2 * kept.sum()))


CASES = {
    "alike": np.full(COILS, 0.02),
    "one ten times noisier": np.array([0.02, 0.02, 0.02, 0.2]),
    "noisy": np.full(COILS, 0.1),
    "quiet": np.full(COILS, 0.005),
}


@pytest.mark.parametrize("case", CASES)
def test_sense_has_the_ridge_that_the_noise_explains(case: str) -> None:
    levels = CASES[case]
    y, dense = measured(levels), Dense(measured(levels), levels)
    operator = mri()
    noise = invsolve.Gaussian(torch.from_numpy(levels).view(-1, 1, 1))
    plan = api.plan(invsolve.Measurement(y, operator, noise), None, "linear", Options(dtype="float64"))
    sink = api.Memory(1)
    plan.execute(sink)
    mean = sink.stack("mean")[0].numpy()
    ours = mean[0] + 1j * mean[1]
    top = dense.values.max() ** 2
    ridges = np.geomspace(1e-3, 1, 400) * top
    images = [dense.image(rho) for rho in ridges]
    away = [np.linalg.norm(image - ours) / np.linalg.norm(ours) for image in images]
    assert min(away) < 2e-3
    rho = ridges[int(np.argmin(away))]
    # One probe tells the trace as w'Hw does, of variance 2 tr H^2 (twice for two parts), and steps of 4 are interpolated.
    kept = dense.values**2 / (dense.values**2 + rho)
    assert abs(dense.ratio(rho) - 1) < 3 * np.sqrt(4 * (kept**2).sum()) / (dense.numbers - 2 * kept.sum()) + 0.02
    assert error(ours) < 1.15 * min(map(error, images))


def test_least_squares_of_unequal_coils_is_the_minimum_variance_estimate() -> None:
    """Whitened least squares has the error of its closed form, and the ridge is what makes an image of it."""
    levels = CASES["one ten times noisier"]
    y = measured(levels)
    exact = Dense(y, levels).image(0.0)
    weight = torch.from_numpy(1 / levels).view(1, -1, 1, 1)
    operator = weighted(mri(), weight, shared=True)
    assert isinstance(operator, LinearOperator)
    ours = operator.pinv(weight * y, CG(1e-12, 3000))[0, 0].numpy()
    # The maps are kept in single precision, 6e-8, and singular values down to 1/100 enlarge what that changes.
    assert np.linalg.norm(ours - exact) < 1e-5 * np.linalg.norm(exact)
    # E |x - truth|^2 = 2 tr (A' S^-1 A)^-1 for noise of level 1 in both parts.
    expected = np.sqrt(2 * (1 / Dense(y, levels).values ** 2).sum()) / np.linalg.norm(BODY)
    draws = [error(Dense(measured(levels, seed), levels).image(0.0)) for seed in range(20)]
    assert np.sqrt(np.mean(np.square(draws))) == pytest.approx(expected, abs=3 * np.std(draws) / np.sqrt(20))
    assert expected == pytest.approx(0.91, abs=0.01)
