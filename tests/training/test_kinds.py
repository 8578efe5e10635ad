"""Kinds of training, each against the closed form that a Gaussian field has for it: flow matching, PFGM++, volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import invsolve
from invsolve import UserError
from invsolve.contracts.scale import Scale
from invsolve.plugins.priors.unet import UNetPrior
from invsolve.testing import check_prior
from invsolve.testing.field import Field
from invsolve.training import data
from invsolve.training.batches import Batches
from invsolve.training.job import train_file
from invsolve.training.resident import ResidentBatches
from invsolve.training.settings import Request, Settings, make_settings
from tests.priors.test_prior_files import HEADER_FACTS


def powers(*size: int) -> np.ndarray:
    """Power spectrum of a periodic field of pixel variance 0.16."""
    k = [np.fft.fftfreq(n) * n for n in size]
    shape = 1 / (1 + sum(f**2 for f in np.meshgrid(*k, indexing="ij"))) ** 1.5
    return 0.16 * shape / shape.mean()


def fields(count: int, *size: int, seed: int = 0) -> np.ndarray:
    """Draws (count, 1, *size)."""
    axes = tuple(range(2, 2 + len(size)))
    white = np.random.default_rng(seed).normal(size=(count, 1, *size))
    return np.fft.ifftn(np.fft.fftn(white, axes=axes) * np.sqrt(powers(*size)), axes=axes).real.astype("f4")


def wiener(x: np.ndarray, sigma: float) -> np.ndarray:
    """E[x0 | x] for Gaussian noise."""
    axes, power = tuple(range(2, x.ndim)), powers(*x.shape[2:])
    return np.fft.ifftn(np.fft.fftn(x, axes=axes) * power / (power + sigma**2), axes=axes).real


def of_t(x: np.ndarray, sigma: float, degrees: int) -> np.ndarray:
    """E[x0 | x] for Student's noise: a mixture of Gaussian noises of variance sigma^2 D / chi^2_D, by quadrature over chi^2_D."""
    chi = stats.chi2(degrees).ppf((np.arange(400) + 0.5) / 400)
    axes, power = tuple(range(2, x.ndim)), powers(*x.shape[2:])
    energy = np.abs(np.fft.fftn(x, axes=axes, norm="ortho")) ** 2
    logs, means = [], []
    for tau in sigma**2 * degrees / chi:
        total = power + tau
        logs.append(-0.5 * (energy / total + np.log(total)).reshape(len(x), -1).sum(1))
        means.append(wiener(x, tau**0.5))
    weight = np.exp(np.array(logs) - np.max(logs, 0))
    weight /= weight.sum(0)
    return np.einsum("kb,kb...->b...", weight, np.array(means))


def trained(folder: Path, size: tuple[int, ...], **settings: Any) -> Any:
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = fields(1024, *size)
        file["x"].attrs["axes"] = ":".join(
            ["item", "channel", *(["position"] if len(size) == 1 else "zyx"[-len(size) :])]
        )
    given = {
        "range": "-1:1", "width": 16, "levels": 2, "batch_size": 32, "dropout": 0.0, "ema": 0.98, "sigma_mean": -0.7,
        "sigma_std": 0.6, "sigma_data": 0.4, "lr": 3e-3, "store": "float32", "validate_every": 10**6,
    }  # fmt: skip
    out = folder / "prior.safetensors"
    train_file(Request(folder / "x.h5", out, make_settings(given | settings), device="cpu"))
    return invsolve.load_prior(out, gaussian_above=0)


def errors(prior: Any, noisy: np.ndarray, clean: np.ndarray, sigma: float) -> float:
    with torch.no_grad():
        estimate = prior.denoise(torch.from_numpy(noisy).float(), torch.tensor(sigma)).numpy()
    return float(((estimate - clean) ** 2).mean())


class Velocity(nn.Module):
    """E[n - x0 | x_t] of the field, t = sigma / (1 + sigma), as a network that is told 250 ln sigma."""

    def __init__(self, spectrum: Tensor) -> None:
        super().__init__()
        self.spectrum = spectrum

    def forward(self, x: Tensor, label: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        sigma = (label / 250).exp().view(-1, 1, 1, 1)
        t = sigma / (1 + sigma)
        # Cov(n - x0, x_t) / Var(x_t), for each frequency.
        gain = (t - (1 - t) * self.spectrum) / (t**2 + (1 - t) ** 2 * self.spectrum)
        return (torch.fft.ifft2(gain * torch.fft.fft2(x)).real,)


def test_a_velocity_is_read_as_d() -> None:
    field = Field(16, std=0.4)
    prior = UNetPrior.create(HEADER_FACTS | {"parametrisation": "flow", "data_range": None}).eval()
    prior.network = Velocity(field.spectrum)
    x, sigma = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.05, 0.8, 20.0])
    torch.testing.assert_close(prior.denoise(x, sigma), field.denoise(x, sigma).float(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_trained_flow_is_near_the_wiener_filter(tmp_path: Path) -> None:
    prior = trained(tmp_path, (16, 16), kind="flow", network="fast", steps=150)
    assert prior.header["parametrisation"] == "flow"
    clean = fields(64, 16, 16, seed=5)
    noise = np.random.default_rng(6).normal(size=clean.shape)
    for sigma in (0.3, 0.6):
        noisy = clean + sigma * noise
        best = float(((wiener(noisy, sigma) - clean) ** 2).mean())
        assert errors(prior, noisy, clean, sigma) < 1.15 * best
    assert check_prior(prior)


@pytest.mark.parametrize("kind", [Batches, ResidentBatches])
def test_the_noise_of_pfgm_is_students(kind: type[Batches], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = fields(8, 16)
        file["x"].attrs["axes"] = "item:channel:position"
    settings = Settings(range="-1:1", kind="pfgm++", augmented=6, batch_size=400)
    images = data.Images(tmp_path / "x.h5", settings)
    batch = kind(images, np.arange(8), settings, Scale.from_range(-1.0, 1.0)).at(3)
    far = (batch.noisy - batch.target).double().flatten(1).square().mean(1) / batch.sigma.double() ** 2
    # Of N numbers of Student's t with D degrees of freedom the mean square is distributed as F(N, D).
    assert stats.kstest(far.numpy(), stats.f(16, 6).cdf).pvalue > 1e-3
    assert stats.kstest(16 * far.numpy(), stats.chi2(16).cdf).pvalue < 1e-6


@pytest.mark.slow
def test_pfgm_learns_the_posterior_mean_of_its_own_noise(tmp_path: Path) -> None:
    degrees, sigma = 2, 0.4
    prior = trained(tmp_path, (32,), kind="pfgm++", augmented=degrees, steps=300)
    clean, rng = fields(400, 32, seed=5), np.random.default_rng(6)
    strength = np.sqrt(degrees / rng.chisquare(degrees, (400, 1, 1)))
    noisy = clean + sigma * strength * rng.normal(size=clean.shape)
    best = float(((of_t(noisy, sigma, degrees) - clean) ** 2).mean())
    gaussian = float(((wiener(noisy, sigma) - clean) ** 2).mean())
    reached = errors(prior, noisy, clean, sigma)
    # A denoiser that believes sigma is twice as far off; a short training comes most of the way.
    assert best < 0.55 * gaussian
    assert reached < best + 0.4 * (gaussian - best)
    assert not prior.differentiable


def test_a_jacobian_that_is_no_covariance_is_refused() -> None:
    prior = UNetPrior.create(HEADER_FACTS | {"augmented": 128, "data_range": None}).eval()
    operator, y = invsolve.operator("inpainting", fraction=0.5, image_size=16), torch.zeros(1, 1, 16, 16)
    with pytest.raises(UserError, match="'mmps' needs"):
        invsolve.reconstruct(y, operator, prior, noise=invsolve.Gaussian(0.1), strategy="moment")


@pytest.mark.slow
def test_a_network_of_small_volumes(tmp_path: Path) -> None:
    prior = trained(tmp_path, (8, 8, 8), steps=100, width=8, batch_size=8)
    assert prior.event_shape == (1, None, None, None)
    clean = fields(16, 8, 8, 8, seed=5)
    noise = np.random.default_rng(6).normal(size=clean.shape)
    noisy = clean + 0.4 * noise
    best = float(((wiener(noisy, 0.4) - clean) ** 2).mean())
    assert errors(prior, noisy, clean, 0.4) < 1.3 * best
    assert best < 0.5 * 0.16
