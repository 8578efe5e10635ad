"""Total variation stops where nothing is left to gain, each image for itself, and says where it was stopped before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import invsolve
from invsolve.api.discrepancy import DiscrepancyWarning
from invsolve.datasets import phantoms
from tests.support.types import Cli

SIZE = 16


def chest() -> torch.Tensor:
    return phantoms.render(phantoms.thorax(), SIZE)[None]


def views(noise: float) -> tuple[torch.Tensor, invsolve.Operator, invsolve.Gaussian]:
    """A slice of 30 views; noise as a part of the largest line integral."""
    ct = invsolve.operator("ct", image_size=SIZE, angles=30)
    level = invsolve.Gaussian(noise * float(ct(chest()).max()))
    return invsolve.simulate(chest(), ct, level, seed=1), ct, level


def run(y: torch.Tensor, ct: invsolve.Operator, noise: invsolve.Gaussian, **settings: Any) -> invsolve.Reconstruction:
    strategy = invsolve.strategy("tv", **settings)
    return invsolve.reconstruct(y, ct, noise=noise, strategy=strategy, samples=1, scale=(0.0, 1.0))


def psnr(rec: invsolve.Reconstruction) -> float:
    return 10 * math.log10(1 / float((rec.mean - chest()).square().mean()))


def test_thirty_views_are_within_a_twentieth_of_a_decibel_of_their_limit() -> None:
    y, ct, noise = views(0.02)
    done = run(y, ct, noise)
    # The ratio of the steps changes the way, not where it leads.
    limit = run(y, ct, noise, steps=600, tolerance=0.0, balance=100.0)
    assert float(limit.diagnostics["discrepancy"]) == pytest.approx(1, abs=1e-3)
    assert psnr(done) == pytest.approx(psnr(limit), abs=0.05)
    assert done.diagnostics["at_ceiling"].tolist() == [[0]]
    assert done.diagnostics["remarks"] == []
    # One forward and one adjoint call an iteration: it went no further than it had to.
    assert done.diagnostics["operator_calls"][0] < 2 * invsolve.strategy("tv").steps / 2  # type: ignore[attr-defined]


def test_the_ceiling_is_told_and_the_residual_it_leaves() -> None:
    y, ct, noise = views(0.02)
    with pytest.warns(DiscrepancyWarning, match=r"take more steps, now 20\b"):
        rec = run(y, ct, noise, steps=20)
    assert rec.diagnostics["at_ceiling"].tolist() == [[1]]
    (remark,) = rec.diagnostics["remarks"]
    assert remark == "1 of 1 images ended at the limit of iterations and not at the tolerance: raise steps, now 20"


def test_an_image_stops_for_itself() -> None:
    half, noise = invsolve.operator("inpainting", fraction=0.5, image_size=SIZE), invsolve.Gaussian(0.1)
    # The second is flat and soon done.
    y = invsolve.simulate(torch.cat([chest(), torch.full_like(chest(), 0.5)]), half, noise, seed=2)
    together = run(y, half, noise, weight=1.0)
    assert together.diagnostics["at_ceiling"].flatten().tolist() == [0, 0]
    for item in range(2):
        alone = run(y[item : item + 1], half, noise, weight=1.0)
        torch.testing.assert_close(together.mean[item], alone.mean[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight", [0.3, 3.0])
def test_the_penalised_form_stops_at_its_minimum(weight: float) -> None:
    x, noise = chest(), invsolve.Gaussian(0.1)
    every = invsolve.operator("inpainting", fraction=1.0, image_size=SIZE)
    y = invsolve.simulate(x, every, noise, seed=1)
    done = run(y, every, noise, weight=weight)
    assert done.diagnostics["at_ceiling"].tolist() == [[0]]

    def objective(image: torch.Tensor) -> float:
        # In network units, which are twice as fine as 0 to 1.
        network = 2 * image.double() - 1
        fit = (2 * y.double() - 1 - network).square().sum() / (2 * 0.2**2)
        down, right = torch.zeros_like(network), torch.zeros_like(network)
        down[..., :-1, :], right[..., :, :-1] = network.diff(dim=-2), network.diff(dim=-1)
        return float(fit + weight * (down**2 + right**2).sqrt().sum())

    # No picture near it is better by more than the gap that it was allowed, nor is the truth.
    best = objective(done.mean)
    for seed in range(5):
        step = 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        assert objective(done.mean + step) > best * (1 - 0.003)
    assert objective(x) > best * (1 - 0.003)


def test_the_command_says_what_stopped_at_a_limit(images: Path, tmp_path: Path, cli: Cli) -> None:
    scan, out = tmp_path / "scan.h5", tmp_path / "recon.h5"
    cli("simulate", images, "-o", scan, "--operator", "ct", "--set", "image_size=16", "--set", "angles=9")
    code, _, err = cli("reconstruct", scan, "-o", out, "--strategy", "tv", "--set", "steps=10")
    assert code == 0, err
    assert "5 of 5 images ended at the limit of iterations and not at the tolerance: raise steps, now 10" in err
