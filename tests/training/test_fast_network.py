"""The fast network, and what it is trained with: limits, outliers, balanced draws, batches on the device, phases, selection."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.contracts.scale import Scale
from invsolve.errors import Interrupted
from invsolve.plugins.priors.nets.fast_unet import FastUNet
from invsolve.plugins.priors.unet import UNetPrior, extended
from invsolve.testing import check_prior
from invsolve.training import data
from invsolve.training.balance import draw_weights, epoch_order
from invsolve.training.batches import Batches
from invsolve.training.job import train_file
from invsolve.training.limits import measure_limits
from invsolve.training.phases import DRAWS, fixed_phases, smooth_phase, turn
from invsolve.training.resident import ResidentBatches
from invsolve.training.settings import Request, Settings, make_settings


def smooth(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Images (N, 1, size, size) between 0 and 1 with a natural spectrum."""
    rng = np.random.default_rng(seed)
    rows, columns = np.meshgrid(*2 * [np.fft.fftfreq(size)], indexing="ij")
    gain = 1 / (0.02 + np.hypot(rows, columns)) ** 1.5
    x = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, size, size))) * gain).real
    x -= x.min((1, 2), keepdims=True)
    return (x / x.max((1, 2), keepdims=True))[:, None].astype("f4")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    path = tmp_path / "pictures.h5"
    with h5py.File(path, "w") as file:
        file["x"] = smooth(24, 32)
        file["person"] = np.array(["a"] * 16 + ["b"] * 4 + ["c"] * 4, dtype=object).astype("S")
        file["often"] = np.array([1.0] * 12 + [4.0] * 12)
    return path


def fast(path: Path, out: Path, **settings: Any) -> dict[str, Any]:
    given = {"range": "0:1", "network": "fast", "width": 8, "levels": 3, "batch_size": 8, "dropout": 0.0, "lr": 3e-3}
    return train_file(Request(path, out, make_settings({**given, "resident": "yes", **settings}), device="cpu"))


def opened(path: Path, **settings: Any) -> tuple[data.Images, Settings]:
    made = Settings(range="0:1", batch_size=8, **settings)
    return data.Images(path, made), made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fast")
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = smooth(48, 32)
    fast(folder / "x.h5", folder / "fast.safetensors", steps=220, ema=0.97, store="float16")
    return folder / "fast.safetensors"


def test_the_network_is_made_from_its_header_and_denoises(trained: Path) -> None:
    prior = invsolve.load_prior(trained)
    assert isinstance(prior, UNetPrior)
    assert isinstance(prior.network, FastUNet)
    clean = torch.from_numpy(2 * smooth(8, 32, seed=5) - 1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = prior.denoise(clean + 0.5 * noise, torch.tensor(0.5)) - clean
    # The noise is 0.5, and the images themselves vary by about 0.4.
    assert float(error.square().mean().sqrt()) < 0.3
    report = check_prior(prior)
    assert report, str(report)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (24, 40), (17, 64), (3, 20), (1, 5)])
def test_it_takes_images_of_any_size(trained: Path, size: tuple[int, int]) -> None:
    prior = invsolve.load_prior(trained)
    x = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = prior.denoise(x, torch.tensor([0.1, 1.0]))
        single = prior.denoise(x[1:], torch.tensor(1.0))
    assert whole.shape == x.shape
    torch.testing.assert_close(whole[1:], single, atol=1e-4, rtol=0)


def test_small_images_are_continued_to_and_fro() -> None:
    x = torch.arange(3.0).view(1, 1, 1, 3)
    assert extended(x, 8)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    y = torch.rand(2, 1, 5, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.pad(y, (0, 7, 0, 3), mode="reflect")
    assert torch.equal(extended(y, 8), expected)
    # The same by the other way, which axes smaller than what they lack take.
    both = extended(torch.cat([y, y], 3)[..., :9].transpose(2, 3)[:, :, :, :3], 16)
    assert both.shape == (2, 1, 16, 16)
    assert torch.equal(both[:, :, :9, :3], y.transpose(2, 3)[:, :, :, :3])
    assert torch.equal(both[:, :, 9:15], both[:, :, 2:8].flip(2))


def test_half_precision_storage_costs_no_more_than_rounding(trained: Path, tmp_path: Path) -> None:
    prior = invsolve.load_prior(trained)
    assert isinstance(prior, UNetPrior)
    prior.header["dtype"] = "float32"
    prior.save(tmp_path / "single.safetensors")
    assert trained.stat().st_size < 0.65 * (tmp_path / "single.safetensors").stat().st_size
    again = invsolve.load_prior(tmp_path / "single.safetensors")
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again.denoise(x, torch.tensor(0.3)), prior.denoise(x, torch.tensor(0.3)))


def test_limits_change_nothing_on_images_and_hold_far_from_them(trained: Path) -> None:
    prior, loose = (invsolve.load_prior(trained).requires_grad_(False) for _ in range(2))
    assert isinstance(prior, UNetPrior)
    limits = prior.header["architecture"]["config"]["limits"]
    network: Any = loose.network
    assert len(limits) == len(list(network.blocks()))
    network.limit([1e9] * len(limits))
    x = torch.from_numpy(2 * smooth(4, 32, seed=7) - 1)
    torch.testing.assert_close(prior.denoise(x, torch.tensor(0.05)), loose.denoise(x, torch.tensor(0.05)))
    far = 1e4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    inside: dict[str, list[float]] = {"with": [], "without": []}
    for key, one in (("with", prior), ("without", loose)):
        middle: Any = one.network
        middle.middle.register_forward_hook(
            lambda block, given, made, key=key: inside[key].append(float(made.abs().max()))
        )
        one.denoise(far, torch.tensor(0.05))
    assert inside["with"][0] < 1e-2 * inside["without"][0]


def test_limits_are_measured_on_the_images_they_are_given(trained: Path) -> None:
    prior = invsolve.load_prior(trained).requires_grad_(False)
    images = torch.from_numpy(2 * smooth(4, 32) - 1)
    small, large = measure_limits(prior, images), measure_limits(prior, 3 * images)
    assert small is not None
    assert large is not None
    assert all(a > 0 for a in small)
    assert large[0] > 1.2 * small[0]


def test_signals_and_volumes_have_no_fast_network(tmp_path: Path) -> None:
    path = tmp_path / "signals.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.random.default_rng(0).random((12, 1, 64)).astype("f4")
    with pytest.raises(invsolve.UserError, match="'fast' is for images"):
        fast(path, tmp_path / "s.safetensors", steps=2, axes="item:channel:position")


def test_a_fast_training_resumes_to_the_bit(pictures: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 6, "zoom": 0.1, "shift": 2.0, "flip": [1], "dropout": 0.1, "log_every": 1}
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    fast(pictures, whole, **options)
    given = {"range": "0:1", "network": "fast", "width": 8, "levels": 3, "batch_size": 8, "lr": 3e-3, "resident": "yes"}
    request = Request(pictures, parts, make_settings({**given, **options}), device="cpu")
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        train_file(request, should_stop=lambda: next(asked))
    assert UNetPrior.opens(request.preview)
    train_file(request)
    assert not request.preview.exists()
    curves = [Path(f"{p}.curve.jsonl").read_text() for p in (whole, parts)]
    assert curves[0] == curves[1]
    weights = [invsolve.load_prior(p).state_dict() for p in (whole, parts)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_weights_kept_are_those_that_denoise_best(pictures: Path, tmp_path: Path) -> None:
    # A rate that destroys the network: what was found early is better than what there is at the end.
    out = tmp_path / "wild.safetensors"
    outcome = fast(pictures, out, steps=60, lr=0.5, clip_gradient=1e6, ema=0.0, warmup=59, validate_every=5)
    lines = [json.loads(line) for line in Path(f"{out}.curve.jsonl").read_text().splitlines()]
    scores = {s["step"]: np.mean(list(s["validation_psnr"].values())) for s in lines if "validation_psnr" in s}
    best = max(scores, key=lambda step: scores[step])
    assert best < 60
    assert outcome["kept_step"] == best
    assert outcome["validation_psnr"] == next(
        s["validation_psnr"] for s in lines if s["step"] == best and "validation_psnr" in s
    )


def test_images_are_drawn_by_weight_or_by_group(pictures: Path) -> None:
    rows = np.arange(24)
    assert draw_weights(*opened(pictures)[:1], rows, Settings()) is None
    alike = draw_weights(opened(pictures)[0], rows, Settings(groups="person", balance=1.0))
    assert alike is not None
    np.testing.assert_allclose([alike[:16].sum(), alike[16:20].sum(), alike[20:].sum()], 1 / 3)
    heavy = draw_weights(opened(pictures)[0], rows, Settings(weight="often"))
    assert heavy is not None
    counts = np.zeros(24)
    for epoch in range(50):
        counts += np.bincount(epoch_order(24, heavy, np.random.default_rng(epoch)), minlength=24)
    np.testing.assert_allclose(counts[12:].sum() / counts.sum(), 0.8, atol=0.02)
    assert sorted(epoch_order(24, None, np.random.default_rng(0))) == list(range(24))
    with pytest.raises(invsolve.UserError, match="one number an image"):
        draw_weights(opened(pictures)[0], rows, Settings(weight="person"))
    with pytest.raises(invsolve.UserError, match="balance needs groups"):
        Settings(balance=0.5)


def test_resident_batches_hold_the_same_images_as_the_others(pictures: Path) -> None:
    images, settings = opened(pictures, flip=None)
    rows = np.array([3, 1, 8, 2, 20, 11, 5, 9])
    scale = Scale.from_range(0.0, 1.0)
    usual, held = Batches(images, rows, settings, scale).at(4), ResidentBatches(images, rows, settings, scale).at(4)
    # The same order and no augmentation: the same clean images, under other noise.
    torch.testing.assert_close(usual.target, held.target)
    assert torch.equal(held.noisy, ResidentBatches(images, rows, settings, scale).at(4).noisy)
    assert not torch.equal(held.noisy, ResidentBatches(images, rows, settings, scale).at(5).noisy)
    spread = held.sigma.log().sort().values
    middle = settings.sigma_mean + settings.sigma_std * torch.special.ndtri((torch.arange(8) + 0.5) / 8)
    # One noise level in each eighth of the distribution.
    assert float((spread - middle)[1:-1].abs().max()) < 0.9


def test_resident_crops_are_windows_of_the_images(pictures: Path) -> None:
    images, settings = opened(pictures, crop=[8, 12], levels=3)
    batch = ResidentBatches(images, np.arange(24), settings, Scale.from_range(0.0, 1.0)).at(0)
    assert batch.target.shape == (8, 1, 8, 12)
    x = 2 * torch.from_numpy(smooth(24, 32))[:, 0] - 1
    windows = x.unfold(1, 8, 1).unfold(2, 12, 1)
    for one in batch.target[:, 0]:
        assert float((windows - one).abs().amax((-1, -2)).min()) < 1e-6


def test_unwarped_images_are_only_moved_by_whole_pixels(pictures: Path) -> None:
    images, settings = opened(pictures, rotate=30.0, zoom=0.3, shift=3.0, warped=0.0)
    batch = ResidentBatches(images, np.arange(24), settings, Scale.from_range(0.0, 1.0)).at(0)
    x = 2 * torch.from_numpy(smooth(24, 32))[:, 0] - 1
    inside = x.unfold(1, 26, 1).unfold(2, 26, 1)
    moved = 0
    for one in batch.target[:, 0, 3:-3, 3:-3]:
        distance = (inside - one).abs().amax((-1, -2))
        assert float(distance.min()) < 1e-4
        moved += int((distance[:, 3, 3] > 1e-3).all())
    assert moved > 2


def test_outliers_are_noise_and_count_by_their_logarithm(pictures: Path, tmp_path: Path) -> None:
    images, settings = opened(pictures, outliers=0.5)
    batch = ResidentBatches(images, np.arange(24), settings, Scale.from_range(0.0, 1.0)).at(0)
    plain = ResidentBatches(images, np.arange(24), Settings(batch_size=8), Scale.from_range(0.0, 1.0)).at(0)
    assert batch.outlier is not None
    assert 0 < int(batch.outlier.sum()) < 8
    torch.testing.assert_close(batch.target[~batch.outlier], plain.target[~batch.outlier])
    noise = batch.target[batch.outlier]
    # White: neighbours do not resemble one another, as those of the images do.
    assert float((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean()) < 0.2
    assert fast(pictures, tmp_path / "o.safetensors", steps=3, outliers=0.5)["loss"] > 0


def test_phases_keep_magnitudes_and_are_smooth() -> None:
    x = torch.rand(3, 2, 16, 20, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0
    phase = smooth_phase(torch.rand(3, DRAWS, generator=torch.Generator().manual_seed(1)), (16, 20), 1.0)
    turned = turn(x, phase)
    torch.testing.assert_close(turned.square().sum(1).sqrt(), x[:, 0], atol=1e-6, rtol=1e-5)
    assert float(phase.diff(dim=-1).abs().max()) < 1.5
    assert float((phase[0] - phase[1]).abs().mean()) > 0.1
    assert torch.equal(fixed_phases(2, (8, 8), 1.0, 3), fixed_phases(2, (8, 8), 1.0, 3))


def test_magnitudes_are_trained_on_as_complex_images(pictures: Path, tmp_path: Path) -> None:
    fast(pictures, tmp_path / "c.safetensors", range="-1:1", phase=1.0, steps=3)
    prior = invsolve.load_prior(tmp_path / "c.safetensors")
    assert prior.event_shape == (2, None, None)
    images, settings = opened(pictures, phase=1.0)
    batch = ResidentBatches(images, np.arange(24), settings, Scale.from_range(-1.0, 1.0)).at(0)
    batch_magnitudes = batch.target.square().sum(1).sqrt()
    magnitudes = torch.from_numpy(smooth(24, 32))[:, 0]
    for one in batch_magnitudes:
        assert float((magnitudes - one).abs().amax((-1, -2)).min()) < 1e-5
    assert float(batch.target[:, 1].abs().mean()) > 0.05


def test_what_cannot_be_compiled_is_trained_as_it_is(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: torch.nn.Module, *given: Any, **options: Any) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    with pytest.warns(UserWarning, match="uncompiled: no compiler here"):
        assert fast(pictures, tmp_path / "x.safetensors", steps=2, compile="yes")["steps"] == 2
