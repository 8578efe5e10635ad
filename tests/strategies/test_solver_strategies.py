"""Strategies built on the solvers, against transcriptions of their papers and dense matrices."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import Strategy
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.testing.exact import exact_posterior
from invsolve.testing.operators import dense
from tests.support import bounds
from tests.support.types import narrow, offered

CHAINS = [(0, 0), (0, 1), (1, 0)]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return exact_posterior(samples=3, size=8, dtype=torch.float64).problem


def denoise(problem: Problem, x: Tensor, sigma: float) -> Tensor:
    return problem.prior.denoise(x, torch.tensor(sigma, dtype=x.dtype))


def test_steered_is_ancestral_sampling_with_corrected_pixels(problem: Problem) -> None:
    strategy = invsolve.strategy("steered", steps=15, solver="ancestral")
    levels = strategy.schedule(problem).tolist()
    mask = problem.operator.measured()
    rng = ChainRandom(3, CHAINS)
    x = levels[0] * rng.at(0).normal(problem.zeros())
    for k, (sigma, sigma_next) in enumerate(pairwise(levels), start=1):
        estimate = denoise(problem, x, sigma)
        unknown = problem.prior.error(sigma)
        # What is measured weighs in by its precision; in the noise-free limit it replaces the pixel.
        mean = (problem.y / 0.05**2 + estimate / unknown) / (1 / 0.05**2 + 1 / unknown)
        estimate = torch.where(narrow(torch.Tensor, mask), mean, estimate)
        x = estimate + (sigma_next / sigma) ** 2 * (x - estimate)
        x = x + sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2) * rng.at(k).normal(x)
    ours = run_batch(problem, strategy, ChainRandom(3, CHAINS)).images
    torch.testing.assert_close(ours, x, atol=1e-8, rtol=0)


def test_flowchef_is_the_papers_algorithm_in_flow_coordinates(problem: Problem) -> None:
    """Patel 2024, Algorithm 1: x_t <- x_t - s grad of the mean of squares at x_t - t v, then Euler's step with the same v."""
    steps = 15
    measured = problem.dof()
    strategy = invsolve.strategy("flowchef", steps=steps, strength=2 * 3.0 / measured)
    times = [s / (1 + s) for s in strategy.schedule(problem).tolist()]
    x = times[0] * ChainRandom(3, CHAINS).at(0).normal(problem.zeros())
    for t, after in pairwise(times):
        velocity = (x - denoise(problem, x / (1 - t), t / (1 - t))) / t
        clean = (x - t * velocity).requires_grad_()
        loss = (problem.y - problem.operator(clean)).square().flatten(1).sum(1) / measured
        (gradient,) = torch.autograd.grad(loss.sum(), clean)
        if after > 0:
            x = x - 3.0 * gradient
        x = x + (after - t) * velocity
    ours = run_batch(problem, strategy, ChainRandom(3, CHAINS)).images
    # The power iteration finds the operator's norm, 1, to 1e-4.
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=0)


def test_fitted_flowchef_moves_d_by_the_length_that_noise_and_prior_call_for(problem: Problem) -> None:
    strategy = invsolve.strategy("flowchef-fitted", steps=15, inner=1, strength=0.7)
    levels = strategy.schedule(problem).tolist()
    times = [s / (1 + s) for s in levels]
    assert (torch.tensor(times[:-1]).diff() + (times[0] - times[-2]) / 14).abs().max() < 1e-6
    noise = ChainRandom(3, CHAINS).at(0).normal(problem.zeros())
    x = times[0] * noise  # x_t = (1 - t) x0 + t n
    for t, after in pairwise(times):
        estimate = denoise(problem, x / (1 - t), t / (1 - t))
        velocity = (x - estimate) / t
        gradient = problem.linear.adjoint(problem.operator(estimate) - problem.y)
        length = 0.7 / (1 + 0.05**2 / problem.prior.error(t / (1 - t)))
        sigma, sigma_next = t / (1 - t), after / (1 - after)
        x = x + (after - t) * velocity - (1 - after) * (1 - sigma_next / sigma) * length * gradient
    ours = run_batch(problem, strategy, ChainRandom(3, CHAINS)).images
    # The power iteration finds the operator's norm, 1, to 1e-4.
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_splits_guidance_is_the_score_of_a_gaussian_likelihood(problem: Problem, sigma: float) -> None:
    matrix, _ = dense(problem.linear, (1, 8, 8))
    matrix = matrix.double()
    variance = problem.prior.error(sigma)
    covariance = variance * matrix @ matrix.T + 0.05**2 * torch.eye(len(matrix), dtype=torch.float64)
    x = (sigma * ChainRandom(0, CHAINS).normal(problem.zeros())).requires_grad_()
    residual = (problem.y - problem.operator(denoise(problem, x, sigma))).flatten(1)
    log = -(residual * torch.linalg.solve(covariance, residual.T).T).sum() / 2
    (score,) = torch.autograd.grad(log, x)
    wanted = sigma**2 * score
    # The point along it at which |y - A(D + a shift)| is least; beyond that it does not go.
    seen = wanted.flatten(1) @ matrix.T
    best = (residual.detach() * seen).sum(1) / (seen * seen).sum(1)
    wanted = wanted * best.clamp(0, 1).view(-1, 1, 1, 1)
    with torch.no_grad():
        got, rest = offered(invsolve.strategy("split")).guidance(problem, x.detach(), sigma)
    torch.testing.assert_close(rest.flatten(1), residual.detach())
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("splitting", ["lie", "strang"])
def test_splits_history_holds_the_prior_alone(problem: Problem, splitting: str) -> None:
    strategy = invsolve.strategy("split", splitting=splitting)
    x = 2.0 * ChainRandom(0, CHAINS).normal(problem.zeros())
    with torch.no_grad():
        shift, _ = offered(strategy).guidance(problem, x, 2.0)
        state = strategy.step(problem, {"x": x}, 2.0, 1.0, ChainRandom(0, CHAINS))
    share = 0.5 if splitting == "lie" else 1 - 0.5**0.5
    torch.testing.assert_close(state["past"][:, 0], denoise(problem, x + share * shift, 2.0))
    assert float(shift.abs().max()) > 0.01


def test_projection_replaces_noise_free_pixels_at_the_level_reached() -> None:
    sharp = exact_posterior(samples=3, size=16, sigma=1e-6, dtype=torch.float64).problem
    strategy = invsolve.strategy("score-sde")
    mask = sharp.operator.measured()
    x = ChainRandom(1, CHAINS).normal(sharp.zeros())
    with torch.no_grad():
        moved = offered(strategy).project(sharp, x, 0.7, 0.1, ChainRandom(0, CHAINS))
    noise = 0.7 * ChainRandom(0, CHAINS).normal(x)
    torch.testing.assert_close(moved, torch.where(narrow(torch.Tensor, mask), sharp.y + noise, x), atol=1e-5, rtol=0)


def variance_of_score_sde(strategy: Strategy, problem: Problem, prior: float, noise: float) -> float:
    """Variance of its image of one pixel of variance `prior`, measured with variance `noise`; followed exactly."""

    def project(variance: float, sigma: float, fresh: float) -> float:
        weight = fresh / (fresh + noise)
        return (1 - weight) ** 2 * variance + (weight * sigma) ** 2

    levels = strategy.schedule(problem).tolist()
    variance = project(levels[0] ** 2, levels[0], levels[0] ** 2)
    for sigma, after in pairwise(levels):
        unknown = prior * sigma**2 / (prior + sigma**2)
        gain = unknown / sigma**2
        if after == 0:
            return variance * (gain * noise / (unknown + noise)) ** 2
        share = 1 - (after / sigma) ** 2
        fresh = sigma**2 - after**2
        variance = project((1 - share + share * gain) ** 2 * variance + fresh, after, fresh)
        score = 1 / (prior + after**2)
        # |n|^2 is expected to be 1 and |score|^2 to be `score`; a tenth of 1 / after^2 at least, as the strategy has it.
        length = 2 * 0.16**2 / max(score, 0.1 / after**2)
        variance = project((1 - length * score) ** 2 * variance + 2 * length, after, length)
    raise AssertionError("a schedule ends at zero")


@pytest.mark.parametrize("steps", [40, 120])
def test_score_sde_has_the_width_of_its_algorithm(steps: int) -> None:
    # Weighed against sigma^2 in every step, the data counted anew each time.
    size, rows, std, sigma = 8, 128, 0.15, 0.05
    prior = invsolve.load_prior("gaussian-field", size=size, spectrum=torch.full((size, size), std**2))
    y = torch.zeros(rows, 1, size, size, dtype=torch.float64)
    everything = invsolve.operator("inpainting", mask=torch.ones(size, size))
    problem = Problem(prior, everything, invsolve.Gaussian(sigma), y, (1, size, size))
    strategy = invsolve.strategy("score-sde", steps=steps)
    images = run_batch(problem, strategy, ChainRandom(1, [(0, s) for s in range(rows)])).images
    wanted = math.sqrt(variance_of_score_sde(strategy, problem, std**2, sigma**2))
    assert abs(float(images.flatten(1).var(0).mean().sqrt()) / wanted - 1) < bounds.width_error(rows, size**2)
    # The bias that its docstring states.
    for count, short in ((40, 0.17), (120, 0.10), (400, 0.05)):
        longer = invsolve.strategy("score-sde", steps=count)
        exact = std**2 * sigma**2 / (std**2 + sigma**2)
        assert 1 - math.sqrt(variance_of_score_sde(longer, problem, std**2, sigma**2) / exact) == pytest.approx(
            short, abs=0.005
        )


class First(invsolve.LinearOperator):
    """The first of two pixels."""

    image_shape = (1, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 0].flatten(1)


def test_score_sdes_langevin_steps_keep_the_width_in_two_dimensions() -> None:
    # Steps as long as each sample's own score allows left the pixel that is not seen 1.5 to 2.3 times too wide.
    rows = 800
    prior = invsolve.load_prior("gaussian-mixture", means=torch.zeros(1, 1, 1, 2))
    y = torch.full((rows, 1), 0.5, dtype=torch.float64)
    problem = Problem(prior, First(), invsolve.Gaussian(0.5), y, (1, 1, 2))
    strategy = invsolve.strategy("score-sde", steps=100)
    hidden = run_batch(problem, strategy, ChainRandom(1, [(0, s) for s in range(rows)])).images[..., 1].flatten()
    # It is N(0, 1).
    assert abs(float(hidden.std()) - 1) < bounds.width_error(rows)
    assert abs(float(hidden.mean())) < bounds.mean_error(rows)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("steered", {}), ("steered", {"solver": "heun"}), ("split", {}), ("split", {"splitting": "strang", "solver": "pndm"}),
     ("score-sde", {}), ("score-sde", {"corrections": 2}), ("flowchef", {}), ("flowchef-fitted", {})],
)  # fmt: skip
def test_cost_is_what_was_asked_for(problem: Problem, name: str, settings: dict) -> None:
    strategy = invsolve.strategy(name, **settings).at_cost(60)
    # A copy counts its calls from zero.
    facts = run_batch(replace(problem), strategy, ChainRandom(0, CHAINS)).facts
    assert 50 <= facts["network_calls"] + facts["vjp_calls"] <= 60


@pytest.mark.parametrize("name", ["steered", "split"])
def test_an_unknown_solver_is_refused_when_the_strategy_is_made(name: str) -> None:
    with pytest.raises(invsolve.UserError, match=r"unknown solver 'unipc'.*unipc-2"):
        invsolve.strategy(name, solver="unipc")
