"""adjoint-dpm: its gradient against autograd through all steps, and its optimum against the posterior's mean."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import invsolve
from invsolve.contracts.problem import Problem
from invsolve.engine.batch import run_batch
from invsolve.engine.needs import check_needs
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies.adjoint_dpm import AdjointDPM
from invsolve.testing.exact import exact_posterior
from tests.support.half_pixels import CHAINS, SIGMA_Y, half_of_the_pixels, matrix_of, noise, wiener


@pytest.fixture(scope="module")
def problem() -> Problem:
    return half_of_the_pixels()


def test_the_adjoint_is_the_gradient_through_all_steps(problem: Problem) -> None:
    """Against autograd through the unrolled DDIM, and Pan's negative log density written out."""
    strategy = AdjointDPM(flow_steps=6, hold=0.7)
    w = noise(problem).requires_grad_()
    levels = strategy.levels(problem)
    x = levels[0] * w.flatten(1)
    for sigma, after in pairwise(levels):
        denoised = x @ wiener(problem, sigma)
        x = denoised + after / sigma * (x - denoised)
    fit = (problem.y.flatten(1) - x @ matrix_of(problem).T).square().sum(1)
    loss = fit / (2 * SIGMA_Y**2) + 0.7 * w.flatten(1).square().sum(1) / 2
    (gradient,) = torch.autograd.grad(loss.sum(), w)
    value, ours = strategy.objective(problem, w.detach())
    torch.testing.assert_close(value, loss.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(ours, gradient, rtol=1e-8, atol=1e-8)


def test_adjoint_dpm_ends_at_the_posteriors_mean_as_the_flows_steps_grow_short() -> None:
    exact = exact_posterior(samples=1, size=8, dtype=torch.float64, sigma=SIGMA_Y)
    errors = []
    for flow_steps in (5, 20):
        strategy = AdjointDPM(steps=20, flow_steps=flow_steps)
        image = run_batch(exact.problem, strategy, ChainRandom(0, [(0, 0)])).images.flatten()
        errors.append(float(((image - exact.mean) / exact.std).square().mean().sqrt()))
    # Euler's error is of first order.
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 0.2


def test_the_objective_falls_and_the_data_are_met(problem: Problem) -> None:
    strategy = invsolve.strategy("adjoint-dpm", steps=25)
    outcome = run_batch(problem, strategy, ChainRandom(3, CHAINS))
    assert 0.1 < float(outcome.discrepancy.max()) < 1.1


def test_what_makes_no_sense_is_refused(problem: Problem) -> None:
    for given in ({"hold": -1.0}, {"flow_steps": 0}, {"history": 0}):
        with pytest.raises(UserError, match="strategy 'adjoint-dpm'"):
            AdjointDPM(**given)
    with pytest.raises(UserError, match="needs Gaussian noise"):
        check_needs(AdjointDPM(), replace(problem, noise=invsolve.Poisson(10.0)))
