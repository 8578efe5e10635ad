"""The Lévy family: its operators against FFTs, its gold standard against closed form and lattice, its figures, its command."""

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy import stats

import invsolve
from invsolve import bench
from invsolve.bench import levy
from invsolve.bench.matrix import Matrix
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.testing import check_operator
from invsolve.testing.distances import draws
from tests.support import bounds
from tests.support.types import Cli


def walk(increments: str, length: int = levy.LENGTH) -> invsolve.Prior:
    return invsolve.load_prior("levy", length=length, increments=increments, std=levy.STD)


def signal() -> torch.Tensor:
    return torch.randn(levy.LENGTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_operators() -> None:
    x = signal()
    spectrum = torch.fft.rfft(x, norm="ortho")
    taps = torch.fft.irfft(torch.fft.rfft(levy.convolution() @ torch.eye(64)[0].double()) * torch.fft.rfft(x), n=64)
    torch.testing.assert_close(levy.convolution() @ x, taps)
    torch.testing.assert_close(levy.convolution().sum(1), torch.ones(64, dtype=torch.float64))
    rows = levy.fourier()
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64))
    projections = rows @ x
    assert float(projections[0]) == pytest.approx(float(spectrum[0].real))
    for k in range(1, 5):
        assert float(projections[2 * k - 1]) == pytest.approx(math.sqrt(2) * float(spectrum[k].real))
        assert float(projections[2 * k]) == pytest.approx(math.sqrt(2) * float(spectrum[k].imag))
    picked = levy.sampling() @ x
    assert len(picked) == 33
    assert len(rows) == 36
    assert set(picked.tolist()) <= set(x.tolist())
    for matrix in (levy.fourier(), levy.convolution()):
        report = check_operator(Matrix(matrix))
        assert report, str(report)


@pytest.mark.parametrize("increments", levy.INCREMENTS)
def test_signals_fill_the_network_range_and_noise_is_25_db_below(increments: str) -> None:
    prior = walk(increments)
    rng = invsolve.ChainRandom(9, [(0, s) for s in range(20000)])
    x = prior.sample(rng, torch.zeros(1, dtype=torch.float64))[:, 0]
    square = x.square().mean(1)
    assert float(square.mean()) == pytest.approx(0.25, abs=bounds.mean_error(len(x), float(square.std())))
    sigma = levy.noise_level(prior, levy.convolution())
    power = (x @ levy.convolution().T).square().mean(1)
    # The level is at the median of 1000 signals.
    error = math.hypot(bounds.share_error(1000, 0.5), bounds.share_error(len(x), 0.5))
    assert float((power > sigma**2 * 10**2.5).double().mean()) == pytest.approx(0.5, abs=error)


def test_gold_standard_of_gaussian_jumps_is_the_closed_form() -> None:
    prior = walk("gaussian")
    y = signal()
    gold = levy.gold_standard(prior, torch.eye(64, dtype=torch.float64), y, 0.3, 3000, seed=0)
    mean = prior.denoise(y[None, None], torch.tensor(0.3, dtype=torch.float64))[0, 0]
    torch.testing.assert_close(gold.mean, mean)
    assert float(((gold.samples.mean(0) - mean) / gold.std).abs().max()) < bounds.mean_error(3000)
    torch.testing.assert_close(gold.samples.std(0), gold.std, atol=0, rtol=bounds.width_error(3000))
    assert float(gold.std.square().mean()) == pytest.approx(prior.error(0.3))


def test_gold_standard_of_laplace_jumps_agrees_with_the_lattice() -> None:
    prior = walk("laplace")
    x = prior.sample(invsolve.ChainRandom(1, [(0, 0)]), torch.zeros(1, dtype=torch.float64))[0, 0]
    y = x + 0.1 * signal()
    gold = levy.gold_standard(prior, torch.eye(64, dtype=torch.float64), y, 0.1, 300, seed=0, chains=16, burn_in=60)
    mean = prior.denoise(y[None, None], torch.tensor(0.1, dtype=torch.float64))[0, 0]
    gap = float((gold.mean - mean).square().sum() / gold.std.square().sum())
    # For independent draws; the chains' are nearly so.
    assert gap < bounds.rms_error(len(gold.samples), bounds.dimensions(gold.samples.T.cov())) ** 2


def test_figures_of_exact_samples_are_at_the_floor_and_of_wrong_ones_are_not() -> None:
    gold = levy.gold_standard(walk("gaussian"), levy.sampling(), levy.sampling() @ signal(), 0.1, 1200, seed=0)
    fresh = levy.gold_standard(walk("gaussian"), levy.sampling(), levy.sampling() @ signal(), 0.1, 600, seed=1).samples
    good = levy.figures(fresh, gold)
    covariance = gold.samples.T.cov()
    dims = bounds.dimensions(covariance)
    gap = bounds.rms_error(600, dims) ** 2
    assert good["gap_db"] < 10 * math.log10(1 + gap)
    assert good["gap_floor_db"] == pytest.approx(10 * math.log10(1 + 1 / 600))
    width = bounds.width_error(600, dims)
    assert good["std_ratio"] == pytest.approx(1, abs=width)
    # The ends of the intervals are quantiles of 600 draws, and what lies between is counted among 1200.
    alike = bounds.dimensions(covariance / torch.outer(gold.std, gold.std))
    for level in (50, 90):
        error = math.hypot(*(bounds.share_error(count * alike, level / 100) for count in (600, 1200)))
        assert good[f"coverage_{level}"] == pytest.approx(level / 100, abs=error)
    assert good["coverage_hpd"] == pytest.approx(
        0.9, abs=math.hypot(*(bounds.share_error(n, 0.9) for n in (600, 1200)))
    )
    assert good["wasserstein"] < 1.6 * good["wasserstein_floor"]
    narrow = levy.figures(gold.mean + 0.5 * (fresh - gold.mean), gold)
    assert narrow["std_ratio"] == pytest.approx(0.5, rel=width)
    share, normal = math.erf(0.5 * 1.645 / math.sqrt(2)), NormalDist()
    # Half as wide, the ends lie where the density is larger, and are known twice as well.
    ends = 0.5 * normal.pdf(0.5 * 1.645) / normal.pdf(1.645) * bounds.share_error(600 * alike, 0.9)
    error = math.hypot(ends, bounds.share_error(1200 * alike, share))
    # |z|^2 of 64 normal numbers is never as small as that of their halves.
    assert narrow["coverage_hpd"] < 0.01
    assert narrow["coverage_90"] == pytest.approx(share, abs=error)
    shifted = levy.figures(fresh + gold.std, gold)
    # |std + error|^2 over |std|^2: 1, the gap, and twice the error along std.
    along = 2 * bounds.mean_error(600, float((gold.std @ covariance @ gold.std).sqrt() / gold.std.square().sum()))
    assert 10 * math.log10(2 - along) < shifted["gap_db"] < 10 * math.log10(2 + along + gap)
    assert shifted["wasserstein"] > 3 * good["wasserstein"]


@pytest.mark.parametrize("increments", levy.INCREMENTS)
def test_the_density_is_likelihood_times_that_of_each_jump(increments: str) -> None:
    prior, rng = walk(increments), np.random.default_rng(0)
    u = rng.normal(size=(3, 64)) * levy.STD * (rng.random((3, 64)) < 0.5)
    x, y, sigma = u.cumsum(1), rng.normal(size=64), 0.2
    laws = {
        "gaussian": stats.norm(0, levy.STD).pdf(u),
        "laplace": stats.laplace(0, levy.STD / math.sqrt(2)).pdf(u),
        "bernoulli-laplace": 0.1 * stats.laplace(0, levy.STD / math.sqrt(0.2)).pdf(u)
        + 0.9 * stats.norm(0, 0.05 * levy.STD).pdf(u),
    }
    wanted = np.log(laws[increments]).sum(1) + stats.norm(x, sigma).logpdf(y).sum(1)
    eye = torch.eye(64, dtype=torch.float64)
    got = levy.log_posterior(torch.from_numpy(x), prior, eye, torch.from_numpy(y), sigma).numpy()
    np.testing.assert_allclose(got - got[0], wanted - wanted[0], atol=1e-8)


@pytest.mark.parametrize("increments", levy.INCREMENTS)
def test_strategies_sample_walks(increments: str) -> None:
    prior = walk(increments, length=16)
    operator = Matrix(torch.eye(16, dtype=torch.float64)[::2])
    posed = make_problem(prior, operator, invsolve.Gaussian(0.05), torch.zeros(32, 8).double(), (1, 16), Scale(), 32)
    signals, cost = draws(invsolve.strategy("moment", steps=10), posed, 0)
    assert cost["evaluations"] > 10
    # Of what is measured a posterior knows no less than its measurement does, and this one is symmetric.
    seen = signals[:, ::2]
    assert float(seen.square().mean().sqrt()) < 0.05 * (1 + bounds.width_error(32 + 1, bounds.dimensions(seen.T.cov())))
    assert float((signals.mean(0) / signals.std(0)).abs().max()) < bounds.mean_error(32)


def test_command(cli: Cli) -> None:
    options = ["--family", "levy", "--problem", "gaussian-sampling", "--strategy", "moment", "--samples", 128]
    code, out, err = cli("bench", "posterior", *options, "--repeats", 1, "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    # What moment claims, and the chance of 128 draws in at least 16 dimensions.
    claim = invsolve.strategy("moment")
    assert row["gap_db"] < 10 * math.log10(1 + bounds.rms_error(128, 16, claim.mean_error) ** 2)
    assert bounds.between(row["std_ratio"], claim.std_ratio, bounds.width_error(128, 16))
    assert set(bench.FAMILIES["levy"].columns) <= set(row)
