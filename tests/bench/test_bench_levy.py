"""The Lévy family: its operators against FFTs, its gold standard against closed form and lattice, its figures, its command."""

import json
import math

import pytest
import torch

import invsolve
from invsolve import bench
from invsolve.bench import levy
from invsolve.bench.matrix import Matrix
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.testing import check_operator
from invsolve.testing.distances import draws
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
    assert len(picked) == 32
    assert set(picked.tolist()) <= set(x.tolist())
    for matrix in (levy.fourier(), levy.convolution()):
        report = check_operator(Matrix(matrix))
        assert report, str(report)


@pytest.mark.parametrize("increments", levy.INCREMENTS)
def test_signals_fill_the_network_range_and_noise_is_25_db_below(increments: str) -> None:
    prior = walk(increments)
    rng = invsolve.ChainRandom(9, [(0, s) for s in range(20000)])
    x = prior.sample(rng, torch.zeros(1, dtype=torch.float64))[:, 0]
    assert float(x.square().mean().sqrt()) == pytest.approx(0.5, rel=0.1)
    sigma = levy.noise_level(prior, levy.convolution())
    power = (x @ levy.convolution().T).square().mean(1).median()
    assert 10 * math.log10(float(power) / sigma**2) == pytest.approx(25, abs=0.6)


def test_gold_standard_of_gaussian_jumps_is_the_closed_form() -> None:
    prior = walk("gaussian")
    y = signal()
    gold = levy.gold_standard(prior, torch.eye(64, dtype=torch.float64), y, 0.3, 3000, seed=0)
    mean = prior.denoise(y[None, None], torch.tensor(0.3, dtype=torch.float64))[0, 0]
    torch.testing.assert_close(gold.mean, mean)
    torch.testing.assert_close(gold.samples.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(gold.samples.std(0), gold.std, atol=0.01, rtol=0)
    assert float(gold.std.square().mean()) == pytest.approx(prior.error(0.3))


def test_gold_standard_of_laplace_jumps_agrees_with_the_lattice() -> None:
    prior = walk("laplace")
    x = prior.sample(invsolve.ChainRandom(1, [(0, 0)]), torch.zeros(1, dtype=torch.float64))[0, 0]
    y = x + 0.1 * signal()
    gold = levy.gold_standard(prior, torch.eye(64, dtype=torch.float64), y, 0.1, 300, seed=0, chains=16, burn_in=60)
    mean = prior.denoise(y[None, None], torch.tensor(0.1, dtype=torch.float64))[0, 0]
    gap = float((gold.mean - mean).square().sum() / gold.std.square().sum())
    assert gap < 3 / len(gold.samples)  # 1 / n for independent draws; the chains' are nearly so


def test_figures_of_exact_samples_are_at_the_floor_and_of_wrong_ones_are_not() -> None:
    gold = levy.gold_standard(walk("gaussian"), levy.sampling(), levy.sampling() @ signal(), 0.1, 1200, seed=0)
    fresh = levy.gold_standard(walk("gaussian"), levy.sampling(), levy.sampling() @ signal(), 0.1, 600, seed=1).samples
    good = levy.figures(fresh, gold)
    assert good["gap_db"] < 3 * good["gap_floor_db"]
    assert good["gap_floor_db"] == pytest.approx(10 * math.log10(1 + 1 / 600))
    assert good["std_ratio"] == pytest.approx(1, abs=0.03)
    assert good["coverage_50"] == pytest.approx(0.5, abs=0.03)
    assert good["coverage_90"] == pytest.approx(0.9, abs=0.02)
    assert good["wasserstein"] < 1.6 * good["wasserstein_floor"]
    narrow = levy.figures(gold.mean + 0.5 * (fresh - gold.mean), gold)
    assert narrow["std_ratio"] == pytest.approx(0.5, abs=0.02)
    assert narrow["coverage_90"] == pytest.approx(math.erf(0.5 * 1.645 / math.sqrt(2)), abs=0.03)
    shifted = levy.figures(fresh + gold.std, gold)
    assert shifted["gap_db"] == pytest.approx(10 * math.log10(2), abs=0.2)
    assert shifted["wasserstein"] > 3 * good["wasserstein"]


@pytest.mark.parametrize("increments", levy.INCREMENTS)
def test_strategies_sample_walks(increments: str) -> None:
    prior = walk(increments, length=16)
    operator = Matrix(torch.eye(16, dtype=torch.float64)[::2])
    posed = make_problem(prior, operator, invsolve.Gaussian(0.05), torch.zeros(32, 8).double(), (1, 16), Scale(), 32)
    signals, cost = draws(invsolve.strategy("moment", steps=10), posed, 0)
    assert cost["evaluations"] > 10
    assert float(signals[:, ::2].square().mean().sqrt()) < 0.08
    assert float(signals.mean(0).abs().max()) < 0.1  # a symmetric posterior


def test_command(cli: Cli) -> None:
    options = ["--family", "levy", "--problem", "gaussian-sampling", "--strategy", "moment", "--samples", 128]
    code, out, err = cli("bench", "posterior", *options, "--repeats", 1, "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    assert row["gap_db"] < 0.3
    assert row["std_ratio"] == pytest.approx(1, abs=0.08)
    assert set(bench.FAMILIES["levy"].columns) <= set(row)
