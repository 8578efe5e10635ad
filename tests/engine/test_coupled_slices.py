"""Volumes from 2-D priors: coupling across slices, in chunks, by labels, in several processes; against closed forms."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import invsolve
from invsolve import registry
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.through_plane import AlongAxis, AlongRows, ThroughPlane
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._through_plane_tv import ThroughPlaneTV
from invsolve.testing.operators import dense
from tests.support.stops import stop_at
from tests.support.types import Cli

SIGMA = 0.05
COUPLED: dict[str, dict[str, Any]] = {
    "mbir": {"steps": 8},
    "dds-3d": {"steps": 6, "weight": 2e-3},
    "tv-3d": {"steps": 40},
}


@pytest.fixture(scope="module")
def prior() -> invsolve.Prior:
    return invsolve.load_prior("gaussian-field", size=16, std=0.3)


@pytest.fixture(scope="module")
def ct() -> invsolve.Operator:
    return invsolve.operator("ct", image_size=16, angles=6)


@pytest.fixture(scope="module")
def y(prior: invsolve.Prior, ct: invsolve.Operator) -> Tensor:
    """Seven slices that change little from one to the next."""
    draws = prior.sample(ChainRandom(3, [(i, 0) for i in range(2)]), torch.zeros(1))
    part = torch.linspace(0, 0.3, 7).view(-1, 1, 1, 1)
    return invsolve.simulate(draws[:1] * (1 - part) + draws[1:] * part, ct, invsolve.Gaussian(SIGMA))


@pytest.mark.parametrize("name", COUPLED)
def test_slices_with_an_operator_each_are_refused_in_one_line(name: str) -> None:
    masks = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.6
    with pytest.raises(invsolve.UserError) as error:
        invsolve.reconstruct(
            masks.float(),
            invsolve.operator("inpainting", mask=masks),
            None if name == "tv-3d" else "natural",
            noise=invsolve.Gaussian(SIGMA),
            strategy=invsolve.strategy(name, **COUPLED[name]),
        )
    line = str(error.value)
    assert line.startswith(
        f"strategy {name!r} couples the slices of a volume, which must share one operator; here each"
    )
    assert line.endswith("would do")
    assert "\n" not in line


def run(y: Tensor, operator: invsolve.Operator, prior: invsolve.Prior, name: str, **options: Any) -> Tensor:
    settings = {
        "noise": invsolve.Gaussian(SIGMA),
        "strategy": invsolve.strategy(name, **COUPLED[name]),
        "progress": False,
    }
    return invsolve.reconstruct(y, operator, prior, **(settings | options)).samples  # type: ignore[arg-type]


class TestAcross:
    @pytest.mark.parametrize(("through_plane", "shape"), [(AlongRows(), (5, 1, 2, 3)), (AlongAxis(2), (2, 1, 4, 2, 3))])
    def test_transpose_is_the_transpose(self, through_plane: ThroughPlane, shape: tuple[int, ...]) -> None:
        unit = torch.eye(int(np.prod(shape)), dtype=torch.float64)
        forward = torch.stack([through_plane.difference(e.view(shape)).flatten() for e in unit], 1)
        back = torch.stack([through_plane.transpose(e.view(shape)).flatten() for e in unit], 1)
        torch.testing.assert_close(back, forward.T, atol=0, rtol=0)
        assert float(torch.linalg.matrix_norm(forward, 2)) <= 2

    def test_the_last_slice_does_not_see_the_first(self) -> None:
        x = torch.arange(4.0).view(4, 1, 1, 1) ** 2
        assert AlongRows().difference(x).flatten().tolist() == [1.0, 3.0, 5.0, 0.0]
        assert AlongAxis(2).difference(x.movedim(0, 1)[None]).flatten().tolist() == [1.0, 3.0, 5.0, 0.0]

    def test_inner_products_are_over_a_volume_and_real(self) -> None:
        a, b = (torch.randn(3, 1, 2, 2, dtype=torch.complex128) for _ in range(2))
        whole = (a.conj() * b).real.sum()
        torch.testing.assert_close(AlongRows().inner(a, b), whole.view(1))
        torch.testing.assert_close(ThroughPlane().inner(a, b).sum(), whole)


def tiny(slices: int = 4) -> tuple[Problem, Tensor]:
    """A problem small enough for dense matrices, and a volume near which the solution is to be."""
    generator = torch.Generator().manual_seed(1)
    operator = invsolve.operator("ct", image_size=4, angles=3).to(torch.float64)
    volume = torch.randn(slices, 1, 4, 4, dtype=torch.float64, generator=generator).cumsum(0)
    near = volume + 0.3 * torch.randn(volume.shape, dtype=torch.float64, generator=generator)
    problem = make_problem(None, operator, invsolve.Gaussian(0.1), operator(volume), (1, 4, 4), Scale())
    return replace(problem, through_plane=AlongRows()), near


@pytest.mark.parametrize("keep", [1.0, 0.05])
def test_admm_finds_what_the_dual_box_problem_gives(keep: float) -> None:
    problem, near = tiny()
    weight, penalty = 0.3, 0.5
    matrix, _ = dense(problem.linear, (1, 4, 4))
    matrix = torch.block_diag(*[matrix] * len(near)).numpy() / problem.operator_norm()
    unit = torch.eye(near.numel(), dtype=torch.float64)
    jump = torch.stack([problem.through_plane.difference(e.view(near.shape)).flatten() for e in unit], 1).numpy()
    # min_x x'Hx/2 - b'x + w|Jx|_1  <=>  min over |p| <= w of (b - J'p)'H^-1(b - J'p)/2, x = H^-1(b - J'p).
    hessian = matrix.T @ matrix + keep * np.eye(near.numel())
    b = matrix.T @ problem.y.flatten().numpy() / problem.operator_norm() + keep * near.flatten().numpy()
    half = np.linalg.inv(np.linalg.cholesky(hessian))
    multiplier = scipy.optimize.lsq_linear(half @ jump.T, half @ b, (-weight, weight), tol=1e-12)
    wanted = torch.from_numpy(np.linalg.solve(hessian, b - jump.T @ multiplier.x)).view(near.shape)

    tv = ThroughPlaneTV(weight, penalty, sweeps=800, solves=60)
    x, jumps, dual = tv.improve(problem, near, problem.residual(near), near * 0, near * 0, keep)
    torch.testing.assert_close(x, wanted, atol=1e-5, rtol=0)
    assert float((x - near).abs().max()) > 0.1
    # Persistent: one more sweep stays there, although each call begins anew at `near`; 1e-6 is CG's own limit, over keep.
    again, _, _ = ThroughPlaneTV(weight, penalty, 1, 60).improve(
        problem, near, problem.residual(near), jumps, dual, keep
    )
    torch.testing.assert_close(again, wanted, atol=1e-6 * float(wanted.norm()) / keep, rtol=0)


def test_one_sweep_at_a_time_with_kept_duals_is_many_sweeps() -> None:
    problem, near = tiny()
    jumps, dual = near * 0, near * 0
    for _ in range(40):
        x, jumps, dual = ThroughPlaneTV(0.3, 0.5, 1, 60).improve(
            problem, near, problem.residual(near), jumps, dual, 1.0
        )
    whole, _, _ = ThroughPlaneTV(0.3, 0.5, 40, 60).improve(
        problem, near, problem.residual(near), near * 0, near * 0, 1.0
    )
    torch.testing.assert_close(x, whole, atol=1e-6 * float(whole.norm()), rtol=0)  # CG's own limit


@pytest.mark.discrepant("mbir-without0", "tv-3d-without2")
@pytest.mark.parametrize(
    ("name", "without"), [("mbir", {"weight": 0.0}), ("dds-3d", {"weight": 0.0}), ("tv-3d", {"through_plane": 0.0})]
)
def test_without_coupling_every_slice_is_alone(
    name: str, without: dict, y: Tensor, ct: invsolve.Operator, prior: invsolve.Prior
) -> None:
    strategy = invsolve.strategy(name, **{**COUPLED[name], **without})
    whole = run(y, ct, prior, name, strategy=strategy)
    labels = list(range(len(y)))
    apart = invsolve.Measurement(y, ct, invsolve.Gaussian(SIGMA), volumes=labels)
    alone = invsolve.reconstruct(apart, prior=prior, strategy=strategy, progress=False).samples
    torch.testing.assert_close(whole, alone, atol=2e-5, rtol=0)


@pytest.mark.discrepant
def test_dds_3d_without_coupling_is_dds(y: Tensor, ct: invsolve.Operator, prior: invsolve.Prior) -> None:
    if "dds" not in registry.available("strategy"):
        pytest.skip("there is no strategy 'dds'")
    for gamma in ("measured", 30.0):
        same = {"steps": 8, "solves": 4, "gamma": gamma, "eta": 0.7, "start": 5.0}
        flat = run(y, ct, prior, "dds-3d", strategy=invsolve.strategy("dds", **same))
        whole = run(y, ct, prior, "dds-3d", strategy=invsolve.strategy("dds-3d", weight=0.0, **same))
        torch.testing.assert_close(whole, flat, atol=2e-5, rtol=0)


@pytest.mark.discrepant
def test_tv_3d_without_coupling_is_tv(y: Tensor, ct: invsolve.Operator, prior: invsolve.Prior) -> None:
    flat = invsolve.strategy("tv", **COUPLED["tv-3d"])
    whole = run(y, ct, prior, "tv-3d", strategy=invsolve.strategy("tv-3d", through_plane=0.0, **COUPLED["tv-3d"]))
    torch.testing.assert_close(whole, run(y, ct, prior, "tv-3d", strategy=flat), atol=2e-5, rtol=0)


def test_tv_3d_of_a_step_across_slices_has_a_closed_form() -> None:
    y = torch.zeros(9, 1, 4, 4, dtype=torch.float64)
    y[3:] = 1.0
    sigma, weight, across = 0.5, 0.6, 0.7
    everything = invsolve.operator("inpainting", mask=torch.ones(4, 4))
    problem = make_problem(None, everything, invsolve.Gaussian(sigma), y, (1, 4, 4), Scale())
    problem.through_plane = AlongRows()
    strategy = invsolve.strategy("tv-3d", weight=weight, through_plane=across, steps=3000, tolerance=1e-6)
    x = run_batch(problem, strategy, ChainRandom(0, [(i, 0) for i in range(9)])).images
    move = weight * across * sigma**2
    wanted = torch.where(y > 0, 1 - move / 6, move / 3).double()
    torch.testing.assert_close(x, wanted, atol=2e-4, rtol=0)


@pytest.mark.discrepant("dds-3d", "mbir", "tv-3d")
@pytest.mark.parametrize("name", COUPLED)
def test_coupling_changes_the_slices_but_not_with_the_chunk(
    name: str, y: Tensor, ct: invsolve.Operator, prior: invsolve.Prior
) -> None:
    one, three, sixteen = (run(y, ct, prior, name, batch_size=b) for b in (1, 3, 16))
    torch.testing.assert_close(one, three, atol=2e-5, rtol=0)
    torch.testing.assert_close(one, sixteen, atol=2e-5, rtol=0)
    alone = run(y[:1], ct, prior, name)
    assert float((alone - one[:1]).abs().max()) > 1e-3


@pytest.mark.discrepant
def test_a_chunk_too_large_for_memory_is_halved(y: Tensor, ct: invsolve.Operator, prior: invsolve.Prior) -> None:
    seen = []

    class Small(type(prior)):  # type: ignore[misc]
        def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(len(x))
            if len(x) > 2:
                raise torch.OutOfMemoryError("too much")
            return super().denoise(x, sigma)

    small = run(y, ct, Small(size=16, std=0.3), "dds-3d", batch_size=7)
    torch.testing.assert_close(small, run(y, ct, prior, "dds-3d"), atol=2e-5, rtol=0)
    assert seen[:3] == [7, 3, 1]


@pytest.mark.discrepant
def test_samples_differ_and_do_not_depend_on_their_number(
    y: Tensor, ct: invsolve.Operator, prior: invsolve.Prior
) -> None:
    two, three = (run(y, ct, prior, "dds-3d", samples=s) for s in (2, 3))
    torch.testing.assert_close(two, three[:, :2], atol=2e-5, rtol=0)
    assert float((three[:, 0] - three[:, 1]).abs().mean()) > 0.01


@pytest.mark.discrepant
def test_labels_part_the_items_into_volumes(y: Tensor, ct: invsolve.Operator, prior: invsolve.Prior) -> None:
    # Slices of two volumes in turns: each volume is what it is alone, but for the noise, which is keyed by item.
    strategy = invsolve.strategy("tv-3d", steps=40)
    mixed = y[[0, 3, 1, 4, 2, 5]]
    measurement = invsolve.Measurement(mixed, ct, invsolve.Gaussian(SIGMA), volumes=[7, 9, 7, 9, 7, 9])
    both = invsolve.reconstruct(measurement, strategy=strategy, progress=False).samples
    torch.testing.assert_close(both[::2], run(y[:3], ct, prior, "tv-3d"), atol=2e-5, rtol=0)
    torch.testing.assert_close(both[1::2], run(y[3:6], ct, prior, "tv-3d"), atol=2e-5, rtol=0)
    measurement.volumes = [0, 1]
    with pytest.raises(invsolve.UserError, match="2 volume labels for 6 items"):
        invsolve.reconstruct(measurement, strategy=strategy, progress=False)


@pytest.mark.discrepant
def test_physical_units_and_complex_data(y: Tensor, ct: invsolve.Operator, prior: invsolve.Prior) -> None:
    factor, offset = 250.0, 1000.0
    shift = ct(torch.full((1, 1, 16, 16), offset))
    scaled = run(
        y * factor + shift, ct, prior, "dds-3d", noise=invsolve.Gaussian(SIGMA * factor), scale=Scale(factor, offset)
    )
    torch.testing.assert_close((scaled - offset) / factor, run(y, ct, prior, "dds-3d"), atol=2e-3, rtol=0)
    mri = invsolve.operator("mri", image_size=16, acceleration=2)
    truth = prior.sample(ChainRandom(3, [(i, 0) for i in range(4)]), torch.zeros(1))
    kspace = invsolve.simulate(truth, mri, invsolve.Gaussian(0.01))
    for name in COUPLED:
        one, four = (run(kspace, mri, prior, name, noise=invsolve.Gaussian(0.01), batch_size=b) for b in (1, 4))
        torch.testing.assert_close(one, four, atol=2e-5, rtol=0)


class Squeezed(invsolve.LinearOperator):
    """Neighbouring slices are measured together: a true 3-D operator."""

    image_shape = (1, 6, 16, 16)
    examples: ClassVar = ({},)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2] + x[:, :, 1::2]


@pytest.mark.discrepant
def test_a_2d_prior_serves_a_3d_operator(prior: invsolve.Prior) -> None:
    slice_ = prior.sample(ChainRandom(3, [(0, 0)]), torch.zeros(1))[:, :, None]
    truth = slice_.expand(2, 1, 6, 16, 16) * torch.linspace(1, 1.2, 6).view(6, 1, 1)
    y = invsolve.simulate(truth, Squeezed(), invsolve.Gaussian(SIGMA))
    errors = {}
    for weight in (0.0, 2e-2):
        strategy = invsolve.strategy("dds-3d", steps=20, weight=weight)
        results = [run(y, Squeezed(), prior, "dds-3d", strategy=strategy, batch_size=b) for b in (1, 12)]
        assert results[0].shape == (2, 1, 1, 6, 16, 16)
        torch.testing.assert_close(*results, atol=2e-5, rtol=0)
        errors[weight] = float((results[0][:, 0] - truth).square().mean().sqrt())
    # What the sum of two slices leaves open, the coupling decides.
    assert errors[2e-2] < 0.6 * errors[0.0]
    # A slice-wise strategy takes volumes as well.
    strategy = invsolve.strategy("dps-fitted", steps=5)
    assert run(y, Squeezed(), prior, "dds-3d", strategy=strategy).shape == (2, 1, 1, 6, 16, 16)


def test_rows_and_image_axis_are_the_same_coupling() -> None:
    problem, near = tiny()
    tv = ThroughPlaneTV(0.3, 0.5, 20, 40)
    rows, _, _ = tv.improve(problem, near, problem.residual(near), near * 0, near * 0, 1.0)

    class AsVolume(invsolve.LinearOperator):
        image_shape = (1, 4, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([problem.operator(v.movedim(0, 1)) for v in x])

        def norm(self, like: Tensor | None = None) -> float:
            return problem.operator_norm()

    deep = make_problem(None, AsVolume(), invsolve.Gaussian(0.1), problem.y[None], (1, 4, 4, 4), Scale())
    deep.through_plane = AlongAxis()
    near = near.movedim(0, 1)[None]
    axis, _, _ = tv.improve(deep, near, deep.residual(near), near * 0, near * 0, 1.0)
    torch.testing.assert_close(axis[0].movedim(1, 0), rows, atol=1e-9, rtol=0)


PLUGIN = '''
"""A Gaussian prior of sixteen pixels a side."""
import invsolve
from invsolve import registry


class Small(registry.find("prior", "gaussian-field")):
    """Sixteen pixels a side."""

    examples = ({},)

    def __init__(self):
        super().__init__(size=16, std=0.3)


@invsolve.hookimpl
def invsolve_priors():
    return {"small": Small}
'''


@pytest.mark.slow
def test_two_processes_share_a_volume(y: Tensor, ct: invsolve.Operator, tmp_path: Path, cli: Cli) -> None:
    from invsolve.datasets.hdf5 import write_scan

    (tmp_path / "small.py").write_text(PLUGIN)
    scan = tmp_path / "scan.h5"
    write_scan(scan, y, ct, invsolve.Gaussian(SIGMA))
    together = [
        sys.executable,
        "-P",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "invsolve",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*together, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)

    common = ["--prior", "small", "--plugin", tmp_path / "small.py", "--strategy", "dds-3d", "--set", "weight=0.002"]
    common += ["--samples", 2]
    options = [*common, "--set", "steps=8"]
    done = start("reconstruct", scan, "-o", tmp_path / "two.h5", *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"] == 7
    assert cli("reconstruct", scan, "-o", tmp_path / "one.h5", *options)[0] == 0
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "two.h5") as two:
        np.testing.assert_allclose(two["samples"][:], one["samples"][:], atol=1e-5)
        residual = "diagnostics/residual"
        np.testing.assert_allclose(one[residual][:], two[residual][:], rtol=1e-3)
        assert two["done"][:].all()
    # What two processes began, one ends.
    slow = [*common, "--set", "steps=20", "--snapshot-every", 0]
    # The process that saves asks their parent to end them, and goes on when it does.
    process = subprocess.Popen(
        [*together, *map(str, ("reconstruct", scan, "-o", tmp_path / "cut.h5", *slow))],
        env=environment | stop_at("snapshot saved", signal.SIGTERM, count=5, target="parent"),
        cwd=tmp_path,
    )
    process.wait()
    content = torch.load(tmp_path / "cut.h5.partial.state", weights_only=True)
    assert content["snapshot"]["state"]["x"].shape == (7, 1, 16, 16)
    code, _, err = cli("reconstruct", scan, "-o", tmp_path / "cut.h5", *slow)
    assert code == 0, err
    assert "after step" in err
    assert cli("reconstruct", scan, "-o", tmp_path / "uncut.h5", *slow)[0] == 0
    with h5py.File(tmp_path / "cut.h5") as cut, h5py.File(tmp_path / "uncut.h5") as uncut:
        np.testing.assert_allclose(cut["samples"][:], uncut["samples"][:], atol=1e-4)
