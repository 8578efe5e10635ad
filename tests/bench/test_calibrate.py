"""Simulation-based calibration: exact samples pass, wrong ones of each kind are found; the tests of uniformity by themselves."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats

import invsolve
from invsolve.api import sampling
from invsolve.bench import ranks as rank_tests
from invsolve.bench.calibrate import Calibration, calibrate, draw_figure
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics.random import ChainRandom
from invsolve.testing.operators import dense
from tests.support import bounds
from tests.support.types import Cli, linear_operator, offered

SIZE = 6
SIGMA = 0.1


@cache
def gains(sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the posterior of blur on the Gaussian field: gain (pixels, pixels) and square root of the covariance."""
    matrix, _ = dense(blur().to(torch.float64), (1, SIZE, SIZE))
    covariance = field().covariance()
    gram = matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = torch.linalg.solve(gram, matrix @ covariance).T
    values, vectors = torch.linalg.eigh(covariance - gain @ matrix @ covariance)
    return gain, vectors * values.clamp_min(0).sqrt()


def field() -> invsolve.Prior:
    return invsolve.load_prior("gaussian-field", size=SIZE, std=0.4)


def blur() -> invsolve.LinearOperator:
    return linear_operator("blur", sigma=0.7)


@dataclass(frozen=True)
class Exact(Strategy):
    """Draws from the closed-form posterior, made wrong on request.

    Args:
        width: factor of the posterior's standard deviation.
        shift: added to every pixel.
        blind: draw from the prior, whatever y is.
    """

    width: float = 1.0
    shift: float = 0.0
    blind: bool = False

    needs: ClassVar[tuple[str, ...]] = ("prior",)

    def schedule(self, problem: Problem) -> torch.Tensor:
        return torch.tensor([1.0, 0.0])

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": problem.zeros()}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        if self.blind:
            return {"x": problem.prior.sample(rng, problem.y)}
        gain, root = gains(SIGMA)
        mean = problem.y.flatten(1).double() @ gain.T
        x = mean + self.width * rng.normal(mean) @ root.T + self.shift
        return {"x": x.view(problem.y.shape).to(problem.y.dtype)}


def verdicts(strategy: Strategy, trials: int = 300) -> dict[str, str]:
    calibration = calibrate(field(), blur(), invsolve.Gaussian(SIGMA), strategy, trials, samples=15, batch_size=5000)
    return {row["functional"]: row["verdict"] for row in calibration.rows()}


def test_exact_samples_have_uniform_ranks() -> None:
    outcomes = verdicts(Exact(), trials=400)
    assert set(outcomes.values()) == {"uniform"}
    assert {"projection 1", "pixel mean", "norm", "misfit"} <= set(outcomes)


def test_tarp_coverage_is_nominal_for_exact_samples_and_not_for_narrow_ones() -> None:
    found = {
        width: calibrate(field(), blur(), invsolve.Gaussian(SIGMA), Exact(width=width), 150, 15, batch_size=5000)
        for width in (1.0, 0.5)
    }
    for level in (0.5, 0.9):
        exact = found[1.0].tarp(level)
        assert set(exact) == {"image", "coarse"}
        for value in exact.values():
            assert value == pytest.approx(level, abs=bounds.share_error(150, level))
    # Narrow samples are nearer to or farther from a point all together, so that the truth lies outside of them.
    assert found[0.5].tarp(0.9)["coarse"] < 0.9 - bounds.share_error(150, 0.9)
    ranks = Calibration(3, {"TARP image": np.array([0, 1, 2, 3])}, "made up")
    assert ranks.tarp(0.5) == {"image": pytest.approx(0.5)}
    assert ranks.tarp(0.625) == {"image": pytest.approx(0.625)}


def test_overconfident_samples_are_found() -> None:
    outcomes = verdicts(Exact(width=0.6))
    narrow = [name for name, text in outcomes.items() if text == "samples too narrow"]
    assert len([name for name in narrow if "projection" in name]) >= 4
    assert outcomes["misfit"] == "samples too low"


def test_too_wide_samples_are_found() -> None:
    outcomes = verdicts(Exact(width=1.8))
    assert len([t for n, t in outcomes.items() if "projection" in n and t == "samples too wide"]) >= 4


def test_shifted_samples_are_found() -> None:
    outcomes = verdicts(Exact(shift=0.2))
    assert outcomes["pixel mean"] == "samples too high"


def test_samples_that_ignore_the_data_are_found_by_the_misfit_alone() -> None:
    outcomes = verdicts(Exact(blind=True))
    assert outcomes.pop("misfit") == "samples too high"
    assert set(outcomes.values()) == {"uniform"}


def test_a_prior_without_a_sampler_is_drawn_by_its_flow() -> None:
    class Network(invsolve.Prior):
        """The Gaussian field as if it were a network: a denoiser and nothing else."""

        event_shape = (1, SIZE, SIZE)

        def __init__(self) -> None:
            super().__init__()
            self.inner = field()

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return self.inner.denoise(x, sigma)

    heard: list[str] = []
    calibration = calibrate(
        Network(), blur(), invsolve.Gaussian(SIGMA), Exact(), 200, 15, batch_size=5000, say=heard.append
    )
    assert "its error enters" in heard[0]
    assert {row["verdict"] for row in calibration.rows()} == {"uniform"}
    x = sampling.draw(Network(), 3, 200, 400).flatten(1)
    dims = bounds.dimensions(offered(field()).covariance())
    assert float(x.square().mean().sqrt()) == pytest.approx(0.4, rel=bounds.width_error(400 + 1, dims))


class TestUniformity:
    def test_p_values_are_uniform_for_uniform_ranks(self) -> None:
        rng = np.random.default_rng(0)
        rows = rng.integers(0, 16, (300, 100))
        for test in (rank_tests.chi_square, lambda r, s: rank_tests.ecdf_band(r, s, simulations=400)):
            p = np.array([test(row, 15) for row in rows])
            assert stats.kstest(p, "uniform").pvalue > 1e-3

    def test_departures_have_small_p_values(self) -> None:
        rng = np.random.default_rng(1)
        edges = rng.choice([0, 15], 100)
        low = rng.integers(0, 6, 100)
        for ranks, text in (
            (edges, "samples too narrow"),
            (low, "samples too high"),
            (edges * 0 + 7, "samples too wide"),
        ):
            p = rank_tests.ecdf_band(ranks, 15)
            assert p < 0.005
            assert rank_tests.chi_square(ranks, 15) < 0.005
            assert rank_tests.verdict(ranks, 15, p, 0.01) == text

    def test_bars_show_the_histogram(self) -> None:
        assert rank_tests.bars(np.arange(160) % 16, 15) == "▄" * 16
        assert rank_tests.bars(np.zeros(50, dtype=int), 15, bins=4) == "█   "

    def test_histogram_counts_every_rank_with_its_share(self) -> None:
        counts, shares = rank_tests.histogram(np.arange(8), 7, 3)
        assert counts.tolist() == (shares * 8).tolist()
        assert counts.sum() == 8


def test_figure(tmp_path: Path) -> None:
    calibration = Calibration(7, {"norm": np.arange(40) % 8, "misfit": np.zeros(40, dtype=int)}, "made up")
    draw_figure(calibration, tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(invsolve.UserError, match=r"\.png"):
        draw_figure(calibration, tmp_path / "ranks.pdf")


def test_command(cli: Cli, tmp_path: Path) -> None:
    picture = tmp_path / "ranks.png"
    call = ["bench", "calibrate", "--prior", "gaussian-field", "--set-prior", "size=8", "--operator", "inpainting"]
    call += [
        "--set",
        "fraction=0.5",
        "--noise",
        "gaussian:0.1",
        "--strategy",
        "moment",
        "--trials",
        "12",
        "--samples",
        "7",
    ]
    call += ["--set-strategy", "steps=8", "--batch-size", "100"]
    code, out, err = cli(*call, "--figure", picture)
    assert code == 0, err
    assert "p ECDF band" in out
    assert picture.exists()
    code, out, err = cli(*call, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert len(report["functionals"][0]["ranks"]) == 12
    code, _, err = cli(*call[:-2], "--trials", 3)
    assert code == 2
    assert "at least 10 trials" in err
