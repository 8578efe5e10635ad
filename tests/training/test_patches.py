"""Priors of patches and their places, against the paper's formula written out and against a field whose D is known by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import invsolve
from invsolve import UserError
from invsolve.contracts.scale import Scale
from invsolve.networks.patches import Patches
from invsolve.plugins.priors.unet import UNetPrior, read_header
from invsolve.testing import check_prior
from invsolve.training import data
from invsolve.training.batches import Batches
from invsolve.training.job import train_file
from invsolve.training.patched import PatchBatches
from invsolve.training.settings import Request, Settings, make_settings
from tests.priors.test_prior_files import HEADER_FACTS


def smooth(patches: Tensor, sigma: Tensor) -> Tensor:
    """Stands for a network: a mean over neighbours, which a patch's border cuts, and something of the place."""
    image, place = patches[:, :1], patches[:, 1:]
    mean = nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    return mean / (1 + sigma.view(-1, 1, 1, 1)) + 0.1 * place[:, :1] - 0.05 * place[:, 1:] ** 2


@pytest.mark.parametrize("size", [(20, 20), (16, 24), (23, 17)])
@pytest.mark.parametrize("sigma", [0.01, 0.3, 7.0])
def test_d_is_the_papers_sum_over_one_grid(size: tuple[int, int], sigma: float) -> None:
    patches, side = Patches(8, size, -1.0), 8
    x = torch.randn(2, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    margins = [(n // side + 1) * side - n for n in size]
    z = np.full((2, 1, size[0] + 2 * margins[0], size[1] + 2 * margins[1]), -1.0)
    inside = (..., slice(margins[0], margins[0] + size[0]), slice(margins[1], margins[1] + size[1]))
    z[inside] = x.numpy()
    row, column = np.meshgrid(*(np.linspace(-1, 1, n) for n in z.shape[2:]), indexing="ij")
    top, left = min(patches.corners(sigma))
    assert 0 <= top < margins[0]
    assert 0 <= left < margins[1]
    # D = z + sum over the grid of (D_p - z_p), the patch with its places as two more channels.
    total = z.copy()
    for i in range(size[0] // side + 1):
        for j in range(size[1] // side + 1):
            at = (..., slice(top + i * side, top + (i + 1) * side), slice(left + j * side, left + (j + 1) * side))
            places = np.broadcast_to(np.stack([column[at], row[at]]), (2, 2, side, side))
            patch = torch.from_numpy(np.concatenate([z[at], places], 1))
            total[at] += smooth(patch, torch.full((2,), sigma, dtype=torch.float64)).numpy() - z[at]
    made = patches.denoise(smooth, x, torch.tensor([sigma], dtype=torch.float64))
    np.testing.assert_allclose(made.numpy(), total[inside], atol=1e-12)


def test_rows_of_other_levels_have_their_own_grids() -> None:
    patches = Patches(8, (20, 28))
    x = torch.randn(3, 1, 20, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    levels = torch.tensor([0.1, 2.0, 0.1], dtype=torch.float64)
    together = patches.denoise(smooth, x, levels)
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], patches.denoise(smooth, x[k : k + 1], levels[k : k + 1]))
    assert len({min(patches.corners(s)) for s in np.geomspace(0.01, 40, 200)}) == 4 * 4


def test_the_gradient_is_that_of_the_sum() -> None:
    patches = Patches(4, (6, 7), 0.0)
    x = torch.randn(1, 1, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    level = torch.tensor([0.4], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: patches.denoise(smooth, z, level), (x,))


class Pixelwise(nn.Module):
    """EDM's prediction for pixels that are normal about the column's position, variance 0.04, whatever the neighbours are."""

    def forward(self, x: Tensor, label: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        s, data_ = (label / 250).exp().view(-1, 1, 1, 1), 0.5
        scale = (s**2 + data_**2).sqrt()
        image = x[:, :1] * scale
        estimate = (0.04 * image + s**2 * x[:, 1:2]) / (0.04 + s**2)
        return ((estimate - (data_ / scale) ** 2 * image) * scale / (s * data_),)


def pixelwise() -> UNetPrior:
    """A prior of 12 x 20 pixels by patches of 8, with the network above."""
    facts = {"patch": Patches(8, (12, 20)).record(), "event_shape": [1, 12, 20], "data_range": None}
    prior = UNetPrior.create(HEADER_FACTS | facts).eval()
    prior.network = Pixelwise()
    return prior


def test_independent_pixels_are_known_exactly() -> None:
    prior = pixelwise()
    x = torch.randn(2, 1, 12, 20, generator=torch.Generator().manual_seed(0))
    # 20 columns of 8: 4 around them, so that the image is columns 4 to 23 of 28.
    mean = torch.linspace(-1, 1, 28)[4:24].expand(12, 20)
    for sigma in (0.02, 0.3, 5.0):
        exact = (0.04 * x + sigma**2 * mean) / (0.04 + sigma**2)
        torch.testing.assert_close(prior.denoise(x, torch.tensor(sigma)), exact, atol=2e-5, rtol=0)
    assert check_prior(prior)


def test_a_reconstruction_is_the_posterior_of_independent_pixels() -> None:
    mean = torch.linspace(-1, 1, 28)[4:24].expand(1, 1, 12, 20)
    truth = mean + 0.2 * torch.randn(1, 1, 12, 20, generator=torch.Generator().manual_seed(1))
    operator, noise = invsolve.operator("inpainting", fraction=0.5, image_size=[12, 20]), invsolve.Gaussian(0.1)
    y = invsolve.simulate(truth, operator, noise, seed=0)
    strategy = invsolve.strategy("moment", steps=24)
    rec = invsolve.reconstruct(
        y, operator, pixelwise(), noise=noise, strategy=strategy, samples=64, scale=(-1.0, 1.0), progress=False
    )
    seen = (operator(torch.ones(1, 1, 12, 20)) > 0).float()
    precision = 1 / 0.04 + seen / 0.01
    exact = (mean / 0.04 + seen * y / 0.01) / precision
    off = (rec.mean - exact) * precision.sqrt()
    # 240 means of 64 draws: a mean square of 1 / 64 that scatters by sqrt(2 / 240) of itself, and five of that.
    assert float(off.square().mean()) < (1 + 5 * (2 / 240) ** 0.5) / 64
    assert float((rec.std.square() * precision).mean()) == pytest.approx(1, abs=5 * (2 / (240 * 63)) ** 0.5 + 0.02)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images (256, 1, 24, 32) of independent pixels about a mean that only the place tells: a wave along the columns."""
    path = tmp_path_factory.mktemp("patches") / "x.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["x"] = (wave() + 0.1 * rng.normal(size=(256, 1, 24, 32))).astype("f4")
        file["x"].attrs["axes"] = "item:channel:row:column"
    return path


def wave() -> np.ndarray:
    return np.broadcast_to(0.6 * np.sin(2 * np.pi * np.arange(32) / 32), (24, 32))


def given(**more: Any) -> Settings:
    basis = {
        "range": "-1:1", "network": "fast", "width": 8, "levels": 2, "batch_size": 32, "dropout": 0.0, "ema": 0.97,
        "lr": 3e-3, "sigma_mean": 0.0, "sigma_std": 1.0, "validate_every": 10**6, "store": "float32", "patch": 16,
    }  # fmt: skip
    return make_settings(basis | more)


def test_patches_of_a_batch_are_cut_where_they_say(pictures: Path) -> None:
    settings = given()
    images = data.Images(pictures, settings)
    whole = Batches(images, np.arange(256), settings, Scale.from_range(-1.0, 1.0))
    patches = Patches(16, (24, 32), 0.0)
    source = PatchBatches(whole, patches, 4)
    assert source.sides == [16, 8, 4]
    drawn: dict[int, int] = {}
    for step in range(40):
        batch, full = source.at(step), whole.at(step)
        side = batch.noisy.shape[-1]
        drawn[side] = drawn.get(side, 0) + 1
        around = np.pad(full.noisy.numpy(), ((0, 0), (0, 0), (8, 8), (16, 16)))
        for row in range(0, 32, 8):
            column, line = batch.noisy[row, 1, 0, 0].item(), batch.noisy[row, 2, 0, 0].item()
            left, top = round((column + 1) / 2 * 63), round((line + 1) / 2 * 39)
            assert np.array_equal(batch.noisy[row, 0], around[row, 0, top : top + side, left : left + side])
        assert batch.target.shape == (32, 1, side, side)
    assert drawn[16] > drawn[4]
    ahead = source.ahead(5, 1)
    assert torch.equal(next(ahead).noisy, source.at(5).noisy)
    ahead.close()


@pytest.mark.slow
def test_a_training_learns_what_the_place_tells(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "prior.safetensors"
    train_file(Request(pictures, out, given(steps=250, sigma_mean=0.7), device="cpu"))
    prior: Any = invsolve.load_prior(out, gaussian_above=0)
    assert prior.event_shape == (1, 24, 32)
    assert read_header(out)["patch"] == {"side": 16, "size": [24, 32], "outside": 0.0}
    clean = torch.from_numpy((wave() + 0.1 * np.random.default_rng(1).normal(size=(64, 1, 24, 32))).astype("f4"))
    sigma = 6.0
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        error = float((prior.denoise(noisy, torch.tensor(sigma)) - clean).square().mean())
    # A pixel alone tells nothing of the wave at this level (0.189 is left), a whole patch its phase within 60 degrees at best:
    # the sine's 0.6^2 / 2 over 256 pixels is 1.3 times the noise's variance. Place tells all but the 0.01 that nobody can know.
    assert error < 0.05


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"patch": 10}, "patch 10 is no multiple of 4"),
        ({"patch": 28}, "larger than images"),
        ({"crop": 16}, "leave crop out"),
        ({"patch": 0}, "patch=0, expected at least 1"),
    ],
)
def test_what_cannot_be_cut_is_one_line(settings: dict[str, Any], line: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        train_file(Request(pictures, tmp_path / "prior.safetensors", given(steps=2, **settings), device="cpu"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"patch": {"side": 8, "size": [12, 20]}}, "side, size .rows, columns. and outside are needed"),
        ({"patch": {"side": 8, "size": [12, 2**40], "outside": 0.0}}, "4 to 8192 pixels"),
        ({"patch": {"side": 8, "size": [12, 20], "outside": 0.0}}, "event_shape says"),
        ({"patch": {"side": 8, "size": [16, 16], "outside": 0.0}, "event_shape": [1, 16, 16]}, "and 2 of positions"),
        ({"event_shape": [2, None, None]}, "the images have 2"),
    ],
)
def test_a_header_that_cannot_be_is_one_line(facts: dict[str, Any], line: str, tmp_path: Path) -> None:
    prior = UNetPrior.create(HEADER_FACTS)
    prior.header |= facts
    prior.save(tmp_path / "p.safetensors")
    with pytest.raises(UserError, match=line):
        invsolve.load_prior(tmp_path / "p.safetensors")
