"""Noises in use: posteriors against quadrature, refusals that name what would do, the discrepancy, files, words and pipelines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import jobs, registry
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.datasets import hdf5
from invsolve.engine import Options
from invsolve.files.opening import open_measurement
from invsolve.numerics.random import ChainRandom
from invsolve.registry.check import instances, users_of
from invsolve.testing import pixels
from invsolve.testing.log import Log

NOISES = [name for name in registry.available("noise") if name not in ("gaussian", "poisson")]


def first(name: str) -> invsolve.Noise:
    noise: invsolve.Noise = instances(registry.find("noise", name), "noise", name)[0]
    return noise


@pytest.mark.parametrize("strategy", ["moment", "daps"])
@pytest.mark.parametrize("name", NOISES)
def test_pixels_have_the_posterior_that_quadrature_gives(name: str, strategy: str) -> None:
    log = Log(name)
    pixels.look(log, first(name), instances(registry.find("strategy", strategy), "strategy", strategy)[0], strategy)
    # `moment` is not for tails.
    assert len(log.findings) == (0 if strategy == "moment" and name in ("laplace", "student") else 2)
    assert log, str(log)


def test_the_kit_finds_draws_of_another_posterior() -> None:
    noise = first("gamma")

    @dataclass(frozen=True)
    class Wrong(type(noise)):  # type: ignore[misc]
        def std(self, predicted: Tensor) -> Tensor:
            return 3 * super().std(predicted)

    log = Log("wrong")
    pixels.look(log, Wrong(30.0), invsolve.strategy("moment"), "moment")
    assert not log


@dataclass(frozen=True)
class Loose(invsolve.Noise):
    """Laplace noise whose author claims that Gaussian noise may stand for it, and a density that does not add up to one."""

    scale: float = 0.3
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        exponential = (rng.normal(clean).square() + rng.normal(clean).square()) / 2
        return clean + self.scale * (2 * exponential).sqrt() * rng.normal(clean)

    def log_likelihood(self, y: Tensor, predicted: Tensor) -> Tensor:
        return -((y - predicted).abs() / self.scale).flatten(1).sum(1)

    def std(self, predicted: Tensor) -> Tensor:
        return torch.full((), math.sqrt(2) * self.scale, dtype=predicted.dtype)

    def constant(self, y: Tensor) -> Tensor:
        return torch.full((len(y),), -y[0].numel() * math.log(self.scale), dtype=y.dtype)


def test_the_kit_finds_what_a_strangers_noise_says_wrong() -> None:
    broken = {finding.name for finding in invsolve.testing.check_noise(Loose()).failures}
    assert "Gaussian noise can stand for it" in broken
    assert "density adds up to one, by quadrature" in broken
    # Six, not three.
    assert "scatter of the deviation" in broken


@pytest.mark.parametrize("strategy", ["linear", "dds", "red-diff", "mmps", "dps", "dps-fitted", "flowchef-fitted"])
def test_a_strategy_that_noise_is_wrong_for_names_those_that_take_it(strategy: str) -> None:
    y = torch.rand(1, 1, 4, 4)
    operator = invsolve.operator("inpainting", mask=torch.ones(4, 4))
    with pytest.raises(invsolve.UserError) as caught:
        invsolve.reconstruct(y, operator, Prior(), noise="student:0.1", strategy=strategy)
    line = str(caught.value)
    needs = (
        "noise that Gaussian noise"
        if strategy in ("mmps", "dps", "dps-fitted", "flowchef-fitted")
        else "Gaussian noise"
    )
    assert line.startswith(f"strategy '{strategy}' needs {needs}")
    assert "; it is student; daps, mgdm, pnp-dm, restarts would do" in line
    assert "\n" not in line


def test_rounding_alone_has_no_slope() -> None:
    y = torch.rand(1, 1, 4, 4)
    operator = invsolve.operator("inpainting", mask=torch.ones(4, 4))
    with pytest.raises(
        invsolve.UserError, match="'daps' needs noise whose log-likelihood has a slope; it is rounding; mmps"
    ):
        invsolve.reconstruct(y, operator, Prior(), noise="rounding:0.1", strategy="daps")
    names = {strategy.name for strategy in users_of(invsolve.noise("rounding:0.1"))}
    assert "mmps" in names
    assert "pnp-dm" not in names


class Prior(pixels.Pixels):
    """Pixels 1.5 +- 0.25."""

    event_shape = (1, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "laplace:0.2",
        "student:0.2,3",
        "gamma:1.5",
        "rician:0.5",
        "transmission:30,2",
        "poisson-gaussian:9,2,3",
        "rounding:0.3,0.05",
    ],
)
def test_the_truth_and_draws_of_the_posterior_explain_the_noise(text: str) -> None:
    noise = invsolve.noise(text)
    rng = ChainRandom(1, [(k, 0) for k in range(400)])
    truth = pixels.MEAN + pixels.STD * rng.normal(torch.zeros(400, 1, 8, 8, dtype=torch.float64))
    y = noise.sample(truth[:, 0], rng)
    problem = make_problem(Prior(), Channel(), noise, y, (1, 8, 8), Scale(), 1)
    ratio, dof = problem.discrepancy(truth)
    # Squares of the truth's residual have the mean 1 and the spread sqrt(2 / dof), as is told.
    squares = ratio.square()
    assert float(squares.mean()) == pytest.approx(1, abs=5 * float(squares.std()) / 20 + 0.01)
    assert float(squares.std()) == pytest.approx(float((2 / dof).sqrt().mean()), rel=0.35)
    # What ignores the data fits them worse, or no better where the noise hides all.
    ignorant = problem.discrepancy(truth.roll(1, 0))[0]
    assert float(ignorant.square().mean()) > float(squares.mean()) - 0.01
    # And what is far off is never explained.
    assert float(problem.discrepancy(10 * truth)[0].mean()) > 1.3


class Channel(invsolve.Operator):
    """The image's first channel."""

    image_shape = (1, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


@pytest.mark.discrepant
def test_dps_takes_counts_behind_an_absorber() -> None:
    """Its step is divided by the norm of what the mean of y makes of A, or it would be ten thousand times too long.

    The steps are then those on line integrals with Gaussian noise of the same precision, with the paper's zeta for counts.
    """
    noise = invsolve.noise("transmission:1e5")
    truth = pixels.MEAN + pixels.STD * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = noise.sample(truth[:, 0], ChainRandom(0, [(0, 0)]))
    lines = noise.predicted_from(y)
    level = float(make_problem(Prior(), Channel(), noise, y, (1, 8, 8), Scale(), 1).noise_level())
    # Photons behind e^-1.5 of the beam.
    assert level == pytest.approx((1e5 * math.exp(-pixels.MEAN)) ** -0.5, rel=0.1)
    errors = []
    for data, model, zeta in ((y, noise, 1.0), (lines, invsolve.Gaussian(level), 0.3)):
        dps = invsolve.strategy("dps", steps=200, zeta=zeta)
        given = invsolve.reconstruct(data, Channel(), Prior(), noise=model, strategy=dps, samples=4, seed=0)
        errors.append(float((given.mean - truth).square().mean().sqrt()))
    assert errors[0] < 0.15 * pixels.STD
    assert errors[0] == pytest.approx(errors[1], rel=0.5)


def write_images(path: Path) -> np.ndarray:
    truth = 0.02 + 0.02 * np.random.default_rng(0).random((2, 1, 16, 16)).astype(np.float32)
    hdf5.write_images(path, torch.from_numpy(truth))
    return truth


@pytest.mark.parametrize(
    ("operator", "given", "noise"),
    [
        ("ct", {"image_size": 16, "angles": 12}, "transmission:i0=5e3,background=2"),
        ("inpainting", {"fraction": 0.7}, "poisson-gaussian:gain=900,read=3,offset=0.1"),
        ("blur", {"sigma": 1.0}, "rician:0.002"),
        ("blur", {"sigma": 1.0}, "gamma:60"),
        ("inpainting", {"fraction": 0.7}, "rounding:0.004,0.001"),
        ("blur", {"sigma": 1.0}, "student:scale=0.002,dof=3"),
        ("blur", {"sigma": 1.0}, "laplace:0.002"),
    ],
)
def test_noises_go_through_files_words_and_the_record(
    operator: str, given: dict[str, Any], noise: str, tmp_path: Path
) -> None:
    truth = write_images(tmp_path / "x.h5")
    jobs.simulate_file(tmp_path / "x.h5", tmp_path / "y.h5", operator, given, noise, 0, False)
    scan = open_measurement(tmp_path / "y.h5")
    wanted = invsolve.noise(noise)
    assert scan.noise == wanted
    assert torch.equal(scan.y[0:2], invsolve.simulate(torch.from_numpy(truth), scan.operator, wanted, seed=0))
    strategy = "daps" if noise.startswith(("student", "laplace")) else "moment"
    path = tmp_path / "prior.py"
    path.write_text(PLUGIN, encoding="utf-8")
    registry.load_file(path)
    try:
        request = jobs.Request(
            tmp_path / "y.h5", tmp_path / "r.h5", "narrow-pixels", strategy, {"steps": 12}, Options(samples=2)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *args, **kwargs: None)
            jobs.reconstruct_file(request)
    finally:
        registry.unload_files()
    result = hdf5.read_result(tmp_path / "r.h5")
    record = result.config["noise"]
    assert record == {"name": wanted.name, **wanted.settings()}
    assert abs(float(torch.as_tensor(result.mean[0:2]).mean()) - float(truth.mean())) < 0.01


PLUGIN = '''
import invsolve


class NarrowPixels(invsolve.Prior):
    """Independent pixels 0.03 +- 0.006."""

    name = "narrow-pixels"
    event_shape = (1, None, None)
    sigma_min, sigma_max = 1e-5, 1.0

    def denoise(self, x, sigma):
        return (0.006**2 * x + sigma**2 * 0.03) / (0.006**2 + sigma**2)

    def error(self, sigma):
        return 0.006**2 * sigma**2 / (0.006**2 + sigma**2)


@invsolve.hookimpl
def invsolve_priors():
    return {"narrow-pixels": NarrowPixels}
'''
