"""Lévy-process priors and their Gibbs sampler: quadrature in two dimensions, finer lattices, ranks, and each other."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import invsolve
from invsolve.bench import ranks as rank_tests
from invsolve.bench.gibbs import JumpPosterior, inverse_gaussian_variance
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.priors.analytic._chain import Lattice
from tests.support import bounds

SPARSE = {"increments": "bernoulli-laplace", "jumps": 0.3}
LAWS = [{"increments": "laplace"}, SPARSE]
SUM = torch.ones(2, 2, dtype=torch.float64).tril()


def prior(**given: Any) -> Any:
    return invsolve.load_prior("levy", **given)


def two_jumps(y: torch.Tensor, matrix: torch.Tensor, sigma: float, scale: float, jumps: float) -> torch.Tensor:
    """E[x | y] and E[x^2 | y] of a walk of two steps, (2, 2), by quadrature over its jumps on a fine grid with atoms."""
    line = torch.arange(-700, 701, dtype=torch.float64) * (16 * scale / 700)
    law = jumps * torch.exp(-line.abs() / scale) / (2 * scale) * (line[1] - line[0])
    law[700] *= 1 - float(line[1] - line[0]) / (6 * scale)  # the kink
    law[700] += 1 - jumps
    total, first, second = torch.zeros(()).double(), torch.zeros(2).double(), torch.zeros(2).double()
    for block in range(0, 1401, 500):
        u = torch.stack(torch.meshgrid(line[block : block + 500], line, indexing="ij"), -1)
        x = u @ SUM.T
        weight = law[block : block + 500, None] * law * torch.exp(-((y - x @ matrix.T) ** 2).sum(-1) / (2 * sigma**2))
        total += weight.sum()
        first += (weight[..., None] * x).sum((0, 1))
        second += (weight[..., None] * x**2).sum((0, 1))
    return torch.stack([first, second]) / total


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_denoiser_matches_quadrature(law: dict, sigma: float) -> None:
    walk = prior(length=2, std=0.5, **law)
    y = torch.tensor([0.4, -0.3], dtype=torch.float64)
    wanted = two_jumps(y, torch.eye(2, dtype=torch.float64), sigma, walk.scale, walk.jumps)[0]
    estimate = walk.denoise(y[None, None], torch.tensor(sigma, dtype=torch.float64))[0, 0]
    torch.testing.assert_close(estimate, wanted, atol=1e-3 * sigma, rtol=0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.3, 1.0, 5.0, 30.0])
def test_lattice_is_fine_enough(law: dict, sigma: float) -> None:
    walk = prior(length=64, std=0.1, **law)
    x = walk.sample(ChainRandom(0, [(0, s) for s in range(6)]), torch.zeros(1, dtype=torch.float64))[:, 0]
    y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    usual, fine = (Lattice(sigma, walk.scale, walk.jumps, fine=f).denoise(y)[0] for f in (0, 2))
    rest = float((fine - x).square().mean().sqrt())
    assert float((usual - fine).abs().max()) < min(1.5e-3 * sigma, 0.004 * rest)


@pytest.mark.parametrize("law", LAWS)
def test_lattice_stands_signals_that_are_no_walks(law: dict) -> None:
    # Strategies ask about images far from the prior: white noise, steps of fifty scales.
    walk = prior(length=64, std=0.1, **law)
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(2, 64, generator=generator, dtype=torch.float64)
    steps = 5 * torch.sign(torch.linspace(-1, 1, 64, dtype=torch.float64)).expand(2, -1)
    for sigma in (0.02, 0.2, 2.0):
        y = torch.cat([white, steps + sigma * white])
        usual, fine = (Lattice(sigma, walk.scale, walk.jumps, fine=f).denoise(y)[0] for f in (0, 2))
        assert float((usual - fine).abs().max()) < 5e-3 * sigma


def test_gaussian_increments_have_the_wiener_filter() -> None:
    walk = prior(length=20, increments="gaussian", std=0.3)
    y = torch.randn(3, 1, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = torch.tensor([[0.09 * min(i, j) for i in range(1, 21)] for j in range(1, 21)], dtype=torch.float64)
    wanted = y @ torch.linalg.solve(covariance + 0.04 * torch.eye(20), covariance)
    estimate = walk.denoise(y, torch.tensor(0.2, dtype=torch.float64))
    torch.testing.assert_close(estimate, wanted)
    rest = covariance - covariance @ torch.linalg.solve(covariance + 0.04 * torch.eye(20), covariance)
    assert walk.error(0.2) == pytest.approx(float(rest.diagonal().mean()))


@pytest.mark.parametrize("law", LAWS)
def test_denoiser_is_the_score_of_the_evidence_and_its_jacobian_symmetric(law: dict) -> None:
    walk = prior(length=10, std=0.3, **law)
    sigma = 0.25
    lattice = Lattice(sigma, walk.scale, walk.jumps)
    y = torch.randn(1, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    centre, half = lattice.window(y)
    given = y.clone().requires_grad_()
    means, evidence, _ = lattice.solve(given, centre, half)
    (gradient,) = torch.autograd.grad(evidence.sum(), given, retain_graph=True)
    torch.testing.assert_close(means, y + sigma**2 * gradient, atol=1e-9, rtol=0)
    rows = [torch.autograd.grad(means[0, k], given, retain_graph=True)[0][0] for k in range(10)]
    jacobian = torch.stack(rows)
    torch.testing.assert_close(jacobian, jacobian.T, atol=1e-9, rtol=0)
    x = y[:, None].clone().requires_grad_()
    v = torch.randn(1, 1, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (product,) = torch.autograd.grad(walk.denoise(x, torch.tensor(sigma, dtype=torch.float64)), x, v)
    torch.testing.assert_close(product[0, 0], v[0, 0] @ jacobian, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("law", [{"increments": "gaussian"}, *LAWS])
def test_samples_have_the_law(law: dict) -> None:
    walk = prior(length=50, std=0.4, **law)
    x = walk.sample(ChainRandom(1, [(0, s) for s in range(4000)]), torch.zeros(1, dtype=torch.float64))[:, 0]
    u = torch.diff(x, dim=1, prepend=torch.zeros(4000, 1)).flatten().numpy()
    moved = u[np.abs(u) > 1e-12]
    assert len(moved) / len(u) == pytest.approx(walk.jumps, abs=bounds.share_error(len(u), walk.jumps))
    law_of_jump = stats.norm(0, 0.4) if law["increments"] == "gaussian" else stats.laplace(0, walk.scale)
    assert stats.kstest(moved, law_of_jump.cdf).pvalue > 1e-3
    # A Laplace number's kurtosis is 6; zeros between divide it by the share of jumps.
    kurtosis = 3.0 if law["increments"] == "gaussian" else 6 / walk.jumps
    assert u.std() == pytest.approx(0.4, rel=bounds.width_error(len(u), kurtosis=kurtosis))


def test_error_is_that_of_fresh_samples() -> None:
    walk = prior(length=64, std=0.2)
    x = walk.sample(ChainRandom(5, [(0, s) for s in range(500)]), torch.zeros(1, dtype=torch.float64))
    y = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    squared = (walk.denoise(y, torch.tensor(0.3, dtype=torch.float64)) - x).square().mean((1, 2))
    # The prior's own curve is the mean of 128 signals.
    error = math.hypot(*(bounds.mean_error(count, float(squared.std())) for count in (128, len(x))))
    assert walk.error(0.3) == pytest.approx(float(squared.mean()), abs=error)


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(invsolve.UserError, match="jumps"):
        prior(jumps=0.0)


class TestGibbs:
    def test_mixing_variances_given_a_laplace_number(self) -> None:
        # The density of w given u is w^-1/2 exp(-u^2 / 2w - w / 2b^2), normalised here on a grid.
        for u, b in ((0.7, 0.5), (1e-3, 1.0), (0.0, 0.3)):
            generator = torch.Generator().manual_seed(0)
            w = inverse_gaussian_variance(torch.full((20_000,), u, dtype=torch.float64), b, generator).numpy()
            root = np.linspace(1e-5, 9 * b, 40_001)  # w = root^2: no singularity at zero
            density = np.exp(-(u**2) / (2 * root**2) - root**2 / (2 * b**2))
            cumulative = density.cumsum() / density.sum()
            assert stats.kstest(np.sqrt(w), lambda r, g=root, c=cumulative: np.interp(r, g, c)).pvalue > 1e-3

    @pytest.mark.parametrize("jumps", [1.0, 0.3])
    def test_two_dimensions_against_quadrature(self, jumps: float) -> None:
        matrix = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
        y = torch.tensor([0.8], dtype=torch.float64)
        wanted = two_jumps(y, matrix, 0.3, 0.5, jumps)
        u = JumpPosterior(matrix @ SUM, y, 0.3, 0.5, jumps).draw(chains=600, burn_in=50, keep=40, thin=3, seed=0)
        x = u @ SUM.T
        # One mean a chain: their scatter tells the error, whatever the correlation within a chain.
        for power in (1, 2):
            means = (x**power).mean(0)
            error = means.std(0) / math.sqrt(len(means))
            assert float(((means.mean(0) - wanted[power - 1]) / error).abs().max()) < 4

    @pytest.mark.parametrize("jumps", [1.0, 0.3])
    def test_ranks(self, jumps: float) -> None:
        # Truths from the prior, a chain each: their ranks among well separated states must be uniform.
        length, chains, sigma, scale = 6, 400, 0.4, 0.7
        generator = torch.Generator().manual_seed(3)
        first, second = torch.rand(2, chains, length, generator=generator, dtype=torch.float64)
        truth = scale * torch.log(first / second)
        truth = truth * (torch.rand(truth.shape, generator=generator) < jumps)
        matrix = torch.randn(4, length, generator=generator, dtype=torch.float64)
        y = truth @ matrix.T + sigma * torch.randn(chains, 4, generator=generator, dtype=torch.float64)
        u = JumpPosterior(matrix, y, sigma, scale, jumps).draw(chains, burn_in=60, keep=15, thin=8, seed=4)
        directions = torch.randn(4, length, generator=generator, dtype=torch.float64)
        for direction in directions:
            ranks = ((u @ direction) < truth @ direction).sum(0).numpy()
            assert rank_tests.ecdf_band(ranks, 15) > 2e-3

    @pytest.mark.parametrize("law", LAWS)
    def test_agrees_with_the_lattice_on_denoising(self, law: dict) -> None:
        walk = prior(length=32, std=0.2, **law)
        x = walk.sample(ChainRandom(2, [(0, 0)]), torch.zeros(1, dtype=torch.float64))[0, 0]
        sigma = 0.3
        y = x + sigma * torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        total = torch.ones(32, 32, dtype=torch.float64).tril()
        u = JumpPosterior(total, y, sigma, walk.scale, walk.jumps).draw(chains=60, burn_in=60, keep=20, thin=2, seed=0)
        means = (u @ total.T).mean(0)
        error = means.std(0) / math.sqrt(len(means))
        lattice = walk.denoise(y[None, None], torch.tensor(sigma, dtype=torch.float64))[0, 0]
        assert float(((means.mean(0) - lattice) / error).abs().max()) < 4.5
