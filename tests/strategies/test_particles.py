"""tds and mcgdiff: resampling, kernels and twists against closed forms and dense matrices, and the modes of a mixture."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

import invsolve
from invsolve.bench.gaussian import Compression
from invsolve.contracts.operator import LinearOperator, matching
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.priors.analytic.mixture import GaussianMixture
from invsolve.plugins.strategies import _particles as particles
from invsolve.plugins.strategies.mcgdiff import gained, guided
from invsolve.plugins.strategies.tds import isotropic_twist, moment_twist, short_of_the_data
from invsolve.testing.exact import exact_posterior
from tests.support.types import linear_operator

WEIGHTS = torch.tensor([[0.5, 0.21, 0.02, 0.27], [0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)


class Matrix(LinearOperator):
    """Any matrix (m, n) on images (1, 1, n)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.image_shape = matrix, (1, 1, matrix.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ matching(self.matrix, x).T


class TestResampling:
    def counts(self, uniform: float) -> Tensor:
        ancestors = particles.systematic(WEIGHTS.log(), torch.full((3,), uniform))
        return torch.stack([row.bincount(minlength=4) for row in ancestors])

    def test_each_count_is_right_to_within_one(self) -> None:
        for uniform in (0.0, 0.3, 0.71, 0.999):
            assert bool(((self.counts(uniform) - 4 * WEIGHTS).abs() < 1).all())

    def test_counts_are_the_weights_on_average(self) -> None:
        uniform = (torch.arange(1000) + 0.5) / 1000
        mean = torch.stack([self.counts(float(u)) for u in uniform]).double().mean(0)
        torch.testing.assert_close(mean, 4 * WEIGHTS, atol=2e-3, rtol=0)

    def test_one_particle_is_drawn_by_the_weights(self) -> None:
        drawn = torch.cat([particles.one(WEIGHTS.log(), torch.full((3,), (k + 0.5) / 1000)) for k in range(1000)], 1)
        share = torch.stack([row.bincount(minlength=4) for row in drawn]) / 1000
        torch.testing.assert_close(share.double(), WEIGHTS, atol=2e-3, rtol=0)

    def test_weights_far_below_one_do_not_underflow(self) -> None:
        low = WEIGHTS.float().log() - 1e4
        assert torch.equal(
            particles.systematic(low, torch.full((3,), 0.4)), particles.systematic(WEIGHTS.log(), torch.full((3,), 0.4))
        )
        torch.testing.assert_close(particles.effective(low)[1:], torch.tensor([1.0, 4.0]))

    def test_only_rows_in_need_are_resampled(self) -> None:
        rng = ChainRandom(0, [(0, 0), (1, 0), (2, 0)])
        ancestors, log = particles.resample_where_needed(WEIGHTS.log(), 0.6, rng.at(1))
        assert ancestors[1].tolist() == [1, 1, 1, 1]
        assert log[1].tolist() == [0, 0, 0, 0]
        assert ancestors[2].tolist() == [0, 1, 2, 3]
        torch.testing.assert_close(log[2], WEIGHTS[2].log())


def test_the_reverse_kernel_of_a_white_field_is_bayes_rule() -> None:
    std, sigma, after, x = 0.7, 1.3, 0.8, 0.45
    wide, narrow = std**2 + sigma**2, std**2 + after**2
    estimate, unknown = std**2 / wide * x, std**2 * sigma**2 / wide
    mean, variance = particles.reverse_kernel(torch.tensor(x), torch.tensor(estimate), sigma, after, unknown)
    # x_after and x_sigma share x0 and the noise up to `after`: their covariance is the variance of the first.
    torch.testing.assert_close(float(mean), narrow / wide * x)
    torch.testing.assert_close(float(variance), narrow - narrow**2 / wide)


@pytest.fixture(scope="module")
def field() -> Problem:
    return exact_posterior(Compression(), samples=3, dtype=torch.float64).problem


def some_images(problem: Problem, sigma: float) -> Tensor:
    return sigma * ChainRandom(4, [(0, s) for s in range(problem.batch)]).normal(problem.zeros())


def test_the_isotropic_twist_is_the_dense_formula(field: Problem) -> None:
    sigma = 0.3
    x = some_images(field, sigma)
    denoised, pull, log_twist, residual = isotropic_twist(field, x, sigma)
    matrix = field.linear(torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16)).T
    prior = field.prior.covariance()
    jacobian = prior @ torch.linalg.inv(prior + sigma**2 * torch.eye(256, dtype=torch.float64))
    unknown = float((sigma**2 * jacobian).diagonal().mean())
    spread = unknown * matrix @ matrix.T + 0.05**2 * torch.eye(64, dtype=torch.float64)
    away = field.y - x.flatten(1) @ jacobian.T @ matrix.T
    wanted = MultivariateNormal(torch.zeros(64, dtype=torch.float64), spread).log_prob(away)
    torch.testing.assert_close(log_twist - log_twist[0], wanted - wanted[0], atol=1e-4, rtol=1e-5)
    slope = sigma**2 * (torch.linalg.solve(spread, away.T).T @ matrix @ jacobian)
    torch.testing.assert_close(pull.flatten(1), slope, atol=1e-5, rtol=0)
    torch.testing.assert_close(denoised.flatten(1), x.flatten(1) @ jacobian.T)
    torch.testing.assert_close(residual, away)


def test_the_isotropic_twist_stays_accurate_without_noise() -> None:
    logs, images = [], some_images(exact_posterior(samples=3, dtype=torch.float64).problem, 0.3)
    for dtype in (torch.float32, torch.float64):
        problem = exact_posterior(
            linear_operator("inpainting", fraction=0.5, image_size=16), samples=3, dtype=dtype
        ).problem
        problem = replace(problem, noise=invsolve.Gaussian(0.0))
        logs.append(isotropic_twist(problem, images.to(dtype), 0.3)[2].double())
    single, double = (log - log[0] for log in logs)
    torch.testing.assert_close(single, double, atol=0.05, rtol=1e-3)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_the_moment_twist_is_exact_for_a_gaussian_field(kind: str) -> None:
    sigma = 0.4
    prior = invsolve.load_prior("gaussian-field", size=4, std=0.5, length=1.0)
    operator = (
        Matrix(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).double())
        if kind == "real"
        else invsolve.operator("mri", image_size=4, mask=[0, 1, 1, 0])
    )
    if kind == "real":
        operator.image_shape = (1, 4, 4)
    y = torch.randn(2, 3).double() if kind == "real" else torch.randn(2, 1, 4, 4, dtype=torch.complex128)
    mask = operator.measured()
    y = y if mask is None else y * mask
    problem = make_problem(prior, operator, invsolve.Gaussian(0.3), y, (1, 4, 4), Scale())
    x = some_images(problem, 1.0)
    denoised, pull, log_twist, _ = moment_twist(problem, x, sigma)
    columns = problem.operator(torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4))
    columns = torch.view_as_real(columns) if columns.is_complex() else columns
    matrix = columns.flatten(1).T
    kept = matrix.abs().sum(1) > 1e-9
    matrix = matrix[kept]
    data = (torch.view_as_real(y) if y.is_complex() else y).flatten(1)
    covariance = prior.covariance()
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(16, dtype=torch.float64))
    spread = matrix @ (sigma**2 * gain) @ matrix.T + 0.09 * torch.eye(len(matrix), dtype=torch.float64)
    away = data[:, kept] - x.flatten(1) @ gain.T @ matrix.T
    wanted = MultivariateNormal(torch.zeros(len(matrix), dtype=torch.float64), spread).log_prob(away)
    unmeasured = -(data[:, ~kept] ** 2).sum(1) / (2 * 0.09)  # what lies outside the operator's range
    torch.testing.assert_close(log_twist[1] - log_twist[0], (wanted + unmeasured)[1] - (wanted + unmeasured)[0])
    posterior = torch.linalg.solve(spread, away.T).T @ matrix @ (sigma**2 * gain)
    torch.testing.assert_close(pull.flatten(1), posterior)
    torch.testing.assert_close(denoised.flatten(1), x.flatten(1) @ gain.T)


def two_modes(rows: int, matrix: Tensor | None = None, y: float = 0.5, sigma: float = 1.0) -> tuple[Problem, float]:
    """Modes (-4, 3) and (4, -3) of deviation 1 in the plane, one datum, and the exact weight of the second."""
    means = torch.tensor([[-4.0, 3.0], [4.0, -3.0]], dtype=torch.float64)
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    matrix = torch.tensor([[0.3, 0.2]], dtype=torch.float64) if matrix is None else matrix
    prior = GaussianMixture(means.view(2, 1, 1, 2), weights, 1.0)
    operator = Matrix(matrix)
    data = torch.full((rows, 1), y, dtype=torch.float64)
    density = Normal(means @ matrix[0], (matrix.square().sum() + sigma**2).sqrt()).log_prob(data[0])
    exact = (weights.log() + density).softmax(0)
    return Problem(prior, operator, invsolve.Gaussian(sigma), data, (1, 1, 2)), float(exact[1])


@pytest.mark.parametrize(
    "strategy",
    [
        invsolve.strategy("tds", particles=8, steps=50, start=500.0),
        invsolve.strategy("tds", particles=8, steps=50, start=500.0, twist="moment"),
        invsolve.strategy("mcgdiff", particles=16, steps=50, start=500.0),
    ],
    ids=["tds isotropic", "tds moment", "mcgdiff"],
)
def test_modes_get_their_weights_and_their_width(strategy: invsolve.Strategy) -> None:
    rows = 300
    problem, exact = two_modes(rows)
    x = run_batch(problem, strategy, ChainRandom(0, [(0, s) for s in range(rows)])).images.flatten(1)
    second = x[:, 0] > 0
    # Three and a half standard errors of a share of 300 draws; of a mean of 210 and of a width of 210, 0.24 and 0.17.
    assert abs(float(second.double().mean()) - exact) < 3.5 * math.sqrt(exact * (1 - exact) / rows)
    a = problem.linear.matrix[0]
    covariance = torch.eye(2, dtype=torch.float64) - torch.outer(a, a) / (a.square().sum() + 1)
    mean = torch.tensor([-4.0, 3.0], dtype=torch.float64)
    mean = mean + a / (a.square().sum() + 1) * (0.5 - a @ mean)
    first = x[~second]
    assert float((first.mean(0) - mean).abs().max()) < 3.5 / math.sqrt(len(first))
    torch.testing.assert_close(first.std(0), covariance.diagonal().sqrt(), atol=3.5 / math.sqrt(2 * len(first)), rtol=0)


def test_few_numbers_are_twisted_by_the_moment() -> None:
    problem, _ = two_modes(2)
    run = {t: run_batch(problem, invsolve.strategy("tds", particles=2, steps=5, twist=t), ChainRandom(0, [(0, 0), (0, 1)])).images
           for t in ("auto", "moment", "isotropic")}  # fmt: skip
    assert torch.equal(run["auto"], run["moment"])
    assert not torch.equal(run["auto"], run["isotropic"])


def test_the_owed_weight_is_twist_times_ratio_of_the_kernels() -> None:
    problem, _ = two_modes(2)
    strategy = invsolve.strategy("tds", particles=3, threshold=0.0, twist="isotropic")
    rng = ChainRandom(2, [(0, 0), (0, 1)])
    x = 3 * rng.normal(torch.zeros(2, 3, 1, 1, 2, dtype=torch.float64))
    zero = x.new_zeros(2, 3)
    new = strategy.step(problem, {"x": x, "log_weight": zero, "owed": zero}, 3.0, 2.0, rng.at(1))
    many = particles.for_rows(problem, torch.tensor([0, 0, 0, 1, 1, 1]))
    denoised, pull, log_twist, residual = isotropic_twist(many, x.flatten(0, 1), 3.0)
    mean, variance = particles.reverse_kernel(x.flatten(0, 1), denoised, 3.0, 2.0, problem.prior.error(3.0))
    push = short_of_the_data(problem, ((1 - 4 / 9) * pull).view(x.shape), residual.view(2, 3, 1)).flatten(0, 1)
    there = new["x"].flatten(0, 1)
    proposed = Normal(mean + push, math.sqrt(variance)).log_prob(there).flatten(1).sum(1)
    ancestral = Normal(mean, math.sqrt(variance)).log_prob(there).flatten(1).sum(1)
    torch.testing.assert_close(new["owed"].flatten(), log_twist + proposed - ancestral)
    torch.testing.assert_close(new["log_weight"].flatten(), log_twist)


def test_a_push_ends_at_the_data_at_most() -> None:
    problem, _ = two_modes(1)
    push = torch.tensor([[[[[30.0, 0.0]]], [[[0.5, 0.0]]], [[[-1.0, 0.0]]]]], dtype=torch.float64)
    short = short_of_the_data(problem, push, torch.full((1, 3, 1), 0.6, dtype=torch.float64))
    torch.testing.assert_close(short.flatten(), torch.tensor([2.0, 0, 0.5, 0, 0, 0], dtype=torch.float64))


def test_mcgdiff_weights_and_moves_by_kernel_times_potential() -> None:
    sigma, after, tau, unknown, datum = 1.0, 0.6, 0.3, 0.2, 0.7
    c, d = torch.tensor([[0.2]]).double(), torch.tensor([[0.4]]).double()
    y, level = torch.tensor([[datum]]).double(), torch.tensor([[tau]]).double()
    grid = torch.linspace(-6, 6, 40001, dtype=torch.float64)
    ratio = after**2 / sigma**2
    kernel = Normal(ratio * 0.2 + (1 - ratio) * 0.4, math.sqrt(after**2 * (1 - ratio) + (1 - ratio) ** 2 * unknown))
    product = kernel.log_prob(grid) + Normal(grid, math.sqrt(after**2 - tau**2)).log_prob(torch.tensor(datum).double())
    step = float(grid[1] - grid[0])
    wanted = product.logsumexp(0) + math.log(step)
    wanted = wanted - Normal(0.2, math.sqrt(sigma**2 - tau**2)).log_prob(torch.tensor(datum).double())
    torch.testing.assert_close(gained(c, d, y, level, sigma, after, unknown)[0], wanted)
    weight = product.softmax(0)
    mean = (weight * grid).sum()
    std = (weight * (grid - mean) ** 2).sum().sqrt()
    for noise in (-1.0, 0.0, 2.0):
        there = guided(c, d, y, level, torch.tensor([[noise]]).double(), sigma, after, unknown)
        torch.testing.assert_close(there[0, 0], mean + noise * std)


def test_mcgdiff_passes_the_datum_at_its_own_noise_level() -> None:
    sigma, after, tau = 1.0, 0.6, 0.8
    c, d = torch.tensor([[0.2]]).double(), torch.tensor([[0.4]]).double()
    y, level = torch.tensor([[0.7]]).double(), torch.tensor([[tau]]).double()
    at_tau = Normal(tau**2 * 0.2 + (1 - tau**2) * 0.4, tau * math.sqrt(1 - tau**2))
    before = Normal(torch.tensor(0.2).double(), math.sqrt(1 - tau**2))
    wanted = at_tau.log_prob(torch.tensor(0.7)) - before.log_prob(torch.tensor(0.7))
    torch.testing.assert_close(gained(c, d, y, level, sigma, after, 0.0)[0], wanted.double(), rtol=1e-5, atol=1e-6)
    there = guided(c, d, y, level, torch.ones(1, 1).double(), sigma, after, 0.0)
    ratio = after**2 / tau**2
    torch.testing.assert_close(float(there), ratio * 0.7 + (1 - ratio) * 0.4 + after * math.sqrt(1 - ratio))


@pytest.mark.parametrize("name", ["tds", "mcgdiff"])
def test_items_with_other_data_and_noise_do_not_touch_each_other(name: str) -> None:
    problem, _ = two_modes(3)
    sigma = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    y = torch.tensor([[0.5], [-1.0], [3.0]], dtype=torch.float64)
    problem = replace(problem, y=y, noise=invsolve.Gaussian(sigma))
    strategy = invsolve.strategy(name, particles=5, steps=12, start=500.0)
    chains = [(0, 0), (1, 0), (2, 0)]
    together = run_batch(problem, strategy, ChainRandom(0, chains)).images
    for k in range(3):
        own = replace(problem, y=y[k : k + 1], noise=invsolve.Gaussian(sigma[k : k + 1]))
        alone = run_batch(own, strategy, ChainRandom(0, chains[k : k + 1])).images
        torch.testing.assert_close(alone[0], together[k])


@pytest.mark.parametrize("name", ["tds", "mcgdiff"])
def test_a_sample_costs_its_particles_and_ends_at_the_price_asked(name: str) -> None:
    problem, _ = two_modes(2)
    for evaluations in (100, 400):
        strategy = invsolve.strategy(name, start=500.0).at_cost(evaluations)
        facts = run_batch(replace(problem), strategy, ChainRandom(0, [(0, 0), (0, 1)])).facts
        spent = facts["network_calls"] + facts["vjp_calls"]
        assert 0.8 * evaluations <= spent <= evaluations


@pytest.mark.parametrize("name", ["tds", "mcgdiff"])
def test_no_particles_are_refused(name: str) -> None:
    problem, _ = two_modes(1)
    with pytest.raises(invsolve.UserError, match="particles"):
        run_batch(problem, invsolve.strategy(name, particles=0), ChainRandom(0, [(0, 0)]))


def test_the_moment_twist_refuses_many_data() -> None:
    problem = exact_posterior(samples=1).problem
    with pytest.raises(invsolve.UserError, match="at most 64 numbers in y, here are 256"):
        run_batch(problem, invsolve.strategy("tds", twist="moment"), ChainRandom(0, [(0, 0)]))


def test_a_mixture_knows_its_error_and_the_noise_that_hides_its_modes() -> None:
    problem, _ = two_modes(1)
    prior = problem.prior
    assert prior.sigma_max >= 10 * 5  # the first mean is 3 from the centre, the second 7
    rows, sigma = 2000, 3.0
    rng = ChainRandom(0, [(0, s) for s in range(rows)])
    truth = prior.sample(rng, torch.zeros(1, dtype=torch.float64))
    denoised = prior.denoise(truth + sigma * rng.normal(truth), torch.tensor(sigma, dtype=torch.float64))
    squared = (denoised - truth).square().flatten(1).mean(1)
    assert abs(float(squared.mean()) - prior.error(sigma)) < 4 * float(squared.std()) / math.sqrt(rows)
