"""daps and pnp-dm: their draws against closed forms, dense matrices and numerical integrals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.bench.gaussian import Compression
from invsolve.contracts.operator import LinearOperator, Operator, matching
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._likelihood import draw, gaussian_draw, langevin
from invsolve.plugins.strategies._reverse import reverse
from invsolve.testing.exact import exact_posterior
from tests.support import bounds
from tests.support.types import narrow


class Matrix(LinearOperator):
    """Any matrix (m, n) on images (1, 1, n)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.image_shape = matrix, (1, 1, matrix.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ matching(self.matrix, x).T


class Hidden(Operator):
    """The same as an operator that does not say that it is linear."""

    def __init__(self, inner: LinearOperator) -> None:
        self.inner, self.image_shape = inner, inner.image_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Transmission(Operator):
    """y = exp(-2 x), pixel by pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return (-2 * x).exp()


class Square(Operator):
    """y = x^2, pixel by pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


ROWS = 800
MATRIX = torch.tensor([[1.0, 0.5, 0.0, -1.0], [0.0, 2.0, 1.0, 0.3]], dtype=torch.float64)
CENTRE = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64)
DATA = torch.tensor([1.2, -0.4], dtype=torch.float64)
SIGMA, VARIANCE = 0.4, 0.49


def linear_problem(operator: Operator, rows: int = ROWS) -> Problem:
    return Problem(None, operator, invsolve.Gaussian(SIGMA), DATA.expand(rows, 2), (1, 1, 4))


def chains(rows: int) -> ChainRandom:
    return ChainRandom(1, [(0, s) for s in range(rows)])


def close_to_the_posterior(draws: Tensor) -> None:
    """Mean and covariance of draws (rows, 4) within four standard errors of the dense formula."""
    precision = MATRIX.T @ MATRIX / SIGMA**2 + torch.eye(4, dtype=torch.float64) / VARIANCE
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (MATRIX.T @ DATA / SIGMA**2 + CENTRE / VARIANCE)
    error = (draws.mean(0) - mean) / (covariance.diagonal() / len(draws)).sqrt()
    assert float(error.abs().max()) < 4
    size = covariance.diagonal().sqrt()
    wrong = (draws.T.cov() - covariance) / torch.outer(size, size)
    assert float(wrong.abs().max()) < 4 * math.sqrt(2 / len(draws))


def test_perturb_and_solve_draws_the_gaussian_posterior() -> None:
    x = gaussian_draw(linear_problem(Matrix(MATRIX)), CENTRE.expand(ROWS, 1, 1, 4), VARIANCE, chains(ROWS))
    close_to_the_posterior(x.flatten(1))


@pytest.mark.parametrize("wrap", [lambda a: a, Hidden])
def test_langevin_draws_the_same_from_afar_and_finds_its_step(wrap: Callable[[LinearOperator], Operator]) -> None:
    problem, centre = linear_problem(wrap(Matrix(MATRIX))), CENTRE.expand(ROWS, 1, 1, 4)
    x, pace = langevin(problem, centre, VARIANCE, centre + 1, centre.new_zeros(ROWS), 120, chains(ROWS))
    close_to_the_posterior(x.flatten(1))
    assert float(pace.exp().mean()) < 0.9  # the first try, the Gaussian's own variance, is too long for these data


def test_langevin_keeps_rows_apart() -> None:
    problem = linear_problem(Hidden(Matrix(MATRIX)), 3)
    centre = CENTRE.expand(3, 1, 1, 4) * torch.tensor([1.0, 50.0, -1.0], dtype=torch.float64).view(3, 1, 1, 1)
    rng = ChainRandom(1, [(0, 0), (1, 0), (2, 0)])
    together, _ = langevin(problem, centre, VARIANCE, centre, centre.new_zeros(3), 20, rng)
    alone, _ = langevin(
        linear_problem(problem.operator, 1),
        centre[2:],
        VARIANCE,
        centre[2:],
        centre.new_zeros(1),
        20,
        ChainRandom(1, [(2, 0)]),
    )
    torch.testing.assert_close(together[2:], alone)


def test_complex_data_are_drawn_from_the_posterior_too() -> None:
    operator = invsolve.operator("mri", image_size=4, mask=[1, 0, 1, 1])
    problem = make_problem(
        None, operator, invsolve.Gaussian(0.3), torch.zeros(ROWS, 1, 4, 4, dtype=torch.complex128), (2, 4, 4), Scale()
    )
    x = gaussian_draw(problem, problem.zeros(), 0.25, chains(ROWS)).flatten(1)
    columns = problem.operator(torch.eye(32, dtype=torch.float64).view(32, 2, 4, 4)).flatten(1)
    matrix = torch.view_as_real(columns).flatten(1).T
    covariance = torch.linalg.inv(matrix.T @ matrix / 0.3**2 + torch.eye(32, dtype=torch.float64) / 0.25)
    torch.testing.assert_close(x.T.cov(), covariance, atol=4 * math.sqrt(2 / ROWS) * 0.25, rtol=0)


def test_the_flow_of_a_gaussian_field_has_a_closed_form() -> None:
    problem = exact_posterior(samples=2, dtype=torch.float64).problem
    rng = ChainRandom(0, [(0, 0), (0, 1)])
    x = 3.0 * rng.normal(problem.zeros())
    spectrum = narrow(torch.Tensor, problem.prior.spectrum)
    wanted = torch.fft.ifft2((spectrum / (spectrum + 9.0)).sqrt() * torch.fft.fft2(x)).real
    end, first = reverse(problem, x, 3.0, 80, 0.0, rng)
    # The grid ends at sigma_min = 0.01, of which one step of size 0.01 is left.
    torch.testing.assert_close(end, wanted, atol=4e-3, rtol=0)
    torch.testing.assert_close(first, problem.denoise(x, 3.0))
    assert torch.equal(reverse(problem, x, 3.0, 1, 0.0, rng)[0], first)


@pytest.mark.parametrize("over", [0.0, 1e-15, 1e-9])
def test_there_is_no_way_left_at_the_last_level(over: float) -> None:
    problem = exact_posterior(samples=2, dtype=torch.float64).problem
    sigma = problem.prior.sigma_min * (1 + over)
    x = sigma * chains(2).normal(problem.zeros())
    image, first = reverse(problem, x, sigma, 5, 0.0, chains(2))
    torch.testing.assert_close(image, problem.denoise(x, sigma))
    assert torch.equal(image, first)


def test_daps_with_the_papers_five_steps_of_the_flow_ends_at_finite_images() -> None:
    # Its schedule ends at sigma_min but for rounding, where steps of the flow had no length.
    problem = exact_posterior(samples=2).problem
    images = run_batch(problem, invsolve.strategy("daps", steps=7, flow_steps=5), chains(2)).images
    assert bool(images.isfinite().all())


def test_the_reverse_sde_draws_images_given_the_noisy_one() -> None:
    rows, sigma = 600, 0.3
    prior = invsolve.load_prior("gaussian-field", size=4, std=0.5, length=1.0)
    operator = invsolve.operator("inpainting", mask=torch.ones(4, 4))
    problem = Problem(
        prior, operator, invsolve.Gaussian(1.0), torch.zeros(rows, 1, 4, 4, dtype=torch.float64), (1, 4, 4)
    )
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).view(1, 1, 4, 4).expand(rows, 1, 4, 4)
    drawn, _ = reverse(problem, x, sigma, 40, 1.0, chains(rows))
    prior_covariance = prior.covariance()
    gain = prior_covariance @ torch.linalg.inv(prior_covariance + sigma**2 * torch.eye(16, dtype=torch.float64))
    variance = (gain * sigma**2).diagonal()
    error = (drawn.flatten(1).mean(0) - gain @ x[0].flatten()) / (variance / rows).sqrt()
    # The rms of 16 standard normal numbers is 1, give or take 1 / sqrt(32); a width of 600 draws 1 / sqrt(1198), at worst as
    # one for all pixels. Three of each.
    assert float(error.square().mean().sqrt()) < 1 + 3 / math.sqrt(2 * 16)
    assert abs(float((drawn.flatten(1).var(0) / variance).mean().sqrt()) - 1) < 3 / math.sqrt(2 * (rows - 1))


def dense_parts(problem: Problem) -> tuple[Tensor, Tensor]:
    """The operator's matrix and the prior's covariance, float64."""
    pixels = math.prod(problem.image_shape)
    unit = torch.eye(pixels, dtype=torch.float64).view(pixels, *problem.image_shape)
    return problem.linear(unit).flatten(1).T, problem.prior.covariance()


@pytest.fixture(scope="module")
def compression() -> Problem:
    return exact_posterior(Compression(), samples=3, dtype=torch.float64).problem


KEYS = [(0, 0), (0, 1), (1, 0)]


def test_a_daps_step_is_the_papers_in_dense_matrices(compression: Problem) -> None:
    strategy = invsolve.strategy("daps", flow_steps=1)
    sigma, after, noise = 0.4, 0.2, 0.05
    x = ChainRandom(8, KEYS).normal(compression.zeros())
    ours = strategy.step(compression, {"x": x, "pace": x.new_zeros(3)}, sigma, after, ChainRandom(3, KEYS).at(5))["x"]
    rng = ChainRandom(3, KEYS).at(5)
    matrix, covariance = dense_parts(compression)
    eye = torch.eye(256, dtype=torch.float64)
    posterior = covariance @ torch.linalg.inv(covariance + sigma**2 * eye)
    variance = float((posterior * sigma**2).diagonal().mean())
    centre = x.flatten(1) @ posterior.T + math.sqrt(variance) * rng.normal(x).flatten(1)
    data = compression.y + noise * rng.normal(compression.y)
    right = data @ matrix / noise**2 + centre / variance
    image = torch.linalg.solve(matrix.T @ matrix / noise**2 + eye / variance, right.T).T
    wanted = image + after * rng.normal(x).flatten(1)
    torch.testing.assert_close(ours.flatten(1), wanted, atol=1e-4, rtol=0)


def test_a_pnp_dm_step_is_the_papers_in_dense_matrices(compression: Problem) -> None:
    rho, noise = 0.3, 0.05
    x = ChainRandom(8, KEYS).normal(compression.zeros())
    state = {"x": x, "pace": x.new_zeros(3)}
    strategy = invsolve.strategy("pnp-dm", inner=1)
    new = strategy.step(compression, state, rho, 0.2, ChainRandom(3, KEYS).at(5))
    rng = ChainRandom(3, KEYS).at(5)
    matrix, covariance = dense_parts(compression)
    eye = torch.eye(256, dtype=torch.float64)
    centre = x.flatten(1) + rho * rng.normal(x).flatten(1)
    right = (compression.y + noise * rng.normal(compression.y)) @ matrix / noise**2 + centre / rho**2
    z = torch.linalg.solve(matrix.T @ matrix / noise**2 + eye / rho**2, right.T).T
    denoised = z @ torch.linalg.inv(covariance + rho**2 * eye) @ covariance
    torch.testing.assert_close(new["x"].flatten(1), denoised, atol=1e-4, rtol=0)


def integral(log_likelihood: Callable[[Tensor], Tensor], mean: float, std: float) -> tuple[float, float]:
    """Mean and standard deviation of one pixel of a white field given its datum, on a fine grid."""
    grid = torch.linspace(mean - 8 * std, mean + 8 * std, 20001, dtype=torch.float64)
    weight = (log_likelihood(grid) - (grid - mean) ** 2 / (2 * std**2)).softmax(0)
    first = float((weight * grid).sum())
    return first, math.sqrt(float((weight * (grid - first) ** 2).sum()))


def white_problem(operator: Operator, noise: invsolve.Noise, y: float, rows: int) -> Problem:
    """A field of 16 independent pixels, mean 0.5 and standard deviation 0.15, all with the same datum."""
    prior = invsolve.load_prior("gaussian-field", size=4, std=0.15, length=0.0, mean=0.5)
    return Problem(prior, operator, noise, torch.full((rows, 1, 4, 4), y, dtype=torch.float64), (1, 4, 4))


def coupled(log_likelihood: Callable[[Tensor], Tensor], rho: float) -> Callable[[Tensor], Tensor]:
    """The likelihood of a pixel (points,) that is seen through normal noise of standard deviation rho, by quadrature."""
    nodes = torch.linspace(-6, 6, 241, dtype=torch.float64)
    weight = (-(nodes**2) / 2).log_softmax(0)
    return lambda v: torch.logsumexp(log_likelihood(v[:, None] + rho * nodes) + weight, 1)


@pytest.mark.parametrize(
    ("strategy", "rho"),
    [
        (invsolve.strategy("daps", steps=20, iterations=15), 0.0),
        # At its coupling it draws from the posterior of the likelihood that is seen through it: no bias is left to allow for.
        (invsolve.strategy("pnp-dm", steps=20, inner=10, iterations=20, rho_max=0.3, rho_min=0.1, decay=0.3), 0.1),
    ],
    ids=["daps", "pnp-dm"],
)
@pytest.mark.parametrize("kind", ["transmission", "poisson"])
def test_nonlinear_and_poisson_posteriors_are_drawn(strategy: invsolve.Strategy, rho: float, kind: str) -> None:
    noise: invsolve.Noise
    operator: invsolve.Operator

    def log_likelihood(v: Tensor) -> Tensor:
        if kind == "transmission":
            return -((y - (-2 * v).exp()) ** 2) / (2 * 0.1**2)
        return 30 * y * v.clamp_min(1e-9).log() - 30 * v

    if kind == "transmission":
        noise, operator, y = invsolve.Gaussian(0.1), Transmission(), 0.2
    else:
        noise, operator, y = invsolve.Poisson(30.0), invsolve.operator("inpainting", mask=torch.ones(4, 4)), 0.8
    mean, std = integral(coupled(log_likelihood, rho), 0.5, 0.15)
    rows = 200
    images = run_batch(white_problem(operator, noise, y, rows), strategy, chains(rows)).images
    assert abs(float(images.mean()) - mean) < bounds.mean_error(images.numel(), std)
    assert abs(float(images.std()) / std - 1) < bounds.width_error(images.numel())


@pytest.mark.parametrize("name", ["daps", "pnp-dm"])
def test_a_nonlinear_operator_runs_from_end_to_end(name: str) -> None:
    prior = invsolve.load_prior("gaussian-field", size=12, std=0.2, mean=0.6)
    truth = prior.sample(ChainRandom(0, [(0, 0)]), torch.zeros(1))
    y = invsolve.simulate(truth, Square(), invsolve.Gaussian(0.05), seed=0)
    rec = invsolve.reconstruct(
        y, Square(), prior, noise=invsolve.Gaussian(0.05), strategy=invsolve.strategy(name, steps=40), samples=4, seed=0
    )
    before = (y - 0.36).norm()
    after = (y - rec.samples[0] ** 2).flatten(1).norm(dim=1)
    assert bool((after < 0.5 * before).all())
    # A draw from the posterior leaves what the truth leaves: 144 numbers of the noise.
    assert bool((after < 0.05 * 12 * bounds.rms_error(1, 144)).all())


def test_daps_is_exact_for_a_white_field_at_any_number_of_levels() -> None:
    problem = white_problem(invsolve.operator("inpainting", mask=torch.ones(4, 4)), invsolve.Gaussian(0.1), 0.8, 200)
    images = run_batch(problem, invsolve.strategy("daps", steps=4), chains(200)).images
    weight = 0.15**2 / (0.15**2 + 0.1**2)
    std = 0.15 * math.sqrt(1 - weight)
    assert abs(float(images.mean()) - (0.5 + 0.3 * weight)) < 4 * std / math.sqrt(images.numel())
    assert abs(float(images.std()) / std - 1) < 4 / math.sqrt(2 * images.numel())


def test_the_paper_variance_is_sigma_squared() -> None:
    problem = white_problem(invsolve.operator("inpainting", mask=torch.ones(4, 4)), invsolve.Gaussian(0.1), 0.8, 2)
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    state = {"x": x, "pace": x.new_zeros(2)}
    strategy = invsolve.strategy("daps", flow_steps=1, variance="paper")
    ours = strategy.step(problem, dict(state), 0.7, 0.0, chains(2).at(3))["x"]
    wanted, _ = draw(problem, problem.denoise(x, 0.7), 0.49, x, state["pace"], 0, chains(2).at(3))
    torch.testing.assert_close(ours, wanted)


def test_the_coupling_falls_and_then_stays() -> None:
    problem = white_problem(Square(), invsolve.Gaussian(0.1), 0.5, 1)
    levels = invsolve.strategy("pnp-dm", steps=11, rho_max=2.0, rho_min=0.02, decay=0.5).schedule(problem)
    assert levels.shape == (12,)
    assert float(levels[0]) == 2.0
    assert float(levels[-1]) == 0.0
    torch.testing.assert_close(levels[6:-1], torch.full((5,), 0.02, dtype=torch.float64))
    assert bool((levels[:6].diff() < 0).all())
