"""Numbers that run away, values that say two things, tensors without numbers: one line, before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import invsolve
from invsolve import UserError
from invsolve.datasets.hdf5 import write_images
from tests.support.types import Cli

Y = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def reconstruct(y: torch.Tensor = Y, **options: Any) -> invsolve.Reconstruction:
    operator = invsolve.operator("blur", sigma=1.0)
    given: dict[str, Any] = {"noise": "gaussian:0.1", "strategy": "linear", **options}
    return invsolve.reconstruct(y, operator, prior=None, progress=False, **given)


@pytest.mark.parametrize("y", [Y.to_sparse(), Y.to("meta")], ids=["sparse", "meta"])
def test_tensors_without_numbers_are_named(y: torch.Tensor) -> None:
    with pytest.raises(UserError, match="give a dense one"):
        reconstruct(y)


def test_samples_are_bounded() -> None:
    with pytest.raises(UserError, match="samples must be at most 1000000, got 1000000000000"):
        reconstruct(samples=10**12)


@pytest.mark.parametrize("noise", ["poisson:1e30", "transmission:1e30", "poisson-gaussian:1e30,1"])
def test_counts_beyond_all_numbers(noise: str) -> None:
    with pytest.raises(UserError, match="beyond those that can be drawn"):
        invsolve.simulate(Y, invsolve.operator("blur", sigma=1.0), noise)


@pytest.mark.parametrize(
    ("name", "size"), [("mri-noncartesian", {"image_size": 16}), ("mri-noncartesian-3d", {"volume_size": 4})]
)
def test_trajectories_are_bounded(name: str, size: dict[str, int]) -> None:
    with pytest.raises(UserError, match="more than 268435456 points"):
        invsolve.operator(name, spokes=10**9, **size)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_measured_of_images_that_are_not_finite(value: float) -> None:
    bad = Y.clone()
    bad[0, 0, 3, 3] = value
    with pytest.raises(UserError, match="truth holds NaN or infinity"):
        invsolve.simulate(bad, invsolve.operator("blur", sigma=1.0), "gaussian:0.1")
    with pytest.raises(UserError, match="x holds NaN or infinity"):
        invsolve.log_likelihood(invsolve.load_prior("gaussian-field", size=12), bad)


def test_true_is_no_number() -> None:
    with pytest.raises(UserError, match="sigma=True is not float"):
        invsolve.noise("gaussian:true")
    with pytest.raises(UserError, match="steps=True is not int"):
        invsolve.strategy("dds", steps=True)


def test_what_is_given_twice_is_refused(tmp_path: Path, cli: Cli) -> None:
    """The last would win in silence."""
    with pytest.raises(UserError, match="sigma is given twice"):
        invsolve.noise("gaussian:sigma=0.1,sigma=0.2")
    write_images(tmp_path / "x.h5", Y)
    command = ["simulate", tmp_path / "x.h5", "-o", tmp_path / "o.h5", "--operator", "blur", "--noise", "gaussian:1"]
    code, _, err = cli(*command, "--set", "sigma=1", "--set", "sigma=2")
    assert code == 2
    assert "sigma is given twice" in err
    assert not (tmp_path / "o.h5").exists()
