"""boundary: the start is the best of its candidates by a dense transcription, and one for all images and batches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.problem import Problem
from invsolve.engine.batch import run_batch
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies.boundary import Boundary, shared
from invsolve.testing.exact import exact_posterior
from invsolve.testing.operators import dense
from tests.support.types import narrow

SIGMA_Y = 0.05


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Super-resolution by two."""
    operator = narrow(invsolve.LinearOperator, invsolve.operator("downsample", factor=2))
    return exact_posterior(operator, samples=2, size=8, dtype=torch.float64, sigma=SIGMA_Y).problem


def reconstructed(problem: Problem, start: Tensor, y: Tensor, levels: list[float]) -> Tensor:
    """DDIM of D moved to the data by the dense normal equations; start and y in rows."""
    a = dense(problem.linear, problem.image_shape)[0].double()
    x = levels[0] * start
    for sigma, after in pairwise(levels):
        sigma_ = torch.tensor(sigma, dtype=x.dtype)
        d = problem.prior.denoise(x.view(-1, *problem.image_shape), sigma_).flatten(1)
        rho = SIGMA_Y**2 / problem.prior.error(sigma)
        normal = a.T @ a + rho * torch.eye(a.shape[1], dtype=a.dtype)
        moved = d + torch.linalg.solve(normal, ((y - d @ a.T) @ a).T).T
        x = moved + after / sigma * (x - d)
    return x


def test_the_start_is_the_candidate_that_serves_the_references_best(problem: Problem) -> None:
    """Ma 2024, equation for the approximately optimal boundary, with squared errors; then every image from it."""
    strategy = Boundary(steps=5, candidates=6, references=3)
    rng = ChainRandom(4, [(0, 0), (0, 1)])
    levels = strategy.schedule(problem).tolist()
    with torch.no_grad():
        pairs = [strategy.pair(problem, rng, r) for r in range(3)]
    starts = [shared(rng, 3 + k, 2).normal(problem.zeros()).flatten(1) for k in range(6)]
    errors = [
        sum(
            float((reconstructed(problem, s, some.y.flatten(1), levels) - image.flatten(1)).square().sum())
            for image, some in pairs
        )
        for s in starts
    ]
    best = starts[errors.index(min(errors))]
    ours = run_batch(problem, strategy, rng).images.flatten(1)
    expected = reconstructed(problem, best, problem.y.flatten(1), levels)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_references_are_draws_of_the_prior_measured_with_the_noise(problem: Problem) -> None:
    strategy = Boundary()
    rng = ChainRandom(0, [(0, 0), (5, 1)])
    with torch.no_grad():
        image, some = strategy.pair(problem, rng, 2)
    torch.testing.assert_close(image[0], image[1])
    rest = (some.y - problem.linear(image)).std()
    assert 0.02 < float(rest) < 0.08
    assert 0.05 < float(image.std()) < 0.3
    assert some.calls is problem.calls


def test_a_boundary_without_candidates_is_refused() -> None:
    for given in ({"candidates": 0}, {"references": 0}):
        with pytest.raises(UserError, match="strategy 'boundary'"):
            invsolve.strategy("boundary", **given)
