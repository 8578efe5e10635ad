"""The Gaussian start: exact against dense closed forms, no network call where it stands, the same posterior, and its header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

import invsolve
from invsolve import UserError
from invsolve.engine.tiles import Tiled
from invsolve.engine.volume import ChannelWise, RowsOfAVolume, SliceWise
from invsolve.networks.gaussian_start import GaussianStart, level_of_choice
from invsolve.plugins.priors.unet import UNetPrior, read_header, save
from invsolve.testing import check_prior
from invsolve.testing.distances import run
from invsolve.testing.exact import exact_posterior
from invsolve.testing.field import Field
from invsolve.training.job import train_file
from invsolve.training.settings import Request, make_settings
from tests.priors.test_prior_files import HEADER_FACTS
from tests.support.types import narrow

SIZE, CPU = 16, torch.device("cpu")


def of_field(field: Field, above: float | None) -> GaussianStart:
    """The same Gaussian by its real Fourier coefficients."""
    mode = (torch.arange(SIZE) + 1) // 2
    power = field.spectrum[mode[:, None], mode][None]
    return GaussianStart((SIZE, SIZE), torch.zeros_like(power), power, basis="fourier", above=above)


class Started(UNetPrior):
    """An exact field stands where a file has its network."""

    name = ""

    @classmethod
    def of(cls, field: Field, above: float | None) -> Started:
        prior: Any = cls.create(HEADER_FACTS | {"data_range": None})
        prior.field, prior.gaussian, prior.calls = field, of_field(field, above), 0
        prior.sigma_min, prior.event_shape = field.sigma_min, field.event_shape
        return prior.eval()

    def _through_network(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += len(x)
        return self.field.denoise(x, sigma)

    def error(self, sigma: float) -> float:
        return self.field.error(sigma)


def test_the_cosine_gaussian_is_the_dense_posterior_mean() -> None:
    """E[x0 | x] = m + C (C + sigma^2)^-1 (x - m), with scipy's cosine transform and dense algebra."""
    rng = np.random.default_rng(0)
    size, modes = (6, 5), (4, 5)
    mean, power = rng.normal(size=(2, *modes)), rng.exponential(size=(2, *modes))
    start = GaussianStart(size, torch.from_numpy(mean), torch.from_numpy(power))
    x, sigma = rng.normal(size=(3, 2, *size)), 0.7
    ours = start.denoise(torch.from_numpy(x), torch.tensor(sigma, dtype=torch.float64)).numpy()
    for channel in range(2):
        padded = np.zeros((2, *size))
        padded[:, : modes[0], : modes[1]] = mean[channel], power[channel]
        images = idctn(np.eye(30).reshape(30, *size), axes=(1, 2), norm="ortho").reshape(30, 30).T
        covariance = images @ np.diag(padded[1].ravel()) @ images.T
        centre = images @ padded[0].ravel()
        gain = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(30))
        wanted = centre + (x[:, channel].reshape(3, 30) - centre) @ gain.T
        np.testing.assert_allclose(ours[:, channel].reshape(3, 30), wanted, atol=1e-12)
    alone = start.denoise(torch.from_numpy(x[:1]).float(), torch.tensor([sigma]))
    np.testing.assert_allclose(alone.numpy(), ours[:1], atol=1e-5)


@pytest.mark.parametrize("size", [15, 16])
def test_a_periodic_field_is_exact_in_the_fourier_basis(size: int) -> None:
    field = invsolve.load_prior("gaussian-field", size=size, std=0.4)
    mode = (torch.arange(size) + 1) // 2
    power = narrow(Tensor, field.spectrum)[mode[:, None], mode][None]
    start = GaussianStart((size, size), 0 * power, power, basis="fourier")
    x = torch.randn(2, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.3, 5.0], dtype=torch.float64)
    torch.testing.assert_close(start.denoise(x, sigma), field.denoise(x, sigma), atol=1e-12, rtol=0)
    assert start.error(0.3) == pytest.approx(field.error(0.3), rel=1e-12)


def test_it_is_measured_on_images() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 2, 9, 8)) + np.linspace(0, 2, 8)
    weights = rng.uniform(size=7)
    start = GaussianStart.measure(torch.from_numpy(x), torch.from_numpy(weights), modes=5)
    values, share = dctn(x, axes=(2, 3), norm="ortho"), weights / weights.sum()
    mean = np.tensordot(share, values, 1)
    power = np.tensordot(share, (values - mean) ** 2, 1)
    np.testing.assert_allclose(start.mean.numpy(), mean[:, :5, :5], atol=1e-12)
    np.testing.assert_allclose(start.power.numpy(), power[:, :5, :5], atol=1e-12)
    outside = np.tensordot(share, values**2, 1)
    outside[:, :5, :5] = 0
    assert start.rest == pytest.approx(outside.mean(), rel=1e-10)
    both = np.concatenate([x, x[..., ::-1]])
    twice = GaussianStart.measure(torch.from_numpy(both.copy()), torch.from_numpy(np.tile(weights, 2)), modes=5)
    mirrored = GaussianStart.measure(torch.from_numpy(x), torch.from_numpy(weights), modes=5, mirrored=[1])
    torch.testing.assert_close(mirrored.mean, twice.mean, atol=1e-12, rtol=0)
    torch.testing.assert_close(mirrored.power, twice.power, atol=1e-12, rtol=0)
    assert mirrored.rest == pytest.approx(twice.rest)


@pytest.mark.parametrize("name", ["moment", "dds", "diffpir", "pigdm", "daps"])
def test_strategies_save_the_calls_and_keep_the_posterior(name: str) -> None:
    """Above the level D is the same function, so that the samples are, and only the count is smaller."""
    operator = narrow(invsolve.LinearOperator, invsolve.operator("inpainting", fraction=0.5, image_size=SIZE))
    problem = exact_posterior(operator, samples=4, seed=0).problem
    strategy = invsolve.strategy(name).at_cost(40)
    outcomes, calls = [], []
    for above in (None, 1.0):
        prior = Started.of(Field(SIZE), above)
        one = replace(problem, known=prior)
        outcomes.append(run(strategy, one, 3))
        calls.append(prior.calls / one.batch)
    torch.testing.assert_close(outcomes[1].images, outcomes[0].images, atol=2e-4, rtol=0)
    whole, saved = (outcome.facts["network_calls"] for outcome in outcomes)
    assert (whole, saved) == (calls[0], calls[1])
    assert saved < 0.85 * whole
    assert outcomes[1].facts["vjp_calls"] <= outcomes[0].facts["vjp_calls"]


def test_rows_of_different_levels_and_other_sizes() -> None:
    prior = Started.of(Field(SIZE), 1.0)
    x = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    mixed = prior.denoise(x, torch.tensor([0.2, 1.0, 7.0]))
    torch.testing.assert_close(mixed, prior.field.denoise(x, torch.tensor([0.2, 1.0, 7.0])), atol=1e-5, rtol=0)
    assert [prior.passes_at((1, SIZE, SIZE), s) for s in (0.99, 1.0, 7.0)] == [1, 0, 0]
    assert prior.passes_at((1, SIZE, 2 * SIZE), 7.0) == 1


def test_views_count_what_goes_through_the_network() -> None:
    prior = Started.of(Field(SIZE), 1.0)
    slices = SliceWise(prior, 4, CPU, planes=3)
    assert slices.passes_at((1, SIZE, SIZE, SIZE), 2.0) == 0
    assert slices.passes_at((1, 5, SIZE, SIZE), 2.0) == 2
    assert slices.passes_at((1, 5, SIZE, SIZE), 0.5) == 3
    assert RowsOfAVolume(prior, 4, CPU).passes_at((1, SIZE, SIZE), 2.0) == 0
    assert ChannelWise(prior, 4, CPU, 3).passes_at((3, SIZE, SIZE), 0.5) == 3
    assert ChannelWise(prior, 4, CPU, 3).passes_at((3, SIZE, SIZE), 2.0) == 0
    tiles = Tiled(prior, SIZE, 2 * SIZE, 4, CPU)
    assert [tiles.passes_at((1, side, side), 2.0) for side in (SIZE, 2 * SIZE, 3 * SIZE)] == [0, 1, 0]


def test_the_level_is_chosen_where_the_network_is_no_better() -> None:
    curve = {"sigma": [1.0, 2.0, 4.0, 8.0], "mse": [0.1, 0.2, 0.3, 0.4]}
    assert level_of_choice(curve, [0.2, 0.1, 0.2, 0.3]) == 2.0
    assert level_of_choice(curve, [0.1, 0.3, 0.3, 0.4]) == 4.0
    assert level_of_choice(curve, [0.0, 0.0, 0.0, 0.5]) is None


@pytest.mark.parametrize("name", ["ct-128", "mr-128", "mr-complex-128", "natural"])
def test_the_bundled_priors_have_one_that_is_off(name: str) -> None:
    prior = invsolve.load_prior(name)
    shape = (narrow(int, prior.event_shape[0]), 128, 128)
    assert prior.passes_at(shape, 39.0) == 1
    # In words, as a command line has it.
    early = invsolve.load_prior(f"{name}:gaussian_above=10")
    assert early.parameters_given == {"gaussian_above": 10.0}
    assert [early.passes_at(shape, sigma) for sigma in (9.9, 10.0, 39.0)] == [1, 0, 0]
    assert early.fingerprint() != prior.fingerprint()
    x = 20 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, network = (p.denoise(x, torch.tensor(20.0)) for p in (early, prior))
    # Both guess the slow part of a picture: they differ by less than either errs.
    assert float((ours - network).square().mean()) < 2 * prior.error(20.0)
    assert invsolve.load_prior(name, gaussian_above=0).passes_at(shape, 39.0) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    field = Field(SIZE, std=0.4)
    x = field.sample(invsolve.ChainRandom(0, [(k, 0) for k in range(64)]), torch.zeros(1))
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = x.numpy()
    settings = {"range": "-1:1", "network": "fast", "width": 8, "levels": 2, "batch_size": 4, "steps": 4, "seed": 1}
    train_file(Request(folder / "x.h5", folder / "p.safetensors", make_settings(settings), device="cpu"))
    return folder / "p.safetensors"


def test_training_stores_it_and_turns_it_on_where_the_network_is_worse(trained: Path) -> None:
    """A network of four steps knows less than the Gaussian of what is a Gaussian field."""
    prior: Any = invsolve.load_prior(trained)
    assert prior.gaussian.above is not None
    assert prior.passes_at((1, SIZE, SIZE), 10.0) == 0
    # All modes of these small images are kept: 16 of 16 along each side, so that the pixel variance is theirs.
    assert float(prior.gaussian.power.sum()) / SIZE**2 == pytest.approx(0.16, rel=0.15)
    report = check_prior(prior)
    assert report, report
    off = invsolve.load_prior(trained, gaussian_above=0)
    assert off.passes_at((1, SIZE, SIZE), 10.0) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"power": "x"}, {"power": [[[float("nan")]]], "mean": [[[0.0]]]}, {"power": [[[-1.0]]], "mean": [[[0.0]]]},
        {"size": [10**9, 4]}, {"basis": "sine"}, {"rest": None}, {"above": -1.0}, {"size": []}, {"mean": [[1.0]]},
        {"mean": [[[0.0]], [[0.0]]], "power": [[[0.0]], [[0.0]]]},
    ],
)  # fmt: skip
def test_a_header_may_say_anything(trained: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    header = narrow(dict, read_header(trained))
    prior: Any = invsolve.load_prior(trained)
    bad = tmp_path / "bad.safetensors"
    save(bad, prior.network.state_dict(), {**header, "gaussian": header["gaussian"] | change})
    with pytest.raises(UserError, match="write the header again") as caught:
        invsolve.load_prior(bad)
    assert "\n" not in str(caught.value)


def test_a_file_without_one_says_so(trained: Path, tmp_path: Path) -> None:
    header = narrow(dict, read_header(trained))
    plain = tmp_path / "plain.safetensors"
    prior: Any = invsolve.load_prior(trained)
    save(plain, prior.network.state_dict(), {k: v for k, v in header.items() if k != "gaussian"})
    with pytest.raises(UserError, match="gaussian_above needs a Gaussian"):
        invsolve.load_prior(plain, gaussian_above=3.0)
