"""d-flow: its objective and gradient against a transcription, and L-BFGS of every row against torch's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.problem import Problem
from invsolve.engine.batch import run_batch
from invsolve.engine.needs import check_needs
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies import _lbfgs as lbfgs
from invsolve.plugins.strategies._flow import midpoint, times
from invsolve.plugins.strategies.d_flow import DFlow
from tests.support.half_pixels import CHAINS, SIGMA_Y, half_of_the_pixels, matrix_of, noise, wiener


@pytest.fixture(scope="module")
def problem() -> Problem:
    return half_of_the_pixels()


def test_d_flows_objective_is_the_papers(problem: Problem) -> None:
    """Ben-Hamu 2024, Algorithm 1 and section 3.4: five midpoint steps of the velocity, and the density of |w|; dense."""
    steps, size = 5, 64
    w = noise(problem).requires_grad_()
    first = 1 / (1 + problem.prior.sigma_max)
    h = (1 - first) / steps
    x = w.flatten(1)

    def v(x: Tensor, t: float) -> Tensor:
        # x_t = t x1 + (1 - t) x0, so that x1 - x0 is expected to be (E[x1 | x] - x) / (1 - t).
        return (x / t @ wiener(problem, (1 - t) / t) - x) / (1 - t)

    for k in range(steps):
        t = first + k * h
        x = x + h * v(x + h / 2 * v(x, t), t + h / 2)
    fit = (problem.y.flatten(1) - x @ matrix_of(problem).T).square().sum(1)
    length = w.flatten(1).norm(dim=1)
    weight = 2 * SIGMA_Y**2
    loss = fit + weight * (length**2 / 2 - (size - 1) * length.log())
    (gradient,) = torch.autograd.grad(loss.sum(), w)
    for given, expected in ((None, weight), (0.001, 0.001)):
        value, ours = DFlow(weight=given).objective(problem, w.detach())
        away = fit + expected * (length**2 / 2 - (size - 1) * length.log())
        torch.testing.assert_close(value * expected, away.detach(), rtol=1e-9, atol=0)
        if given is None:
            torch.testing.assert_close(ours * weight, gradient, rtol=1e-8, atol=1e-10)
    assert invsolve.strategy("d-flow", preset="published").weight == 0.001  # type: ignore[attr-defined]


def test_the_flow_goes_back_where_it_came_from(problem: Problem) -> None:
    w = noise(problem)
    ends = times(200, problem)
    back = midpoint(problem, midpoint(problem, w, ends), ends[::-1])
    assert float((back - w).norm() / w.norm()) < 0.05


def test_lbfgs_takes_torchs_steps() -> None:
    """On a well-conditioned quadratic every full step is taken: torch.optim.LBFGS without a line search does the same."""
    matrix = torch.diag(torch.linspace(1, 2, 6, dtype=torch.float64))
    centre = torch.randn(2, 6, dtype=torch.float64)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        return ((x - centre) @ matrix * (x - centre)).sum(1) / 2, (x - centre) @ matrix

    state = lbfgs.start(torch.zeros(2, 6, dtype=torch.float64), objective, 4)
    for _ in range(5):
        state = lbfgs.iterate(state, objective)
    for row in range(2):
        x = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        theirs = torch.optim.LBFGS([x], lr=1, max_iter=5, history_size=4, tolerance_grad=0, tolerance_change=0)

        def closure(x: Tensor = x, row: int = row, theirs: torch.optim.Optimizer = theirs) -> Tensor:
            theirs.zero_grad()
            loss = ((x - centre[row]) @ matrix @ (x - centre[row])) / 2
            loss.backward()
            return loss

        theirs.step(closure)
        torch.testing.assert_close(state["x"][row], x.detach(), rtol=1e-9, atol=1e-12)


def test_lbfgs_reaches_the_bottom_of_a_bent_valley() -> None:
    def rosenbrock(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    state = lbfgs.start(torch.tensor([[-1.2, 1.0], [0.0, 0.0]], dtype=torch.float64), rosenbrock, 10)
    for _ in range(80):
        state = lbfgs.iterate(state, rosenbrock)
    torch.testing.assert_close(state["x"], torch.ones(2, 2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_objective_falls_and_the_data_are_met(problem: Problem) -> None:
    strategy = invsolve.strategy("d-flow", steps=25)
    outcome = run_batch(problem, strategy, ChainRandom(3, CHAINS))
    assert 0.1 < float(outcome.discrepancy.max()) < 1.1


def test_what_makes_no_sense_is_refused(problem: Problem) -> None:
    for given in ({"blend": 2.0}, {"flow_steps": 0}, {"history": 0}):
        with pytest.raises(UserError, match="strategy 'd-flow'"):
            DFlow(**given)
    with pytest.raises(UserError, match="needs Gaussian noise"):
        check_needs(DFlow(), replace(problem, noise=invsolve.Poisson(10.0)))
