"""ddlm: exact where the reconstruction is the image plus white noise, and low-dose CT by counts behind an absorber."""

from __future__ import annotations

import pytest
import torch

import invsolve
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.testing.distances import compare
from invsolve.testing.exact import exact_posterior
from tests.support.types import narrow

SIZE = 32


def test_white_noise_is_denoised_to_draws_from_the_posterior() -> None:
    everything = narrow(invsolve.LinearOperator, invsolve.operator("inpainting", fraction=1.0, image_size=16))
    figures = compare(invsolve.strategy("ddlm"), exact_posterior(everything, sigma=0.1))
    assert figures["evaluations"] == 21
    assert figures["mean_error"] < 0.05 + 128**-0.5
    assert figures["std_ratio"] == pytest.approx(1.0, abs=0.05)
    assert figures["eigen_low"] > 0.85
    assert figures["eigen_high"] < 1.15


@pytest.mark.parametrize("photons", [100.0, 1000.0])
def test_low_dose_tomography_by_counts_starts_from_the_level_that_it_has(photons: float) -> None:
    """Beer's law: the level found is FBP's own error, on average over images, and a quarter of that error at least is gone."""
    count = 16
    prior = invsolve.load_prior("gaussian-field", size=SIZE, std=0.3, length=6.0, decay=2.5)
    scale, noise = Scale.from_range(0.0, 0.04), invsolve.noise("transmission", i0=photons)
    operator = invsolve.operator("ct", image_size=SIZE, angles=64, detectors=48)
    truth = invsolve.sample(prior, count, seed=0)
    y = invsolve.simulate(scale.to_physical(truth), operator, noise, seed=1)
    problem = make_problem(prior, operator, noise, y, (1, SIZE, SIZE), scale)
    strategy, chains = invsolve.strategy("ddlm"), [(k, 0) for k in range(count)]
    begun = strategy.init(problem, ChainRandom(0, chains).at(0))
    before = rms(begun["x"] - truth)
    assert float(begun["level"].square().mean().sqrt()) == pytest.approx(before, rel=0.15)
    after = rms(run_batch(problem, strategy, ChainRandom(0, chains)).images - truth)
    assert after < 0.75 * before


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def test_an_operator_that_is_not_linear_has_no_reconstruction_to_denoise() -> None:
    class Squares(invsolve.Operator):
        image_shape = (1, 6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x**2

    prior = invsolve.load_prior("gaussian-field", size=6)
    with pytest.raises(invsolve.UserError, match="'ddlm' needs a linear operator"):
        invsolve.reconstruct(
            torch.ones(1, 1, 6, 6), Squares(), prior, noise=invsolve.Gaussian(0.1), strategy="ddlm", samples=1
        )
