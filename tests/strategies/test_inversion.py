"""Exact inversion: back and forth to the last bits, the flow's own noise in the limit, and strategies that start there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import registry
from invsolve.contracts.problem import Problem
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies import _inversion as bdia
from invsolve.testing.exact import Exact, exact_posterior

STARTERS = [n for n, cls in registry.available("strategy").items() if "inverted" in cls.__dataclass_fields__]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def exact() -> Exact:
    return exact_posterior(samples=2, size=8, dtype=torch.float64, sigma=0.05)


def image_of(exact: Exact) -> Tensor:
    return exact.truth.double().expand(2, -1, -1, -1)


@pytest.mark.parametrize(("gamma", "steps", "within"), [(1.0, 40, 1e-11), (0.5, 10, 1e-9)])
def test_an_inverted_image_comes_back(exact: Exact, gamma: float, steps: int, within: float) -> None:
    levels = schedules.edm(steps, 0.003, 10.0).tolist()
    pair = bdia.invert(exact.problem, image_of(exact), levels, gamma)
    torch.testing.assert_close(bdia.replay(exact.problem, pair, levels, gamma), image_of(exact), atol=within, rtol=0)


def test_a_step_is_the_papers(exact: Exact) -> None:
    """Zhang 2023, equation 20: gamma (z_before - (z + d back)) + z + d on, d of DDIM, here of D by hand."""
    before, sigma, after, gamma = 3.0, 2.0, 1.5, 0.7
    rng = ChainRandom(0, [(0, 0), (0, 1)])
    earlier, z = rng.normal(exact.problem.zeros()), 2 * rng.normal(exact.problem.zeros())
    noise = (z - exact.problem.prior.denoise(z, torch.tensor(sigma, dtype=z.dtype))) / sigma
    expected = gamma * (earlier - (z + (before - sigma) * noise)) + z + (after - sigma) * noise
    ours = bdia.step(exact.problem, (earlier, z), before, sigma, after, gamma)
    torch.testing.assert_close(ours[1], expected)
    torch.testing.assert_close(ours[0], z)


def test_short_steps_find_the_noise_of_the_flow_itself(exact: Exact) -> None:
    """Of a Gaussian prior, eigenvalue by eigenvalue: x_sigma = sqrt((l + sigma^2) / (l + s^2)) x_s."""
    levels = schedules.geometric(300, 0.003, 10.0).tolist()
    back, _ = bdia.invert(exact.problem, image_of(exact), levels)
    values, vectors = torch.linalg.eigh(exact.prior)
    gain = ((values + levels[0] ** 2) / values.clamp_min(1e-12)).sqrt()
    flow = ((image_of(exact).flatten(1) @ vectors) * gain) @ vectors.T
    assert float((back.flatten(1) - flow).norm() / flow.norm()) < 0.05


@pytest.mark.parametrize("name", STARTERS)
def test_a_strategy_starts_at_the_inverted_reconstruction(exact: Exact, name: str) -> None:
    problem: Problem = exact.problem
    strategy = invsolve.strategy(name, inverted=1.0)
    rng = ChainRandom(0, [(0, 0), (0, 1)])
    levels = strategy.levels(problem) if hasattr(strategy, "levels") else strategy.schedule(problem).tolist()
    with torch.no_grad():
        start = strategy.init(problem, rng.at(0))["x"]
        image, pair = problem.baseline(), bdia.invert(problem, problem.baseline(), levels)
    scale = levels[0] if hasattr(strategy, "levels") else 1.0
    torch.testing.assert_close(scale * start, pair[0])
    torch.testing.assert_close(bdia.replay(problem, pair, levels), image, atol=1e-7, rtol=0)


def test_there_are_strategies_that_start_there() -> None:
    assert set(STARTERS) >= {"split", "flowchef", "flowchef-fitted", "adjoint-dpm"}


def test_what_cannot_be_inverted_is_refused(exact: Exact) -> None:
    rng = ChainRandom(0, [(0, 0), (0, 1)])
    with pytest.raises(UserError, match="inverted must be from 0 to 1"):
        invsolve.strategy("split", inverted=1.5).init(exact.problem, rng)
