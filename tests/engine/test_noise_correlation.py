"""Noise that neighbouring slices share, and which volume a slice belongs to, from call and file to result."""

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.files.opening import open_measurement
from invsolve.numerics.random import ChainRandom
from tests.support import bounds
from tests.support.types import Cli


def noise(
    noise_correlation: float, items: int = 40, seed: int = 0, sample: int = 0, numbers: int = 4000
) -> torch.Tensor:
    rng = ChainRandom(seed, [(i, sample) for i in range(items)], noise_correlation=noise_correlation).at(3)
    return rng.normal(torch.zeros(items, numbers))


def correlation(items: int) -> torch.Tensor:
    """Of items that lie in a row, by the definition of noise_correlation = 2: exp(-(distance / 4)^2), (items, items)."""
    at = torch.arange(items, dtype=torch.float64)
    return torch.exp(-(((at[:, None] - at) / 4) ** 2))


def test_neighbours_correlate_as_stated_and_variance_is_one() -> None:
    numbers = 12_000
    x = noise(2.0, numbers=numbers)
    for distance in (0, 1, 3, 6, 12):
        covariance = float((x[: 40 - distance] * x[distance:]).mean())
        # A product of two normal numbers scatters at most as a square does, by twice the relative error of a width.
        error = 2 * bounds.width_error(numbers, bounds.dimensions(correlation(40 - distance)))
        assert covariance == pytest.approx(math.exp(-((distance / 4) ** 2)), abs=error)


def test_infinite_coherence_is_the_same_noise_for_all() -> None:
    x = noise(math.inf, items=3)
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])
    assert not torch.equal(noise(math.inf, items=1, sample=1)[0], x[0])
    assert not torch.equal(noise(math.inf, items=1, seed=1)[0], x[0])


@pytest.mark.parametrize("noise_correlation", [0.0, 0.7, 3.0, math.inf])
def test_rows_do_not_depend_on_what_else_is_drawn(noise_correlation: float) -> None:
    whole = noise(noise_correlation)
    some = (
        ChainRandom(0, [(17, 0), (4, 1), (5, 0)], noise_correlation=noise_correlation)
        .at(3)
        .normal(torch.zeros(3, 4000))
    )
    torch.testing.assert_close(some[[0, 2]], whole[[17, 5]], atol=1e-6, rtol=0)
    assert float((some[1] - whole[4]).abs().mean()) > 0.5


@pytest.mark.discrepant
def test_it_makes_slices_of_a_constant_volume_alike_and_is_recorded() -> None:
    operator = invsolve.operator("inpainting", fraction=0.3, image_size=16)
    prior = invsolve.load_prior("gaussian-field", size=16, std=0.3)
    truth = prior.sample(ChainRandom(3, [(0, 0)]), torch.zeros(1)).expand(40, 1, 16, 16)
    y = operator(truth)
    jumps, errors = {}, {}
    for noise_correlation in (0.0, 2.0, math.inf):
        rec = invsolve.reconstruct(
            *(y, operator, prior),
            noise=invsolve.Gaussian(0.05),
            # Without coupling, and solved exactly, its samples of a Gaussian prior are linear in the noise.
            strategy=invsolve.strategy("dds-3d", steps=10, weight=0.0, solves=60),
            samples=3,
            noise_correlation=noise_correlation,
            progress=False,
        )
        steps = rec.samples.diff(dim=0)
        jumps[noise_correlation] = float(steps.square().mean().sqrt())
        if noise_correlation < math.inf:
            # 39 differences of 40 items and 3 samples, in as many dimensions as the images scatter in.
            between = torch.eye(40, dtype=torch.float64) if noise_correlation == 0 else correlation(40)
            along = between.diff(dim=0).diff(dim=1)
            pixels = bounds.dimensions(steps.flatten(0, 1).flatten(1).T.cov())
            errors[noise_correlation] = bounds.width_error(2, 3 * bounds.dimensions(along) * pixels)
        assert json.loads(json.dumps(rec.provenance))["noise_correlation"] in (noise_correlation, "infinite")
    assert jumps[math.inf] < 1e-5
    # Neighbours correlate as exp(-1/16): a difference of sqrt(2 (1 - 0.94)) instead of sqrt(2).
    wanted = jumps[0.0] * math.sqrt(1 - math.exp(-1 / 16))
    assert jumps[2.0] == pytest.approx(wanted, rel=math.hypot(*errors.values()))
    with pytest.raises(invsolve.UserError, match="noise_correlation"):
        invsolve.reconstruct(y, operator, prior, noise=invsolve.Gaussian(0.05), noise_correlation=-1.0)


def test_labels_go_from_images_to_scan_to_measurement(images: Path, tmp_path: Path, cli: Cli) -> None:
    with h5py.File(images, "r+") as file:
        file["volume"] = np.array([4, 4, 2, 2, 2])
    scan = tmp_path / "scan.h5"
    simulate = ("simulate", images, "-o", scan, "--operator", "ct", "--set", "angles=12", "--noise", "gaussian:0.05")
    code, _, err = cli(*simulate)
    assert code == 0, err
    assert open_measurement(scan).volumes == [4, 4, 2, 2, 2]
    options = ("--strategy", "tv-3d", "--set", "steps=20", "--noise-correlation", "inf", "--json")
    code, _, err = cli("reconstruct", scan, "-o", tmp_path / "out.h5", *options)
    assert code == 0, err
    with h5py.File(images, "r+") as file:
        del file["volume"]
        file["volume"] = np.zeros((2, 2))
    code, _, err = cli(*simulate, "--overwrite")
    assert code == 2
    assert "one whole number for each of 5 items" in err
