"""Iterations without a prior against SciPy, scikit-image, direct sums and closed forms; and where they stop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import skimage.restoration
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.testing.operators import dense
from tests.support.types import narrow

SIZE = 8


def posed(operator: invsolve.Operator, y: Tensor, sigma: float = 0.05) -> Problem:
    return make_problem(None, operator, invsolve.Gaussian(sigma), y, (1, SIZE, SIZE), Scale())


def run(problem: Problem, name: str, **given: Any) -> Tensor:
    chains = [(0, row) for row in range(problem.batch)]
    return run_batch(problem, invsolve.strategy(name, **given), ChainRandom(0, chains)).images


@pytest.fixture(scope="module")
def tomography() -> tuple[invsolve.LinearOperator, Tensor, np.ndarray]:
    """Twelve views of two 8 x 8 images of positive pixels, their noisy data, and the matrix of the operator."""
    ct = narrow(invsolve.LinearOperator, invsolve.operator("ct", image_size=SIZE, angles=12)).double()
    generator = torch.Generator().manual_seed(0)
    y = ct(torch.rand(2, 1, SIZE, SIZE, dtype=torch.float64, generator=generator))
    y = y + 0.05 * torch.randn(y.shape, dtype=torch.float64, generator=generator)
    matrix, _ = dense(ct, (1, SIZE, SIZE))
    return ct, y, matrix.double().numpy()


@pytest.mark.parametrize("steps", [1, 5, 9])
def test_cgls_has_the_iterates_of_lsqr(
    tomography: tuple[invsolve.LinearOperator, Tensor, np.ndarray], steps: int
) -> None:
    """LSQR (Paige and Saunders) minimises over the same Krylov space, by another recursion; later both lose orthogonality."""
    ct, y, matrix = tomography
    ours = run(posed(ct, y), "cgls", steps=steps, discrepancy=0.0).flatten(1).numpy()
    for image, data in zip(ours, y.flatten(1).numpy(), strict=True):
        wanted = scipy.sparse.linalg.lsqr(matrix, data, atol=0, btol=0, conlim=0, iter_lim=steps)[0]
        np.testing.assert_allclose(image, wanted, atol=1e-8)


def test_sirt_is_its_formula_and_solves_what_can_be_solved(
    tomography: tuple[invsolve.LinearOperator, Tensor, np.ndarray],
) -> None:
    ct, y, matrix = tomography
    rows = np.divide(1, matrix.sum(1), where=matrix.sum(1) > 1e-9, out=np.zeros(len(matrix)))
    columns = 1 / matrix.sum(0)
    data, x = y.flatten(1).numpy(), np.zeros((2, SIZE * SIZE))
    for _ in range(20):
        x = x + 1.5 * columns * ((rows * (data - x @ matrix.T)) @ matrix)
    ours = run(posed(ct, y), "sirt", steps=20, relaxation=1.5, discrepancy=0.0).flatten(1).numpy()
    np.testing.assert_allclose(ours, x, atol=1e-9)
    # A kernel whose transfer function is 0.4 at least: the error falls by 1 - 1.5 * 0.4^2 a step.
    sharp = invsolve.operator("blur", kernel=torch.tensor([[0.1, 0.7, 0.2]]), boundary="circular").double()
    truth = torch.rand(1, 1, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    limit = run(posed(sharp, sharp(truth)), "sirt", steps=120, relaxation=1.5, discrepancy=0.0)
    torch.testing.assert_close(limit, truth, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", ["cgls", "sirt"])
def test_they_stop_when_the_data_are_met_each_image_for_itself(
    tomography: tuple[invsolve.LinearOperator, Tensor, np.ndarray], name: str
) -> None:
    ct, y, _ = tomography
    # The second image has three times the signal over the same noise, and needs more steps.
    problem = posed(ct, torch.cat([y[:1], 3 * y[1:]]), sigma=0.3)
    steps = []
    for row in range(2):
        one = posed(ct, problem.y[row : row + 1], sigma=0.3)
        residuals = [
            float(one.misfit(one.residual(run(one, name, steps=k, discrepancy=0.0)))) / float(one.expected_misfit())
            for k in range(1, 30)
        ]
        steps.append(next(k for k, r in enumerate(residuals, start=1) if r <= 1))
        image = run(problem, name, steps=200)[row : row + 1]
        torch.testing.assert_close(image, run(one, name, steps=steps[-1], discrepancy=0.0), atol=1e-9, rtol=0)
    assert steps[0] < steps[1]


def test_fista_tv_is_the_papers_algorithm() -> None:
    """Beck and Teboulle 2009: FISTA with FGP, in NumPy, on a blur; the dual goes on from iteration to iteration."""
    blur = narrow(invsolve.LinearOperator, invsolve.operator("blur", sigma=1.0)).double()
    matrix = dense(blur, (1, SIZE, SIZE))[0].double().numpy()
    y = torch.rand(1, 1, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    problem, weight, sigma = posed(blur, y), 3.0, 0.05
    largest = 1.001 * problem.operator_norm() ** 2

    def differences(x: np.ndarray) -> np.ndarray:
        down, right = np.zeros_like(x), np.zeros_like(x)
        down[:-1], right[:, :-1] = x[1:] - x[:-1], x[:, 1:] - x[:, :-1]
        return np.stack([down, right])

    def transpose(p: np.ndarray) -> np.ndarray:
        x = np.zeros_like(p[0])
        x[1:] += p[0, :-1]
        x[:-1] -= p[0, :-1]
        x[:, 1:] += p[1, :, :-1]
        x[:, :-1] -= p[1, :, :-1]
        return x

    strength = weight * sigma**2 / largest
    x = ahead = problem.baseline()[0, 0].numpy()
    dual, pace = np.zeros((2, SIZE, SIZE)), 1.0
    for _ in range(12):
        slope = (matrix.T @ (matrix @ ahead.ravel() - y[0, 0].numpy().ravel())).reshape(SIZE, SIZE)
        z = ahead - slope / largest
        q, t = dual, 1.0
        for _ in range(10):
            p = q + differences(z - strength * transpose(q)) / (8 * strength)
            p = p / np.maximum(np.sqrt((p**2).sum(0)), 1)
            t_next = (1 + np.sqrt(1 + 4 * t**2)) / 2
            q, dual, t = p + (t - 1) / t_next * (p - dual), p, t_next
        new, pace_next = z - strength * transpose(dual), (1 + np.sqrt(1 + 4 * pace**2)) / 2
        x, ahead, pace = new, new + (pace - 1) / pace_next * (new - x), pace_next
    ours = run(problem, "fista-tv", steps=12, weight=weight)[0, 0].numpy()
    np.testing.assert_allclose(ours, x, atol=1e-10)


def test_fista_tv_of_a_step_has_a_closed_form() -> None:
    everything = invsolve.operator("inpainting", mask=torch.ones(SIZE, SIZE))
    y = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64)
    y[..., 3:] = 1.0
    sigma, weight = 0.5, 0.6
    x = run(posed(everything, y, sigma=sigma), "fista-tv", weight=weight, steps=100, inner=20)
    # Each plateau moves towards the other by weight sigma^2 over its width.
    wanted = torch.where(y > 0, 1 - weight * sigma**2 / 5, weight * sigma**2 / 3).double()
    torch.testing.assert_close(x, wanted, atol=1e-5, rtol=0)


def test_richardson_lucy_is_that_of_scikit_image() -> None:
    """Away from the edge, where the reference does not divide by A'1: five iterations reach ten pixels from there."""
    kernel = np.array([[0.0, 1.0, 1.0], [2.0, 8.0, 2.0], [0.0, 1.0, 1.0]]) / 16
    blur = invsolve.operator("blur", kernel=torch.from_numpy(kernel), boundary="zero").double()
    y = torch.rand(1, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    problem = make_problem(None, blur, invsolve.Gaussian(0.01), y, (1, 32, 32), Scale())
    ours = run(problem, "richardson-lucy", steps=5, discrepancy=0.0)[0, 0].numpy()
    theirs = skimage.restoration.richardson_lucy(y[0, 0].numpy(), kernel, num_iter=5, clip=False)
    np.testing.assert_allclose(ours[11:-11, 11:-11], theirs[11:-11, 11:-11], rtol=1e-9)


def test_richardson_lucy_is_expectation_maximisation_and_does_not_care_for_the_units(
    tomography: tuple[invsolve.LinearOperator, Tensor, np.ndarray],
) -> None:
    ct, y, matrix = tomography
    data = np.maximum(y.flatten(1).numpy(), 0)
    x = np.full((2, SIZE * SIZE), 0.37)
    for _ in range(15):
        predicted = x @ matrix.T
        x = x / matrix.sum(0) * (np.divide(data, predicted, where=predicted > 1e-9, out=np.zeros_like(data)) @ matrix)
    noises = (invsolve.Gaussian(0.05), invsolve.Poisson(400.0))
    for noise in noises:
        for scale in (Scale(), Scale(2.5, 0.7)):
            problem = make_problem(None, ct, noise, y.clamp_min(0), (1, SIZE, SIZE), scale)
            images = scale.to_physical(run(problem, "richardson-lucy", steps=15, discrepancy=0.0))
            np.testing.assert_allclose(images.flatten(1).numpy(), x, atol=1e-9)


@pytest.mark.parametrize("name", ["sirt", "richardson-lucy"])
def test_an_operator_that_is_no_weighting_is_refused(name: str) -> None:
    y = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.complex64)
    with pytest.raises(invsolve.UserError, match=f"strategy '{name}' needs an operator of real weights >= 0.*'cgls'"):
        run(
            make_problem(
                None, invsolve.operator("mri", image_size=SIZE), invsolve.Gaussian(0.1), y, (2, SIZE, SIZE), Scale()
            ),
            name,
        )
