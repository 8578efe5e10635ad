"""code: a whole run against a transcription in the paper's variance-preserving coordinates, its clip, what it refuses."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.problem import Problem
from invsolve.engine.batch import run_batch
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies.confident_editing import CODE
from invsolve.testing.exact import exact_posterior

CHAINS = [(0, 0), (0, 1)]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return exact_posterior(samples=2, size=8, dtype=torch.float64, sigma=0.05).problem


def test_code_is_algorithm_1(problem: Problem) -> None:
    """Van Delft 2024: DDIM up by a noise predictor of the variance-preserving state, Langevin there, DDIM down."""
    strategy = CODE(depth=0.3, corrections=8, length=1e-3, flow_steps=6)
    rng = ChainRandom(3, CHAINS)
    down = strategy.levels(problem).tolist()

    def alpha(sigma: float) -> float:
        return 1 / math.sqrt(1 + sigma**2)

    def predicted(x: Tensor, sigma: float) -> Tensor:
        clean = problem.prior.denoise(x / alpha(sigma), torch.tensor(sigma, dtype=x.dtype))
        return (x - alpha(sigma) * clean) / (alpha(sigma) * sigma)

    def ddim(x: Tensor, sigma: float, after: float) -> Tensor:
        e = predicted(x, sigma)
        return alpha(after) * (x / alpha(sigma) - sigma * e) + alpha(after) * after * e

    up = down[-2::-1]
    # The mean of this prior is zero: every other pixel is measured, and shrunk as its variance says.
    variance = problem.prior.error(problem.prior.sigma_max)
    image = problem.y * variance / (variance + 0.05**2)
    x = alpha(up[0]) * (image + up[0] * rng.at(0).normal(problem.zeros()))
    for sigma, above in pairwise(up):
        x = ddim(x, sigma, above)
    top = down[0]
    for k in range(8):
        e = 1e-3 * 0.8 ** (k // 2)
        score = -predicted(x, top) / (alpha(top) * top)
        x = x + e * score + math.sqrt(2 * e) * rng.at(k + 1).normal(x)
    for sigma, after in pairwise(down):
        x = ddim(x, sigma, after)
    ours = run_batch(problem, strategy, ChainRandom(3, CHAINS)).images
    torch.testing.assert_close(ours, x, atol=1e-10, rtol=0)


def test_what_lies_beyond_belief_is_held_back(problem: Problem) -> None:
    z = torch.tensor([[-100.0, 0.0, 100.0]])
    known = replace(problem, known=copy.copy(problem.known))
    known.prior.data_range = (0.0, 2.0)
    torch.testing.assert_close(CODE(confidence=2.0).confident(known, z, 0.5), torch.tensor([[-2.0, 0.0, 2.0]]))
    assert CODE().confident(problem, z, 0.5) is z


def test_what_makes_no_sense_is_refused(problem: Problem) -> None:
    for given in ({"depth": 0.0}, {"flow_steps": 1}, {"corrections": -1}, {"length": 0.0}):
        with pytest.raises(UserError, match="strategy 'code'"):
            invsolve.strategy("code", **given)
    bent, prior = invsolve.operator("phase-retrieval"), invsolve.load_prior("gaussian-field", size=8)
    with pytest.raises(UserError, match="needs a linear operator"):
        invsolve.reconstruct(torch.ones(1, 1, 16, 16), bent, prior, noise=invsolve.Gaussian(0.01), strategy="code")
