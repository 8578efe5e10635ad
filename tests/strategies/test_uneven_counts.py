"""Counts with a gain per item, per detector and per entry, against scipy's Poisson law and against runs of one gain."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import invsolve
from invsolve import api
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.datasets import hdf5
from invsolve.engine import Options
from invsolve.engine.batch import run_batch
from invsolve.jobs.origin import find_scan
from invsolve.numerics.random import ChainRandom
from tests.strategies.test_noise_levels import Pixels, Same, quadrature
from tests.support import bounds
from tests.support.types import Cli

SIZE, ITEMS = 6, 3
SHAPE = (ITEMS, 1, SIZE, SIZE)
RNG = np.random.default_rng(0)
#: In every shape that broadcasts against y: one, an item, a detector column, a row, an entry, an entry of each item.
GAINS = [(), (1,), (ITEMS, 1, 1, 1), (SIZE,), (SIZE, 1), (1, SIZE, SIZE), SHAPE]


def gains(shape: tuple[int, ...], low: float = 1.0, high: float = 60.0) -> np.ndarray:
    return np.exp(np.random.default_rng(3).uniform(np.log(low), np.log(high), shape))


@pytest.mark.parametrize("shape", GAINS)
def test_log_likelihood_and_spread_are_scipys(shape: tuple[int, ...]) -> None:
    gain = gains(shape)
    noise = invsolve.Poisson(torch.from_numpy(gain) if shape else float(gain))
    noise.check_shape(SHAPE)
    mean, other = RNG.uniform(0.5, 3.0, (2, *SHAPE))
    y = RNG.poisson(gain * mean) / gain

    def law(rate: np.ndarray) -> np.ndarray:
        return stats.poisson.logpmf(np.rint(gain * y), gain * rate).reshape(ITEMS, -1).sum(1)

    ours = noise.log_likelihood(*map(torch.from_numpy, (y, mean))) - noise.log_likelihood(
        *map(torch.from_numpy, (y, other))
    )
    np.testing.assert_allclose(ours.numpy(), law(mean) - law(other), rtol=1e-9, atol=1e-9)
    std = noise.std(torch.from_numpy(mean)).expand(SHAPE).numpy()
    np.testing.assert_allclose(std, stats.poisson.std(gain * mean) / gain, rtol=1e-9)
    # Rows, as a run takes them.
    for item in range(ITEMS):
        one = noise.rows([item], 4).log_likelihood(*(torch.from_numpy(v[item : item + 1]) for v in (y, mean)))
        torch.testing.assert_close(one, noise.log_likelihood(*map(torch.from_numpy, (y, mean)))[item : item + 1])


@pytest.mark.parametrize("shape", GAINS)
def test_draws_have_the_mean_and_variance_of_counts(shape: tuple[int, ...]) -> None:
    gain, draws = np.broadcast_to(gains(shape), SHAPE)[:1], 4000
    noise = invsolve.Poisson(torch.from_numpy(gain.copy()))
    clean = torch.full((draws, *SHAPE[1:]), 1.5, dtype=torch.float64)
    y = noise.sample(clean, ChainRandom(0, [(0, k) for k in range(draws)])).numpy()
    # Counts over the gain, every one.
    np.testing.assert_allclose(y * gain, np.rint(y * gain), atol=1e-9)
    z = (y.mean(0) - 1.5) / np.sqrt(1.5 / gain[0] / draws)
    assert np.abs(z).max() < stats.norm.isf(1e-5 / z.size)
    spread = y.var(0) / (1.5 / gain[0])
    # A variance of n numbers scatters by (kurtosis - 1) / n; of counts the kurtosis is 3 + 1 / mean.
    error = np.sqrt((2 + 1 / (1.5 * gain[0])) / draws)
    assert (np.abs(spread - 1) / error).max() < 1.2 * stats.norm.isf(1e-5 / z.size)


@pytest.mark.parametrize("shape", GAINS)
def test_expected_misfit_and_discrepancy(shape: tuple[int, ...]) -> None:
    gain = np.broadcast_to(gains(shape), SHAPE)
    mask = torch.from_numpy(RNG.random((SIZE, SIZE)) < 0.7)
    operator = invsolve.operator("inpainting", mask=mask)
    x = RNG.uniform(0.5, 3.0, SHAPE)
    y = torch.from_numpy(RNG.poisson(gain * x) / gain) * mask
    noise = invsolve.Poisson(torch.from_numpy(gains(shape)) if shape else float(gains(shape)))
    problem = make_problem(None, operator, noise, y, SHAPE[1:], Scale())
    variance = (y.numpy() / gain * mask.numpy()).reshape(ITEMS, -1)
    np.testing.assert_allclose(problem.expected_misfit().numpy(), np.sqrt(variance.sum(1)), rtol=1e-6)
    ratio, numbers = problem.discrepancy(torch.from_numpy(x))
    rest = ((y.numpy() - x) * mask.numpy()).reshape(ITEMS, -1)
    np.testing.assert_allclose(ratio.numpy(), np.sqrt((rest**2).sum(1) / variance.sum(1)), rtol=1e-6)
    np.testing.assert_allclose(numbers.numpy(), variance.sum(1) ** 2 / (variance**2).sum(1), rtol=1e-5)


# Evaluations that reach the levels at which the data are told apart.
@pytest.mark.parametrize(
    ("name", "cost"), [("moment", 12), ("daps", 12), ("pnp-dm", 60), ("dps-fitted", 12), ("flowchef-fitted", 12)]
)
def test_an_item_with_its_own_gain_is_what_it_is_by_itself(name: str, cost: int) -> None:
    truth = 5 + torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    level, entries = torch.from_numpy(gains((ITEMS, 1, 1, 1), 20)), torch.from_numpy(gains(SHAPE, 20))
    y = invsolve.simulate(truth, Same(), invsolve.Poisson(level), seed=1)

    def images(gain: Any, items: range) -> Tensor:
        measurement = invsolve.Measurement(y, Same(), invsolve.Poisson(gain))
        planned = api.plan(
            measurement, Pixels(), invsolve.strategy(name).at_cost(cost), Options(samples=2, dtype="float64")
        )
        planned.only = items
        sink = api.Memory(ITEMS)
        planned.execute(sink)
        return sink.stack("samples")

    together, by_entry = images(level, range(ITEMS)), images(entries, range(ITEMS))
    for item in range(ITEMS):
        only = range(item, item + 1)
        torch.testing.assert_close(together[only], images(float(level[item]), only), atol=1e-6, rtol=0)
        torch.testing.assert_close(by_entry[only], images(entries[item], only), atol=1e-6, rtol=0)
    assert float((by_entry - together).abs().max()) > 1e-3


def test_a_posterior_of_entries_of_different_gain_is_that_of_quadrature() -> None:
    draws = 64
    gain = torch.from_numpy(gains((1, SIZE, SIZE), 0.5, 50.0))
    x = 5 + torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    y = invsolve.simulate(x, Same(), invsolve.Poisson(gain), seed=1)
    parts = [quadrature(y.flatten()[k], invsolve.Poisson(float(g))) for k, g in enumerate(gain.flatten())]
    mean, std = (torch.cat(column) for column in zip(*parts, strict=True))
    strategy = invsolve.strategy("pnp-dm")
    problem = make_problem(
        Pixels(), Same(), invsolve.Poisson(gain), y.double().expand(draws, -1, -1, -1), SHAPE[1:], Scale()
    )
    images = run_batch(problem, strategy, ChainRandom(2, [(0, k) for k in range(draws)])).images.flatten(1)
    off = float(((images.mean(0) - mean) / std).square().mean().sqrt())
    assert off < bounds.rms_error(draws, SIZE**2, strategy.mean_error)
    width = float((images.var(0) / std**2).mean().sqrt())
    assert bounds.between(width, strategy.std_ratio, bounds.width_error(draws, SIZE**2))
    # One gain for all of them, the mean of these, is another posterior.
    others, _ = quadrature(y, invsolve.Poisson(float(gain.mean())))
    assert float(((images.mean(0) - others) / std).square().mean().sqrt()) > 2 * off


def test_gains_go_from_the_command_through_the_scan_to_the_result(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    truth, gain = RNG.uniform(1.0, 2.0, (2, 1, 16, 16)).astype(np.float32), gains((16,), 5, 500).astype(np.float32)
    with h5py.File("truth.h5", "w") as file:
        file["x"] = truth
    np.save("gain.npy", gain)
    given = ("--operator", "inpainting", "--set", "fraction=1.0", "--noise", "poisson:gain.npy")
    code, _, err = cli("simulate", "truth.h5", "-o", "scan.h5", *given)
    assert code == 0, err
    with h5py.File("scan.h5") as file:
        np.testing.assert_array_equal(file["noise/gain"], gain)
        counts = file["y"][:] * gain
    np.testing.assert_allclose(counts, np.rint(counts), atol=2e-4 * counts.max())
    # |y - x|^2 over x / gain is chi-squared to a few percent, within its own scatter.
    z = ((counts / gain - truth) ** 2 / (truth / gain)).mean()
    assert abs(z - 1) < 4 * math.sqrt((2 + float((1 / (gain * truth)).mean())) / truth.size)
    Path("gain.npy").unlink()
    code, _, err = cli("reconstruct", "scan.h5", "-o", "out.h5", "--prior", "natural", "--strategy", "moment", "--scale", "0:3",
                       "--set", "steps=3")  # fmt: skip
    assert code == 0, err
    with h5py.File("out.h5") as file:
        assert json.loads(file.attrs["config"])["noise"]["gain"]["shape"] == [16]
    noise = find_scan(hdf5.read_result(tmp_path / "out.h5")).noise
    assert isinstance(noise, invsolve.Poisson)
    np.testing.assert_array_equal(np.asarray(noise.gain), gain)


@pytest.mark.parametrize(
    ("gain", "line"),
    [
        (0.0, "gain must be > 0 and finite, got 0"),
        (torch.tensor([1.0, -2.0]), "gain must be > 0 and finite, got -2"),
        ([1.0, math.nan], "gain must be > 0 and finite, got nan"),
        (np.array([1.0, math.inf]), "gain must be > 0 and finite, got inf"),
        (torch.tensor([1j]), "gain must be real numbers, got complex64"),
        (torch.tensor([True]), "gain must be real numbers, got bool"),
    ],
)
def test_what_is_no_gain_is_one_line(gain: Any, line: str) -> None:
    with pytest.raises(invsolve.UserError, match=f"noise poisson: {line}"):
        invsolve.Poisson(gain)


def test_gains_that_do_not_fit_are_one_line() -> None:
    y = torch.ones(ITEMS, 1, SIZE, SIZE)
    for gain in (torch.ones(4), torch.ones(2, 1, 1, 1)):
        with pytest.raises(
            invsolve.UserError, match=r"noise poisson: gain .* does not broadcast against y \(3, 1, 6, 6\)"
        ):
            invsolve.reconstruct(y, Same(), prior=Pixels(), noise=invsolve.Poisson(gain), strategy="moment")
