"""The mixture family: its exact posterior against quadrature and an independent transcription, its figures, its problems."""

import json
import math

import pytest
import torch

import invsolve
from invsolve import bench
from invsolve.bench.matrix import Matrix
from invsolve.bench.mixture import MixturePosterior, figures, make, modes, random_problem
from invsolve.testing import check_operator
from tests.support import bounds
from tests.support.types import Cli


@pytest.fixture(scope="module")
def two() -> MixturePosterior:
    """Three components in two dimensions, one measurement."""
    return MixturePosterior(
        means=torch.tensor([[-2.0, 1.0], [0.5, 0.0], [1.0, -3.0]], dtype=torch.float64),
        prior_weights=torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
        std=0.8,
        matrix=torch.tensor([[0.7, -0.4]], dtype=torch.float64),
        y=torch.tensor([0.3], dtype=torch.float64),
        sigma=0.4,
    )


def test_posterior_matches_quadrature(two: MixturePosterior) -> None:
    line = torch.linspace(-8, 8, 801, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 2)
    parts = torch.stack(
        [
            w * torch.exp(-((x - m) ** 2).sum(1) / (2 * 0.8**2))
            for w, m in zip(two.prior_weights, two.means, strict=True)
        ]
    )
    joint = parts * torch.exp(-((two.y - x @ two.matrix[0]) ** 2) / (2 * 0.4**2))
    density = joint.sum(0) / joint.sum()
    torch.testing.assert_close(two.weights, joint.sum(1) / joint.sum(), atol=1e-10, rtol=0)
    torch.testing.assert_close(two.weights @ two.centres, density @ x, atol=1e-10, rtol=0)
    mean = density @ x
    second = two.weights @ (two.centres**2 + two.spread**2)
    torch.testing.assert_close(second - mean**2, density @ x**2 - mean**2, atol=1e-10, rtol=0)
    edge = torch.tensor([0.01, -0.51], dtype=torch.float64)  # halfway between nodes of the grid
    wanted = torch.stack([density[x[:, i] < edge[i]].sum() for i in range(2)])
    torch.testing.assert_close(two.cumulative(edge), wanted, atol=1e-4, rtol=0)


def test_draws_have_the_posteriors_moments(two: MixturePosterior) -> None:
    x = two.draw(40_000, 3)
    mean = two.weights @ two.centres
    covariance = two.std**2 * torch.eye(2) - two.std**2 * two.gain @ two.matrix
    rest = two.centres - mean
    covariance = covariance + rest.T @ (two.weights[:, None] * rest)
    assert float(((x.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()) < bounds.mean_error(len(x))
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    error = (products.mean(0) - covariance) / products.std(0)
    assert float(error.abs().max()) < bounds.mean_error(len(x))


def test_denoiser_is_the_posterior_mean_of_the_identity_problem() -> None:
    exact = random_problem(8, 1, seed=4)
    sigma = 3.0
    x = exact.draw(5, 0)
    prior = invsolve.load_prior("gaussian-mixture", means=exact.means[:, None], weights=exact.prior_weights)
    denoised = prior.denoise(x[:, None], torch.tensor(sigma, dtype=torch.float64))[:, 0]
    eye = torch.eye(8, dtype=torch.float64)
    for row, estimate in zip(x, denoised, strict=True):
        identity = MixturePosterior(exact.means, exact.prior_weights, 1.0, eye, row, sigma)
        torch.testing.assert_close(estimate, identity.weights @ identity.centres)


def test_priors_range_and_error() -> None:
    prior = invsolve.load_prior("gaussian-mixture", means=modes(80)[:, None])
    furthest = math.hypot(16, 16) * math.sqrt(40)
    assert prior.sigma_max == pytest.approx(10 * (furthest + 1))
    assert prior.error(0.05) == pytest.approx(0.05**2 / 1.0025, rel=0.05)  # one mode: std 1
    assert prior.error(prior.sigma_max) == pytest.approx(8**2 * 2 + 1, rel=0.2)  # all 25, variance of 8 i: 128


def test_problems_are_those_of_the_paper() -> None:
    one = modes(8)
    assert one.shape == (25, 8)
    assert one.abs().max() == 16
    assert len(one.unique(dim=0)) == 25
    torch.testing.assert_close(one[:, :2].repeat(1, 4), one)
    exact = random_problem(80, 4, seed=0)
    values = torch.linalg.svdvals(exact.matrix)
    assert bool((values <= 1).all())
    assert 0 < exact.sigma < values.max()
    assert exact.prior_weights.sum() == pytest.approx(1)
    assert not torch.equal(random_problem(80, 4, seed=1).matrix, exact.matrix)


def test_figures_of_exact_samples_are_at_the_floor_and_of_wrong_ones_are_not() -> None:
    exact = random_problem(8, 1, seed=0)
    draws = 4000
    good = figures(exact.draw(draws, 5), exact)
    assert good["wasserstein"] < 2.5 * good["wasserstein_floor"]
    # Half the sum of |share - weight|: the mean of a normal number's size is sqrt(2 / pi) standard deviations, and one draw moves
    # the sum by 1 / n at most.
    spread = (exact.weights * (1 - exact.weights) / draws).sqrt()
    assert good["weights"] < float(spread.sum()) / math.sqrt(2 * math.pi) + bounds.mean_error(draws, 0.5)
    assert good["coverage_50"] == pytest.approx(0.5, abs=bounds.share_error(draws, 0.5))
    assert good["coverage_90"] == pytest.approx(0.9, abs=bounds.share_error(draws, 0.9))
    heaviest = exact.centres[exact.weights.argmax()]
    collapsed = figures(heaviest + 0.5 * torch.randn(draws, 8, dtype=torch.float64), exact)
    assert collapsed["weights"] == pytest.approx(1 - float(exact.weights.max()), abs=1e-6)
    assert collapsed["wasserstein"] > 4 * good["wasserstein"]
    assert collapsed["coverage_90"] < 0.8


def test_matrix_operator_conforms() -> None:
    report = check_operator(Matrix(random_problem(8, 2, seed=0).matrix))
    assert report, str(report)


def test_strategies_take_signals() -> None:
    measure = make("d8-m2", seed=0, samples=64, device="cpu")
    row = measure(invsolve.strategy("moment"), 1)
    assert set(bench.FAMILIES["mixture"].columns) <= set(row)
    assert all(math.isfinite(value) for value in row.values())
    assert row["evaluations"] > 28


def test_command(cli: Cli) -> None:
    options = ["--family", "mixture", "--problem", "d8-m1", "--samples", 16, "--evaluations", 20]
    code, out, err = cli("bench", "posterior", *options, "--repeats", 2, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert {"mmps", "dps"} <= {row["strategy"] for row in rows}
    assert "ads" in err  # needs a maskable operator: said, and left out
    code, out, err = cli("bench", "posterior", *options, "--strategy", "moment", "--repeats", 1)
    assert code == 0, err
    assert "weights off" in out
    assert cli("bench", "posterior", "--family", "mixtures")[0] == 2
    code, _, err = cli("bench", "posterior", *options, "--strategy", "ads")
    assert code == 2
    assert "maskable" in err
