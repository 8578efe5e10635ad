"""Training data: axes, range, split, batches that follow from seed and step alone, and one line for what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invsolve.contracts.scale import Scale
from invsolve.errors import UserError
from invsolve.training import data
from invsolve.training.batches import Batches, held_out
from invsolve.training.settings import make_settings
from invsolve.training.split import divide

TINY: dict[str, Any] = {"width": 8, "levels": 2, "batch_size": 4}


def noise(*shape: int) -> np.ndarray:
    """Images (N, C, *spatial), uniform in 0 .. 200."""
    return np.random.default_rng(0).uniform(0, 200, shape).astype("f4")


def write(path: Path, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write(tmp_path / "pictures.h5", x=noise(24, 1, 16, 16))


def with_nan() -> np.ndarray:
    x = noise(24, 1, 16, 16)
    x[7, 0, 3, 3] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "given", "text"),
    [
        ({"x": np.full((8, 1, 16, 16), 3.0)}, (), "constant"),
        ({"x": np.arange(8.0)[:, None, None, None] * np.ones((1, 16, 16))}, (), "8 of 8 images are constant"),
        ({"x": with_nan()}, (), "image 7 holds NaN"),
        ({"x": noise(3, 1, 16, 16)}, (), "3 images, expected at least 4"),
        ({"x": noise(8, 1, 16, 16)[:, 0]}, (), "--slice-axis 0"),
        ({"x": noise(8, 1, 16, 16).transpose(0, 2, 3, 1)}, (), "--axes item:row:column:channel"),
        ({"x": noise(8, 16, 16, 16)}, (), "16 channels"),
        ({"x": noise(8, 1, 16, 16)}, ("--axes", "item:row:column"), "names 3 axes"),
        ({"x": noise(8, 1, 16, 16)}, ("--slice-axis", "1"), "images already"),
        ({"images": noise(8, 1, 16, 16)}, (), "--dataset images"),
        ({"x": noise(8, 1, 16, 16)}, ("--dataset", "y"), "no dataset 'y'"),
        ({"x": noise(8, 1, 16, 16)}, ("--crop", "32"), "crop 32 does not fit"),
        ({"x": noise(8, 1, 16, 16)}, ("--crop", "wide"), "whole numbers"),
        ({"x": noise(8, 1, 16, 16)}, ("--levels", "6"), "too small for 6 levels"),
        ({"x": noise(8, 1, 16, 16)}, ("--range", "5"), "LOW:HIGH"),
        ({"x": noise(8, 1, 16, 16)}, ("--range", "0:1"), "outside --range 0:1"),
        ({"x": noise(8, 1, 16, 16)}, ("--range", "type"), "needs integers"),
        ({"x": noise(8, 1, 16, 16)}, ("--groups", "patient"), "no one-dimensional dataset 'patient'"),
        ({"x": noise(8, 1, 16, 16), "p": np.arange(5)}, ("--groups", "p"), "5 labels for 8 images"),
        ({"x": noise(8, 1, 16, 16), "p": np.zeros(8)}, ("--groups", "p"), "of the one group"),
        ({"x": noise(8, 1, 16, 16), "s": np.array([b"train"] * 8)}, ("--split", "s"), "no image 'val'"),
        ({"x": noise(8, 1, 16, 16), "m": np.array([b"CT"] * 8)}, ("--where", "m=MR"), "there are CT"),
        ({"x": noise(8, 1, 16, 16)}, ("--set", "wdith=8"), "'width'"),
        ({"x": noise(8, 1, 16, 16)}, ("--width", "12"), "a multiple of 8"),
        ({"x": noise(8, 1, 16, 16)}, ("--flip", "2"), "spatial axes 0..1"),
        ({"x": noise(8, 1, 16, 16)}, ("--device", "abacus"), "device 'abacus'"),
        ({"x": noise(8, 1, 16, 16)}, ("--set", "immiscible=2", "--set", "stable_target=2"), "use one"),
    ],
)
def test_bad_data_and_settings_are_one_line_and_write_nothing(
    arrays: dict[str, np.ndarray],
    given: tuple[str, ...],
    text: str,
    tmp_path: Path,
    cli: Callable[..., tuple[int, str, str]],
) -> None:
    path = write(tmp_path / "bad.h5", **arrays)
    code, printed, err = cli("train", path, "-o", tmp_path / "p.safetensors", "--levels", 2, *given)
    assert code == 2, err
    assert text in err
    assert len(err.strip().splitlines()) == 1, err
    assert not printed
    assert os.listdir(tmp_path) == ["bad.h5"]


def open_images(path: Path, **settings: Any) -> tuple[data.Images, Any]:
    made = make_settings(TINY | settings)
    return data.Images(path, made), made


def test_groups_and_volumes_never_cross_the_split(tmp_path: Path) -> None:
    group = np.array([b"a"] * 14 + [b"b"] * 3 + [b"c"] * 4 + [b"d"] * 3)
    split = np.array([b"train"] * 17 + [b"val"] * 4 + [b"test"] * 3)
    path = write(tmp_path / "x.h5", x=noise(24, 1, 16, 16), group=group, split=split)
    for seed in range(8):
        images, settings = open_images(path, groups="group", validation=0.2, seed=seed)
        parts = divide(images, np.arange(24), settings)
        assert not {*group[parts.train]} & {*group[parts.validation]}
        assert sorted([*parts.train, *parts.validation]) == list(range(24))
        # The large group would hold out more than half of the images.
        assert 3 <= len(parts.validation) <= 8
        assert divide(images, np.arange(24), settings).held_out == parts.held_out
    images, settings = open_images(path, groups="group", split="split")
    parts = divide(images, np.arange(24), settings)
    assert (parts.held_out, len(parts.train), len(parts.validation)) == (("c",), 17, 4)
    crossing = np.roll(split, 1)
    other = write(tmp_path / "y.h5", x=noise(24, 1, 16, 16), group=group, split=crossing)
    images, settings = open_images(other, groups="group", split="split")
    with pytest.raises(UserError, match="group 'c' on both sides"):
        divide(images, np.arange(24), settings)
    volumes = write(tmp_path / "v.h5", x=noise(5, 1, 8, 16, 16))
    images, settings = open_images(volumes, slice_axis=0)
    parts = divide(images, np.arange(40), settings)
    assert not {*(parts.train // 8)} & {*(parts.validation // 8)}


def test_images_are_the_same_from_the_file_as_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(3, 2, 6, 10, 9)
    path = write(tmp_path / "x.h5", x=x)
    window = (slice(2, 7), slice(0, 4))
    held = open_images(path, slice_axis=0)[0]
    monkeypatch.setattr(data, "_MEMORY", 0)
    lazy = open_images(path, slice_axis=0)[0]
    assert held.in_memory
    assert not lazy.in_memory
    for index in (0, 7, 17):
        np.testing.assert_array_equal(held.read(index), x[index // 6, :, index % 6])
        np.testing.assert_array_equal(lazy.read(index), held.read(index))
        np.testing.assert_array_equal(lazy.read(index, window), held.read(index)[:, 2:7, :4])


def make_batches(path: Path, rank: int = 0, world: int = 1, **settings: Any) -> Batches:
    images, made = open_images(path, **settings)
    return Batches(images, np.arange(len(images)), made, Scale.from_range(0, 200), rank, world)


def test_a_batch_depends_on_seed_and_step_alone(pictures: Path) -> None:
    given: dict[str, Any] = {"crop": 12, "rotate": 3, "gain": 0.1, "flip": [0, 1], "immiscible": 3}
    whole = make_batches(pictures, **given).at(9)
    for rank in (0, 1):
        part = make_batches(pictures, rank, 2, **given).at(9)
        torch.testing.assert_close(part.noisy, whole.noisy[rank::2], rtol=0, atol=1e-6)
        assert torch.equal(part.sigma, whole.sigma[rank::2])
    assert not torch.equal(make_batches(pictures, **given).at(8).sigma, whole.sigma)
    ahead = make_batches(pictures, **given).ahead(8, workers=3)
    next(ahead)
    assert torch.equal(next(ahead).noisy, whole.noisy)
    ahead.close()
    batches = make_batches(pictures)
    epoch = [batches.image_at(k) for k in range(48)]
    assert sorted(epoch[:24]) == sorted(epoch[24:]) == list(range(24))
    assert epoch[:24] != epoch[24:]


def test_noise_assignment_and_stable_target(pictures: Path) -> None:
    plain, nearest = (make_batches(pictures, immiscible=k, batch_size=24).at(0) for k in (1, 4))

    def distance(batch: Any) -> torch.Tensor:
        noise = (batch.noisy - batch.target) / batch.sigma.view(-1, 1, 1, 1)
        return (noise - batch.target).flatten(1).square().sum(1)

    assert (distance(nearest) <= distance(plain) + 1e-2).all()
    assert (distance(nearest) < distance(plain) - 1).any()
    stable = make_batches(pictures, stable_target=12, batch_size=24).at(0)
    off = (stable.target - plain.target).flatten(1).abs().amax(1)
    # Little noise: no other image could be meant. Much: any could, and the target tends to their mean.
    assert off[stable.sigma < 0.1].max() < 1e-3
    plain, stable = (
        make_batches(pictures, stable_target=k, batch_size=24, sigma_mean=3.5, sigma_std=0.3).at(0) for k in (0, 12)
    )
    assert stable.sigma.min() > 8
    assert (stable.target - plain.target).flatten(1).abs().amax(1).min() > 0.1


def test_warping_by_nothing_is_the_identity_and_turns_keep_angles(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", x=noise(24, 1, 12, 20))
    plain, warped = make_batches(path).at(0), make_batches(path, rotate=1e-6).at(0)
    torch.testing.assert_close(plain.target, warped.target, atol=1e-3, rtol=0)
    disc = (np.hypot(*np.meshgrid(np.arange(31) - 15, np.arange(21) - 10)) < 6).astype("f4")
    round_ = write(tmp_path / "d.h5", x=np.repeat(200 * disc[None, None], 4, 0))
    turned = make_batches(round_, rotate=60).at(0).target / 2 + 0.5
    # A disc stays a disc under rotation, also where pixels are not as many along both axes.
    assert float((turned - torch.from_numpy(disc)).abs().mean()) < 0.03


def test_held_out_windows_do_not_change(pictures: Path) -> None:
    images = open_images(pictures)[0]
    one, other = (held_out(images, rows, (8, 8), lambda x: x) for rows in ([3, 5], [5]))
    assert torch.equal(one[1], other[0])
