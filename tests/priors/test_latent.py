"""Latent priors: the exact posterior of decoded Gaussian latents, folders of diffusers against its own arithmetic, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import UserError
from invsolve.contracts.latent import LatentPrior
from invsolve.engine.volume import for_images
from invsolve.testing.field import Field

diffusers = pytest.importorskip("diffusers")

SIDE, SIGMA = 8, 0.05


class Repeated(LatentPrior):
    """Images of 16 x 16 that repeat each pixel of a Gaussian field of 8 x 8 four times, over two: a linear decoder."""

    factor = 2

    def __init__(self) -> None:
        super().__init__()
        self.inner = Field(SIDE, std=0.4)
        self.event_shape = (1, None, None)
        self.sigma_min, self.sigma_max = self.inner.sigma_min, self.inner.sigma_max

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3) / 2

    def encode(self, images: Tensor) -> Tensor:
        return 2 * torch.nn.functional.avg_pool2d(images, 2)


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Any, np.ndarray, np.ndarray]:
    """y, the operator, and the exact posterior mean and standard deviation of the image."""
    operator = invsolve.operator("inpainting", fraction=0.3, image_size=2 * SIDE)
    prior = Repeated()
    pixels = SIDE * SIDE
    basis = prior.decode(torch.eye(pixels).view(pixels, 1, SIDE, SIDE))
    decoder = basis.flatten(1).T.double().numpy()
    matrix = operator(basis).flatten(1).T.double().numpy()
    covariance = Field(SIDE, std=0.4).covariance().numpy()
    rng = np.random.default_rng(0)
    latent = np.linalg.cholesky(covariance + 1e-12 * np.eye(pixels)) @ rng.normal(size=pixels)
    seen = np.flatnonzero(np.abs(matrix).sum(1) > 0)
    y = np.zeros(len(matrix))
    y[seen] = matrix[seen] @ latent + SIGMA * rng.normal(size=len(seen))
    gain = (
        covariance
        @ matrix[seen].T
        @ np.linalg.inv(matrix[seen] @ covariance @ matrix[seen].T + SIGMA**2 * np.eye(len(seen)))
    )
    mean = decoder @ gain @ y[seen]
    spread = decoder @ (covariance - gain @ matrix[seen] @ covariance) @ decoder.T
    return torch.from_numpy(y).float().view(1, 1, 2 * SIDE, 2 * SIDE), operator, mean, np.sqrt(spread.diagonal())


@pytest.mark.parametrize("name", ["moment", "daps"])
def test_strategies_find_the_posterior_through_a_linear_decoder(
    name: str, problem: tuple[Tensor, Any, np.ndarray, np.ndarray]
) -> None:
    y, operator, mean, std = problem
    rec = invsolve.reconstruct(
        y, operator, Repeated(), noise=invsolve.Gaussian(SIGMA), strategy=name, samples=64, seed=0, batch_size=64,
        scale=(-1.0, 1.0), progress=False,
    )  # fmt: skip
    assert rec.samples.shape == (1, 64, 1, 2 * SIDE, 2 * SIDE)
    off = (rec.mean.flatten().double().numpy() - mean) / std
    # 64 exact draws are 1 / 8 off.
    assert np.sqrt((off**2).mean()) < 0.3
    assert np.sqrt((rec.std.flatten().double().numpy() ** 2).mean() / (std**2).mean()) == pytest.approx(1.0, abs=0.12)
    # What is told of the data is told of the decoded images.
    again = y - operator(rec.samples[0].float())
    kept = operator.measured().expand_as(again)
    expected = SIGMA * float(kept.sum(dtype=torch.float64) / 64) ** 0.5
    shown = torch.as_tensor(rec.diagnostics["discrepancy"]).flatten()
    assert torch.allclose((again * kept).flatten(1).norm(dim=1) / expected, shown.float(), rtol=1e-3)


def test_linear_strategies_and_other_shapes_are_refused() -> None:
    operator, y = invsolve.operator("inpainting", fraction=0.5, image_size=16), torch.zeros(1, 1, 16, 16)
    with pytest.raises(UserError, match="needs a linear operator"):
        invsolve.reconstruct(y, operator, Repeated(), noise=invsolve.Gaussian(0.1), strategy="ddnm")
    odd = invsolve.operator("inpainting", fraction=0.5, image_size=15)
    with pytest.raises(UserError, match="multiples of 2"):
        invsolve.reconstruct(y[..., :15, :15], odd, Repeated(), noise=invsolve.Gaussian(0.1), strategy="moment")
    with pytest.raises(UserError, match="no view of volumes"):
        for_images(Repeated(), (3, 16, 16), 4, torch.device("cpu"))
    with pytest.raises(UserError, match="a prior of latents"):
        invsolve.log_likelihood(Repeated(), torch.zeros(1, 1, 16, 16))


def autoencoder(kind: str) -> Any:
    torch.manual_seed(1)
    common: dict[str, Any] = {
        "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 2,
        "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    if kind == "vae":
        return diffusers.AutoencoderKL(**common, scaling_factor=0.4, shift_factor=0.1).eval()
    return diffusers.VQModel(**common, num_vq_embeddings=64, scaling_factor=0.4).eval()


def folder(path: Path, kind: str = "vae") -> tuple[Any, Any]:
    torch.manual_seed(0)
    net: Any = diffusers.UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip
    coder = autoencoder(kind)
    net.save_pretrained(path / "unet")
    coder.save_pretrained(path / kind)
    diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False).save_pretrained(path / "scheduler")
    (path / "model_index.json").write_text(json.dumps({"_class_name": "LDMPipeline", kind: ["diffusers", "x"]}))
    return net, coder


@pytest.mark.filterwarnings("ignore::invsolve.api.discrepancy.DiscrepancyWarning")  # random weights miss the data
@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_a_folder_is_read_as_diffusers_reads_it(kind: str, tmp_path: Path) -> None:
    net, coder = folder(tmp_path, kind)
    prior: Any = invsolve.load_prior(tmp_path)
    assert (prior.event_shape, prior.factor) == ((1, None, None), 2)
    w = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    shift = 0.1 if kind == "vae" else 0.0
    with torch.no_grad():
        torch.testing.assert_close(prior.decode(w), coder.decode(w / 0.4 + shift).sample)
        x = prior.decode(w)
        mean = coder.encode(x).latent_dist.mean if kind == "vae" else coder.encode(x).latents
        torch.testing.assert_close(prior.encode(x), (mean - shift) * 0.4)
        sigma = torch.tensor(0.6)
        time = prior.inner.coordinates.schedule.time(sigma[None]).float()
        noise = net(w / (1 + sigma**2).sqrt(), time).sample
        torch.testing.assert_close(prior.denoise(w, sigma), w - sigma * noise, atol=1e-5, rtol=1e-5)
    images = invsolve.sample(prior, 2, (1, 16, 16), steps=4)
    assert images.shape == (2, 1, 16, 16)
    for name in ("dps-fitted", "flowchef-fitted"):
        operator = invsolve.operator("inpainting", fraction=0.5, image_size=16)
        strategy = invsolve.strategy(name, steps=5)
        rec = invsolve.reconstruct(
            torch.zeros(1, 1, 16, 16), operator, prior, noise=invsolve.Gaussian(0.1), strategy=strategy, progress=False
        )
        assert rec.samples.shape[-3:] == (1, 16, 16)
        assert bool(torch.isfinite(rec.samples).all())


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("text", "text-conditional"),
        ("kind", "only 'AutoencoderKL' is read"),
        ("channels", "do not fit"),
        ("scale", "expected a number > 0"),
        ("pickle", "which is a pickle"),
        ("setting", "unknown settings depth"),
    ],
)
def test_what_is_not_read_gets_one_line(change: str, text: str, tmp_path: Path) -> None:
    folder(tmp_path)
    config = tmp_path / "vae" / "config.json"
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    {
        "text": lambda: (tmp_path / "text_encoder").mkdir(),
        "kind": lambda: edit(config, _class_name="AutoencoderTiny"),
        "channels": lambda: edit(config, latent_channels=3),
        "scale": lambda: edit(config, scaling_factor=-1.0),
        "pickle": lambda: weights.rename(weights.with_suffix(".bin")),
        "setting": lambda: edit(config, depth=3),
    }[change]()
    with pytest.raises(UserError) as caught:
        invsolve.load_prior(tmp_path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
