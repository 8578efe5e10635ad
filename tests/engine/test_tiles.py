"""Large images in tiles: the whole image's answer where the network is local, no seams, bounded batches, any batch alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import invsolve
from invsolve.contracts.prior import Prior
from invsolve.engine import tiles

CPU = torch.device("cpu")
SIDE = 64


class Local(Prior):
    """A nonlinear denoiser that looks no further than three pixels; counts what it is handed."""

    tileable = True
    event_shape = (1, None, None)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        smooth = F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="reflect"), 7, 1)
        return torch.tanh(smooth) / (1 + sigma.view(-1, 1, 1, 1) ** 2)


def seen_in_tiles(prior: Prior, rows: int = 3) -> Prior:
    return tiles.Tiled(prior, SIDE, SIDE, rows, CPU)


def images(rows: int, *size: int) -> Tensor:
    return torch.randn(rows, 1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [(150, 97), (65, 64), (40, 200), (64, 64)])
@pytest.mark.parametrize("level", [0.1, 0.7, 3.0])
def test_a_local_denoiser_gives_what_it_gives_of_the_whole_image(size: tuple[int, int], level: float) -> None:
    x, sigma = images(2, *size), torch.tensor(level, dtype=torch.float64)
    torch.testing.assert_close(seen_in_tiles(Local()).denoise(x, sigma), Local().denoise(x, sigma.expand(2)))


def test_its_gradient_is_that_of_the_whole_image() -> None:
    sigma = torch.tensor(0.4, dtype=torch.float64)
    direction = images(1, 150, 97).flip(2)
    gradients = []
    for prior in (seen_in_tiles(Local()), Local()):
        x = images(1, 150, 97).requires_grad_()
        (gradient,) = torch.autograd.grad(prior.denoise(x, sigma.expand(1)), x, direction)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


def test_the_network_is_handed_no_more_than_the_rows_and_the_side() -> None:
    local = Local()
    seen_in_tiles(local).denoise(images(2, 300, 170), torch.tensor(0.4, dtype=torch.float64))
    assert len(local.seen) > 10
    assert all(shape[0] <= 3 and shape[2:] == (SIDE, SIDE) for shape in local.seen)


def test_an_image_gives_the_same_alone_as_in_a_batch_with_other_noise_levels() -> None:
    x, sigma = images(3, 100, 130), torch.tensor([0.2, 0.9, 0.2], dtype=torch.float64)
    prior = seen_in_tiles(Local())
    together = prior.denoise(x, sigma)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], prior.denoise(x[row : row + 1], sigma[row]), rtol=0, atol=0)


def test_fewer_tiles_than_images_go_through_at_once() -> None:
    local = Local()
    tiles.tiled(local, SIDE, 8, CPU).denoise(images(1, 300, 170), torch.tensor(0.4, dtype=torch.float64))
    assert max(shape[0] * shape[2] * shape[3] for shape in local.seen) == 8 * 128**2 // 2


def test_tiles_cover_the_image_and_blend_to_one() -> None:
    for length in (64, 65, 100, 111, 112, 113, 257):
        for shift in (0.0, 0.3, 0.99):
            total = torch.zeros(length, dtype=torch.float64)
            for start in tiles.starts(length, SIDE, shift):
                assert 0 <= start <= length - SIDE
                total[start : start + SIDE] += tiles.weight(start, SIDE, length)
            assert float(total.min()) > 0.4, (length, shift)


def test_seams_move_with_the_noise_level() -> None:
    levels = torch.linspace(0.01, 3, 40).tolist()
    places = {tuple(tiles.starts(900, tiles.SIDE, tiles.shifts(level)[0])) for level in levels}
    # Twelve grids, shifted by 16 pixels; forty throws hit all but one or two.
    assert len(places) >= 9


@pytest.mark.parametrize("picture", ["constant", "ramp", "texture"])
def test_no_seam_is_seen_in_what_a_bundled_network_denoises(picture: str) -> None:
    prior = invsolve.load_prior("natural", self_test=False)
    row, column = torch.meshgrid(torch.linspace(0, 1, 400), torch.linspace(0, 0.24, 96), indexing="ij")
    clean = {
        "constant": 0.3 + 0 * row,
        "ramp": row + 0.5 * column - 0.7,
        "texture": 0.4 * torch.sin(40 * (row + column)),
    }
    sigma = torch.tensor(0.2)
    noisy = clean[picture] + sigma * images(1, 400, 96).float()
    with torch.no_grad():
        errors = [
            each.denoise(noisy, sigma) - clean[picture] for each in (prior, tiles.tiled(prior, tiles.SIDE, 4, CPU))
        ]
    # A seam is a line along which the image steps: no row may stand out more than in the whole image.
    steps = [float(error.mean(dim=3).diff().abs().max()) for error in errors]
    assert steps[1] < 1.1 * steps[0]
    assert float(errors[1].std()) < 1.02 * float(errors[0].std())


@pytest.mark.discrepant
def test_a_run_in_tiles_is_the_run_with_the_whole_image() -> None:
    y = images(1, 100, 90).float()
    run: dict[str, Any] = {
        "prior": Local(),
        "noise": invsolve.Gaussian(0.1),
        "strategy": invsolve.strategy("diffpir", steps=6),
    }
    blur = invsolve.operator("blur", sigma=1.0)
    whole = invsolve.reconstruct(y, blur, **run)
    parts = invsolve.reconstruct(y, blur, tile=SIDE, **run)
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-4, atol=1e-5)


def test_only_large_images_are_cut_by_default() -> None:
    local = Local()
    prior = tiles.tiled(local, None, 2, CPU)
    for size in (512, 513):
        prior.denoise(images(1, size, 40).float(), torch.tensor(0.3))
    assert local.seen[0][2:] == (512, 40)
    assert {shape[2:] for shape in local.seen[1:]} == {(256, 40)}
    assert tiles.tiled(local, 0, 2, CPU) is local


@pytest.mark.parametrize(("tile", "line"), [(8, "16 pixels or more"), (64, "takes images whole only")])
def test_a_tile_that_cannot_be_is_one_line(tile: int, line: str) -> None:
    prior = Local() if tile == 8 else invsolve.load_prior("gaussian-field", size=16)
    with pytest.raises(invsolve.UserError, match=line):
        tiles.tiled(prior, tile, 2, CPU)
