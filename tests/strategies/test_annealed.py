"""Samplers that anneal: ald, score-mri, pula and sitcom, whole runs against transcriptions with dense matrices."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.problem import Problem
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.testing.exact import exact_posterior
from invsolve.testing.operators import dense
from tests.support.types import narrow

CHAINS = [(0, 0), (0, 1), (1, 0)]
SIGMA_Y = 0.05


@pytest.fixture(scope="module")
def problem() -> Problem:
    """An 8 x 8 image, blurred and twice as bright."""
    kernel = torch.tensor([[0.0, 0.2, 0.1], [0.4, 1.0, 0.1], [0.1, 0.1, 0.0]])
    blur = narrow(invsolve.LinearOperator, invsolve.operator("blur", kernel=kernel))
    posed = exact_posterior(blur, samples=3, size=8, dtype=torch.float64, sigma=SIGMA_Y).problem
    posed.prior.sigma_min = 0.01
    return posed


def matrix_of(problem: Problem) -> Tensor:
    return dense(problem.linear, problem.image_shape)[0].double()


def denoise(problem: Problem, flat: Tensor, sigma: float) -> Tensor:
    x = flat.view(-1, *problem.image_shape)
    return problem.prior.denoise(x, torch.tensor(sigma, dtype=x.dtype)).flatten(1)


def run(problem: Problem, name: str, **given: object) -> Tensor:
    return run_batch(problem, invsolve.strategy(name, **given), ChainRandom(3, CHAINS)).images.flatten(1)


@pytest.mark.parametrize("published", [False, True])
def test_ald(problem: Problem, published: bool) -> None:
    """Jalal 2021, equation 4; and the rule of its code, whose gradient has the norm of the score, times 5."""
    a, y = matrix_of(problem), problem.y.flatten(1)
    given = {"preset": "published", "steps": 30} if published else {"steps": 30}
    high, low, length = (1.24, 0.01, 5e-5 / 0.0066**2) if published else (5.0, 0.01, 0.4)
    levels = np.geomspace(high, low, 30)
    rng = ChainRandom(3, CHAINS)
    x = levels[0] * rng.at(0).normal(problem.zeros()).flatten(1)
    norm = problem.operator_norm()
    for k, sigma in enumerate(levels, start=1):
        at, step = rng.at(k), length * sigma**2
        for _ in range(3):
            score = (denoise(problem, x, sigma) - x) / sigma**2
            gradient = (x @ a.T - y) @ a
            if published:
                pull = 5 * score.norm(dim=1, keepdim=True) / gradient.norm(dim=1, keepdim=True) * gradient
            else:
                pull = gradient / (SIGMA_Y**2 + norm**2 * sigma**2)
            noise = at.normal(problem.zeros()).flatten(1)
            x = x + step * (score - pull) + math.sqrt(2 * step) * noise
    torch.testing.assert_close(run(problem, "ald", **given), x, atol=1e-8, rtol=1e-8)


def test_score_mri_of_pixels_puts_the_data_in_place_after_each_half_step() -> None:
    """Chung and Ye 2022, Algorithm 1: corrector and predictor, each followed by x <- (I - A'A) x + A'y."""
    problem = exact_posterior(samples=3, size=8, dtype=torch.float64, sigma=SIGMA_Y).problem
    mask, steps, snr = narrow(Tensor, problem.operator.measured()).double(), 40, 0.16
    levels = [*np.geomspace(problem.prior.sigma_max, problem.prior.sigma_min, steps), 0.0]
    rng = ChainRandom(3, CHAINS)
    x = levels[0] * rng.at(0).normal(problem.zeros())

    def clean(x: Tensor, sigma: float) -> Tensor:
        return problem.prior.denoise(x, torch.tensor(sigma, dtype=x.dtype))

    for k, (sigma, after) in enumerate(pairwise(levels), start=1):
        at = rng.at(k)
        score, noise = (clean(x, sigma) - x) / sigma**2, at.normal(x)
        for row in range(3):
            step = 2 * (snr * float(noise[row].norm()) / float(score[row].norm())) ** 2
            x[row] = x[row] + step * score[row] + math.sqrt(2 * step) * noise[row]
        x = torch.where(mask > 0, problem.y, x)
        x = x + (sigma**2 - after**2) * (clean(x, sigma) - x) / sigma**2
        if after > 0:
            x = x + math.sqrt(sigma**2 - after**2) * at.normal(x)
        x = torch.where(mask > 0, problem.y, x)
    # The power iteration finds the operator's norm, 1, to 1e-4.
    ours = run(problem, "score-mri", preset="published", steps=steps)
    torch.testing.assert_close(ours, x.flatten(1), atol=5e-4, rtol=0)


def test_pula(problem: Problem) -> None:
    """Blumenthal 2025: P z' = P z + g grad log pi + sqrt(2 g) (A'n1 / sigma_y + n2 / sigma)."""
    a, y, steps, g = matrix_of(problem), problem.y.flatten(1), 25, 0.5
    levels = 10 * 0.001 ** (np.arange(steps + 1) / steps)
    rng = ChainRandom(3, CHAINS)

    def solve(sigma: float, b: Tensor) -> Tensor:
        p = a.T @ a / SIGMA_Y**2 + torch.eye(a.shape[1], dtype=a.dtype) / sigma**2
        return torch.linalg.solve(p, b.T).T

    def noises(at: ChainRandom) -> tuple[Tensor, Tensor]:
        white = at.normal(problem.zeros()).flatten(1)
        return at.normal(problem.y).flatten(1), white

    n1, n2 = noises(rng.at(0))
    z = solve(levels[0], y @ a / SIGMA_Y**2 + n1 @ a / SIGMA_Y + n2 / levels[0])
    for k, sigma in enumerate(levels[1:], start=1):
        n1, n2 = noises(rng.at(k))
        slope = (denoise(problem, z, sigma) - z) / sigma**2 + (y - z @ a.T) @ a / SIGMA_Y**2
        z = z + solve(sigma, g * slope + math.sqrt(2 * g) * (n1 @ a / SIGMA_Y + n2 / sigma))
    torch.testing.assert_close(run(problem, "pula", steps=steps), z, atol=1e-7, rtol=0)


@pytest.mark.parametrize("hold", [0.0, 0.3])
def test_sitcom(problem: Problem, hold: float) -> None:
    """Alkhouri 2025, Algorithm 1, in variance-preserving coordinates, with torch's Adam; rows stop when they meet their data."""
    a, y, steps, inner = matrix_of(problem) / problem.operator_norm(), problem.y.flatten(1), 6, 12
    data = y / problem.operator_norm()
    levels = invsolve.strategy("sitcom", steps=steps).schedule(problem).tolist()
    # What the noise explains of |y - A x|.
    enough = SIGMA_Y * math.sqrt(y.shape[1]) / problem.operator_norm()
    rng = ChainRandom(3, CHAINS)
    z = levels[0] * rng.at(0).normal(problem.zeros()).flatten(1)
    stopped = 0
    for k, (sigma, after) in enumerate(pairwise(levels), start=1):
        noise, new = rng.at(k).normal(problem.zeros()).flatten(1), []
        for row in range(3):
            start = z[row : row + 1] / math.sqrt(1 + sigma**2)
            v = start.clone().requires_grad_()
            adam = torch.optim.Adam([v], lr=0.02)
            for _ in range(inner):
                residual = data[row : row + 1] - denoise(problem, v * math.sqrt(1 + sigma**2), sigma) @ a.T
                if float(residual.detach().norm()) <= enough:
                    stopped += 1
                    break
                adam.zero_grad()
                (residual.square().sum() + hold * (v - start).square().sum()).backward()
                adam.step()
            new.append(denoise(problem, v.detach() * math.sqrt(1 + sigma**2), sigma))
        z = torch.cat(new) + after * noise
    assert 0 < stopped < 3 * steps
    torch.testing.assert_close(run(problem, "sitcom", steps=steps, inner=inner, hold=hold), z, atol=1e-7, rtol=0)


def test_pula_refuses_a_step_that_diverges() -> None:
    with pytest.raises(invsolve.UserError, match="'pula': gamma must be between 0 and 2"):
        invsolve.strategy("pula", gamma=2.0)
