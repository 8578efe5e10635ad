"""A 2-D prior along all three axes of a volume: against Gaussian fields that are smooth along every axis."""

from pathlib import Path
from typing import ClassVar

import h5py
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.datasets import hdf5
from invsolve.engine.volume import RowsOfAVolume, SliceWise
from tests.support.types import Cli

CPU = torch.device("cpu")


def covariance(size: int) -> Tensor:
    """Of a smooth line: 0.3^2 exp(-d^2 / 2), d in units of two pixels."""
    at = torch.arange(size, dtype=torch.float64) / 2
    return torch.exp(-((at[:, None] - at) ** 2) / 2)


class Smooth(invsolve.Prior):
    """The exact denoiser of a smooth Gaussian field of any size, and of standard deviation 0.3."""

    event_shape = (1, None, None)
    sigma_max = 3.0
    examples: ClassVar = ({},)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        along, rows = (torch.linalg.eigh(covariance(n)) for n in (x.shape[-1], x.shape[-2]))
        variances = (0.09 * rows.eigenvalues[:, None] * along.eigenvalues).to(x).clamp_min(0)
        u, v = rows.eigenvectors.to(x), along.eigenvectors.to(x)
        level = sigma.view(-1, 1, 1, 1) if sigma.ndim else sigma
        return u @ (variances / (variances + level**2) * (u.T @ x @ v)) @ v.T


class Sparse(invsolve.LinearOperator):
    """Every third voxel, in each slice another third; as an operator of slices, and of volumes."""

    def __init__(self, depth: int | None = None) -> None:
        super().__init__()
        self.image_shape = (1, 12, 10) if depth is None else (1, depth, 12, 10)
        self.seen: Tensor
        self.register_buffer("seen", (torch.arange(12)[:, None] + torch.arange(10)) % 3 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.seen


@pytest.fixture(scope="module")
def truth() -> Tensor:
    """(7, 1, 12, 10), smooth along all three axes."""
    noise = torch.randn(7, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    roots = [torch.linalg.cholesky(covariance(n) + 1e-6 * torch.eye(n)) for n in noise.shape]
    return 0.3 * torch.einsum("az,by,cx,zyx->abc", *roots, noise).float()[:, None]


@pytest.fixture(scope="module")
def y(truth: Tensor) -> Tensor:
    return invsolve.simulate(truth, Sparse(), invsolve.Gaussian(0.05))


def run(y: Tensor, operator: invsolve.Operator, planes: int, **options: object) -> invsolve.Reconstruction:
    settings = {"strategy": invsolve.strategy("dds-3d", steps=10, weight=0.0), "noise": invsolve.Gaussian(0.05)}
    return invsolve.reconstruct(y, operator, Smooth(), planes=planes, **(settings | options))  # type: ignore[arg-type]


def test_the_estimate_is_the_mean_of_three(truth: Tensor) -> None:
    prior, sigma = Smooth(), torch.tensor(0.4)
    x = truth + 0.4 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    volume = x[:, 0]
    parts = []
    for order in ("zyx", "yzx", "xzy"):
        turned = torch.einsum(f"zyx->{order}", volume)
        parts.append(torch.einsum(f"{order}->zyx", prior.denoise(turned[:, None], sigma)[:, 0]))
    wanted = torch.stack(parts).mean(0)
    for rows in (1, 4, 100):
        estimate = RowsOfAVolume(prior, rows, CPU, 3).denoise(x, sigma)
        torch.testing.assert_close(estimate[:, 0], wanted, atol=1e-6, rtol=0)
        two = SliceWise(prior, rows, CPU, 3).denoise(torch.stack([volume, -volume])[:, None], torch.tensor([0.4, 0.4]))
        torch.testing.assert_close(two[:, 0], torch.stack([wanted, -wanted]), atol=1e-6, rtol=0)
    one = RowsOfAVolume(prior, 4, CPU, 1).denoise(x, sigma.expand(7))
    torch.testing.assert_close(one, prior.denoise(x, sigma), atol=0, rtol=0)


def test_three_slicings_know_more_than_one(truth: Tensor) -> None:
    everything = invsolve.operator("inpainting", mask=torch.ones(12, 10))
    noise = invsolve.Gaussian(0.3)
    y = invsolve.simulate(truth, everything, noise)
    errors, calls = {}, {}
    for planes in (1, 3):
        rec = run(y, everything, planes, noise=noise, samples=8)
        errors[planes] = float((rec.mean - truth).square().mean().sqrt())
        calls[planes] = rec.diagnostics["network_calls"][0]
        assert rec.provenance["planes"] == planes
    assert calls == {1: 10, 3: 30}
    assert errors[3] < 0.9 * errors[1]


def test_chunks_do_not_change_it(y: Tensor) -> None:
    one, many = (run(y, Sparse(), 3, batch_size=b).samples for b in (2, 50))
    torch.testing.assert_close(one, many, atol=2e-5, rtol=0)


def test_rows_and_image_axis_are_the_same(truth: Tensor, y: Tensor) -> None:
    whole = y.movedim(0, 1)[None]
    rec = run(whole, Sparse(depth=7), 3, samples=4)
    assert rec.mean.shape == (1, 1, 7, 12, 10)
    error = (rec.mean[0].movedim(1, 0) - truth).square().mean().sqrt()
    rows = (run(y, Sparse(), 3, samples=4).mean - truth).square().mean().sqrt()
    # Other random numbers, the same posterior.
    torch.testing.assert_close(error, rows, atol=0, rtol=0.15)
    # Strategies that differentiate the prior take it as well.
    assert run(whole, Sparse(depth=7), 3, strategy=invsolve.strategy("dps-fitted", steps=4)).mean.isfinite().all()


class Fixed(Smooth):
    event_shape = (1, 12, 10)  # type: ignore[assignment]  # Smooth is of any size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"planes": 2}, "planes must be 1 .* or 3 .*, got 2"),
        ({"strategy": "dds"}, "strategy 'dds' takes the items one by one: take one that couples slices"),
        ({"strategy": "tv-3d", "prior": None}, "strategy 'tv-3d' was given none: leave it out"),
        ({"prior": Fixed()}, "takes images of 12 x 10 only"),
    ],
)
def test_what_cannot_be_is_refused(y: Tensor, options: dict, message: str) -> None:
    given = {"prior": Smooth(), "strategy": "dds-3d", "planes": 3} | options
    with pytest.raises(invsolve.UserError, match=message) as caught:
        invsolve.reconstruct(y, Sparse(), noise=invsolve.Gaussian(0.05), **given)
    assert "\n" not in str(caught.value)


def test_from_the_command_line(tmp_path: Path, cli: Cli) -> None:
    with h5py.File(tmp_path / "truth.h5", "w") as file:
        file["x"] = torch.rand(8, 1, 16, 16).numpy()
    scan = tmp_path / "scan.h5"
    measure = ["--operator", "ct", "--set", "angles=5", "--noise", "gaussian:0.3"]
    cli("simulate", tmp_path / "truth.h5", "-o", scan, *measure)
    options = ["--prior", "ct-128", "--strategy", "dds-3d", "--set", "steps=2", "--scale", "0:1"]
    for planes in (1, 3):
        cli("reconstruct", scan, "-o", tmp_path / f"{planes}.h5", *options, "--planes", planes)
    one, three = (hdf5.read_result(tmp_path / f"{planes}.h5") for planes in (1, 3))
    assert float(three.diagnostics["network_calls"][0]) == 3 * float(one.diagnostics["network_calls"][0]) == 6
