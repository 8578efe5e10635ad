"""tds on operators that are not linear, and restarts: twists, weights and descents by hand, modes against quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import bench
from invsolve.bench.quadratic import Squares, Tempered
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.engine.batch import run_batch
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._expected import DRAWS, expected_twist
from invsolve.plugins.strategies.restarts import Restarts, log_weight
from invsolve.testing.exact import exact_posterior
from invsolve.testing.operators import dense

MEAN, STD, Y, SIGMA = 0.25, 0.5, 0.36, 0.05


def square(rows: int) -> Problem:
    """y = x^2 of one number."""
    prior = invsolve.load_prior("gaussian-mixture", means=torch.full((1, 1, 1), MEAN), weights=torch.ones(1), std=STD)
    operator = Squares(torch.ones(1, 1, dtype=torch.float64))
    y = torch.full((rows, 1), Y, dtype=torch.float64)
    return make_problem(prior, operator, invsolve.Gaussian(SIGMA), y, (1, 1), Scale(), rows)


def grid() -> tuple[Tensor, Tensor]:
    """Points, and the posterior's density there, by quadrature."""
    x = torch.linspace(-3, 3, 60001, dtype=torch.float64)
    log = -((x - MEAN) ** 2) / (2 * STD**2) - (x**2 - Y) ** 2 / (2 * SIGMA**2)
    density = log.exp()
    return x, density / density.sum()


def test_tds_gives_the_roots_of_a_square_their_weights() -> None:
    x, density = grid()
    share = float(density[x > 0].sum())
    problem = square(300)
    strategy = invsolve.strategy("tds", steps=30, particles=8)
    images = run_batch(problem, strategy, ChainRandom(0, [(0, s) for s in range(300)])).images.flatten()
    assert float((images > 0).double().mean()) == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / 300))
    upper = density * (x > 0)
    centre = float((upper * x).sum() / upper.sum())
    assert float(images[images > 0].mean()) == pytest.approx(centre, abs=0.01)


def test_the_expected_twist_knows_the_mean_of_a_square_and_its_own_slope() -> None:
    problem, sigma = square(3), 0.4
    x = torch.tensor([-0.5, 0.1, 0.8], dtype=torch.float64).view(3, 1, 1)
    denoised, pull, log_twist, residual = expected_twist(problem, x, sigma)
    expected = (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)
    torch.testing.assert_close(denoised, expected)
    torch.testing.assert_close(residual, Y - expected.flatten(1) ** 2)
    # Draws of variance V about D: the mean of squares is D^2 + V; their spread is that of the same draws.
    unknown = problem.prior.error(sigma)
    u = ChainRandom(0, [(0, m) for m in range(DRAWS // 2)]).normal(torch.zeros(DRAWS // 2, 1, dtype=torch.float64))
    u = (u / u.square().mean().sqrt() * math.sqrt(unknown)).flatten()
    squares = (expected.flatten()[:, None] + torch.cat([u, -u])) ** 2
    mean = expected.flatten() ** 2 + unknown
    torch.testing.assert_close(squares.mean(1), mean)
    variance = (squares - mean[:, None]).square().mean(1) + SIGMA**2
    torch.testing.assert_close(log_twist, -((Y - mean) ** 2 / variance + variance.log()) / 2)
    step = 1e-5
    above, below = (expected_twist(problem, x + s, sigma)[2] for s in (step, -step))
    torch.testing.assert_close(pull.flatten(), sigma**2 * (above - below) / (2 * step), rtol=1e-6, atol=1e-8)


def test_a_twist_of_moments_is_refused_where_nothing_is_linear() -> None:
    with pytest.raises(UserError, match="'moment' needs a linear operator"):
        run_batch(square(1), invsolve.strategy("tds", twist="moment"), ChainRandom(0, [(0, 0)]))


def test_tempered_particles_are_the_quadratures_posterior() -> None:
    x, density = grid()
    exact = Tempered(MEAN, STD, torch.ones(1, 1, dtype=torch.float64), torch.tensor([Y], dtype=torch.float64), SIGMA)
    drawn = exact.sample(4000, 0).flatten()
    assert float(drawn.mean()) == pytest.approx(float((density * x).sum()), abs=0.04)
    assert float((drawn > 0).double().mean()) == pytest.approx(float(density[x > 0].sum()), abs=0.03)
    assert float(drawn.abs().std()) == pytest.approx(
        float(((density * x**2).sum() - (density * x.abs()).sum() ** 2).sqrt()), rel=0.1
    )


def test_a_descent_is_the_heavy_ball() -> None:
    """Polyak 1964 with friction that grows: v' = m v - g, x' = x + v'; the best on the way, dense."""
    problem = exact_posterior(samples=2, size=8, dtype=torch.float64).problem
    a = dense(problem.linear, problem.image_shape)[0].double()
    y, steps, momentum = problem.y.flatten(1), 30, 0.9
    start = ChainRandom(0, [(0, 0), (0, 1)]).normal(problem.zeros())
    x, v = start.flatten(1), torch.zeros(2, 64, dtype=torch.float64)
    passed = [x]
    for k in range(steps):
        keep = max(1 - (1 - momentum) * (1 + 9 * max(0.0, (k / steps - 0.6) / 0.4)), 0)
        v = keep * v - (x @ a.T - y) @ a
        x = x + v
        passed.append(x)
    misfit = torch.stack([(p @ a.T - y).norm(dim=1) for p in passed])
    best = torch.stack(passed)[misfit.argmin(0), torch.arange(2)]
    ours = Restarts(descent=steps, momentum=momentum).descend(problem, start, 1.0)
    torch.testing.assert_close(ours.flatten(1), best, atol=1e-9, rtol=0)


def test_a_descent_that_is_thrown_up_comes_back_at_shorter_steps() -> None:
    problem = square(2)
    start = torch.tensor([4.0, -4.0], dtype=torch.float64).view(2, 1, 1)
    end = Restarts(descent=400, momentum=0.5).descend(problem, start, 1.0)
    torch.testing.assert_close(end.flatten().abs(), torch.full((2,), 0.6, dtype=torch.float64), atol=1e-3, rtol=0)


def test_weights_are_even_where_the_noise_explains_the_misfit() -> None:
    problem = square(3)
    x = torch.tensor([0.6, (0.36 + 2 * SIGMA) ** 0.5, (0.36 + 10 * SIGMA) ** 0.5], dtype=torch.float64).view(3, 1, 1)
    # Squared misfits 0, 4 and 100 of sigma^2, one of which is expected; slack 3 standard deviations of half a chi-square.
    slack = 3 / math.sqrt(2)
    expected = torch.tensor([0.0, 0.0, -(99 / 2 - slack)], dtype=torch.float64)
    torch.testing.assert_close(log_weight(problem, x), expected)


def test_phase_retrieval_is_told_up_to_sign_and_turn() -> None:
    image = torch.randn(1, 1, 4, 4)
    for same in (image, -image, image.flip(-1, -2), -image.flip(-1, -2)):
        assert float(bench.phase.away(same, image)) == 0
    assert float(bench.phase.away(image.flip(-1), image)) > 0.1


@pytest.mark.slow
def test_one_of_eight_samples_is_the_image_in_19_of_20_phase_retrievals() -> None:
    measure = bench.family("phase").make("coarse", 0, 160, "cpu")
    figures = measure(invsolve.strategy("restarts"), 1)
    assert figures["found"] >= 0.95
