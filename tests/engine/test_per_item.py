"""Masks, kernels and coil maps of each item: a run with them is the runs of the items, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import invsolve
from invsolve import jobs
from invsolve.contracts.operator import LinearOperator
from invsolve.datasets import hdf5
from invsolve.engine import Options
from invsolve.files.opening import open_measurement
from invsolve.testing.operators import dense
from tests.support.types import offered

ITEMS, SIZE = 3, (8, 10)
NOISE = invsolve.Gaussian(0.05)
GENERATOR = torch.Generator().manual_seed(0)


def _mask(*shape: int) -> torch.Tensor:
    # The first entry is always measured, so that no item is measured nowhere.
    mask = torch.rand(shape, generator=GENERATOR) < torch.tensor([0.3, 0.5, 0.8]).view(-1, *[1] * (len(shape) - 1))
    mask[..., 0] = True
    return mask


#: Operator, parameters of its own for each item, and parameters for all.
CASES: dict[str, tuple[str, dict[str, torch.Tensor], dict[str, Any]]] = {
    "mask": ("inpainting", {"mask": _mask(ITEMS, 1, *SIZE)}, {}),
    "k-space": ("mri", {"mask": _mask(ITEMS, *SIZE)}, {}),
    "columns": ("mri", {"mask": _mask(ITEMS, 1, SIZE[1])}, {"image_size": list(SIZE)}),
    "coils": (
        "mri",
        {"coil_maps": torch.randn(ITEMS, 2, *SIZE, dtype=torch.complex64, generator=GENERATOR)},
        {"mask": _mask(ITEMS, SIZE[1])[1]},
    ),
    "kernel": ("blur", {"kernel": torch.rand(ITEMS, 3, 2, generator=GENERATOR) / 3}, {}),
    "fewer pixels": ("downsample", {"kernel": torch.rand(ITEMS, 3, 2, generator=GENERATOR) / 3}, {"factor": 2}),
    "kernel, edges": ("blur", {"kernel": torch.rand(ITEMS, 3, 2, generator=GENERATOR) / 3}, {"boundary": "zero"}),
}
STRATEGIES = {
    "moment": {"steps": 3},
    "dps": {"steps": 3},
    "ddrm": {"steps": 3},
    "red-diff": {"steps": 3},
    "mcgdiff": {"steps": 3},
    "linear": {},
}


def prior() -> invsolve.Prior:
    """Three modes, so that every strategy has something to do with the prior; of images that are no squares."""
    means = torch.randn(3, 1, *SIZE, generator=torch.Generator().manual_seed(3))
    return invsolve.load_prior("gaussian-mixture", means=means, std=0.3)


def pair(case: str) -> tuple[LinearOperator, list[LinearOperator]]:
    """The operator of all items, and those that a user would make for them one by one."""
    name, own, common = CASES[case]
    whole = invsolve.operator(name, **own, **common)
    single = [invsolve.operator(name, **{k: v[i] for k, v in own.items()}, **common) for i in range(ITEMS)]
    return offered(whole), [offered(one) for one in single]


def images() -> torch.Tensor:
    return torch.randn(ITEMS, 1, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
def test_simulated_items_are_those_of_their_operators(case: str) -> None:
    whole, single = pair(case)
    y = invsolve.simulate(images(), whole, NOISE, seed=4)
    parts = [invsolve.simulate(images()[i : i + 1], single[i], NOISE, seed=4, first=i) for i in range(ITEMS)]
    assert torch.equal(y, torch.cat(parts))


@pytest.mark.parametrize(
    ("case", "strategy"),
    [
        (case, s)
        for case in CASES
        for s in STRATEGIES
        if case == "mask" or s in ("ddrm", "red-diff") or (case, s) == ("coils", "moment")
    ],
)
@pytest.mark.filterwarnings("ignore::invsolve.api.discrepancy.DiscrepancyWarning")
def test_a_run_is_the_runs_of_its_items(case: str, strategy: str) -> None:
    whole, single = pair(case)
    y = invsolve.simulate(images(), whole, NOISE, seed=4)
    method = invsolve.strategy(strategy, **STRATEGIES[strategy])
    options: dict[str, Any] = {"noise": NOISE, "strategy": method, "samples": 2, "seed": 5, "dtype": "float64"}
    one_batch = invsolve.reconstruct(y, whole, prior(), **options)
    small = invsolve.reconstruct(y, whole, prior(), batch_size=1, **options)
    for i in (0, 2):
        # Draws are keyed by the number of the item, so the item is given it.
        again = invsolve.reconstruct(y[[i] * (i + 1)], single[i], prior(), **options)
        for name in ("samples", "mean"):
            wanted = getattr(again, name)[i]
            scale = float(wanted.abs().max())
            assert float((getattr(one_batch, name)[i] - wanted).abs().max()) <= 1e-4 * scale
            assert float((getattr(small, name)[i] - wanted).abs().max()) <= 1e-4 * scale
        ratio = again.diagnostics["discrepancy"][i]
        torch.testing.assert_close(one_batch.diagnostics["discrepancy"][i], ratio, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_all_items_at_once_are_a_block_matrix(case: str) -> None:
    whole, single = pair(case)
    whole, single = whole.to(torch.float64), [one.to(torch.float64) for one in single]
    shape = (1, *SIZE)
    x = torch.randn(ITEMS, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = x.to(torch.complex128) if whole.complex_image else x
    matrices = [dense(one.to(torch.float64), shape)[0] for one in single]
    y = torch.stack([matrix @ row.flatten() for matrix, row in zip(matrices, x, strict=True)])
    torch.testing.assert_close(whole(x).flatten(1), y, rtol=1e-6, atol=1e-6)
    back = torch.stack([matrix.mH @ row for matrix, row in zip(matrices, y, strict=True)])
    torch.testing.assert_close(whole.adjoint(whole(x)).flatten(1), back, rtol=1e-6, atol=1e-6)
    largest = max(float(torch.linalg.matrix_norm(matrix, 2)) for matrix in matrices)
    assert whole.norm(whole(x)) == pytest.approx(largest, rel=2e-2)
    solution = whole.prox(torch.zeros_like(x), whole(x), 0.3)
    for matrix, row, datum in zip(matrices, solution, y, strict=True):
        exact = torch.linalg.solve(matrix.mH @ matrix + 0.3 * torch.eye(80, dtype=matrix.dtype), matrix.mH @ datum)
        torch.testing.assert_close(row.flatten(), exact, rtol=0, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("case", ["mask", "coils", "kernel"])
def test_a_scan_file_keeps_the_parameters_of_each_item(case: str, tmp_path: Path) -> None:
    whole, single = pair(case)
    y = invsolve.simulate(images(), whole, NOISE)
    hdf5.write_scan(tmp_path / "scan.h5", y.numpy(), whole, NOISE)
    read = open_measurement(tmp_path / "scan.h5")
    assert read.operator.items == ITEMS
    x = images().to(torch.complex64) if whole.complex_image else images()
    for i in range(ITEMS):
        assert torch.equal(read.operator_for(i)(x[:1]), single[i](x[:1]))


def test_parts_of_a_scan_take_the_masks_of_their_items(tmp_path: Path) -> None:
    """As `--slices` and workers cut it: item 1 of a part is not item 1 of the scan."""
    hdf5.write_images(tmp_path / "x.h5", images())
    np.save(tmp_path / "mask.npy", CASES["mask"][1]["mask"].numpy())
    set_ = {"mask": str(tmp_path / "mask.npy")}
    jobs.simulate_file(tmp_path / "x.h5", tmp_path / "scan.h5", "inpainting", set_, "gaussian:0.05", 0, False)

    def samples_of(name: str, slices: str | None = None) -> Path:
        out = tmp_path / name
        options = Options(samples=2, scale=(-1, 1))
        jobs.reconstruct_file(
            jobs.Request(tmp_path / "scan.h5", out, None, "tv", {"steps": 30}, options, slices=slices)
        )
        return out

    whole = hdf5.read_result(samples_of("whole.h5"))
    hdf5.join_results(tmp_path / "joined.h5", [samples_of("b.h5", "1:3"), samples_of("a.h5", ":1")])
    joined = hdf5.read_result(tmp_path / "joined.h5")
    for name in ("samples", "linear"):
        assert torch.equal(getattr(joined, name)[0:ITEMS], getattr(whole, name)[0:ITEMS])
    # What the records of the run say of the operator changes with the mask of any item, so that no other is gone on with.
    mask = np.load(tmp_path / "mask.npy")
    mask[2, 0, 0, 0] ^= True
    np.save(tmp_path / "mask.npy", mask)
    jobs.simulate_file(tmp_path / "x.h5", tmp_path / "other.h5", "inpainting", set_, "gaussian:0.05", 0, False)
    from invsolve.api.provenance import operator_record

    records = [operator_record(open_measurement(tmp_path / f"{name}.h5").operator) for name in ("scan", "other")]
    assert records[0] != records[1]


@pytest.mark.discrepant
def test_particles_of_items_with_unequal_masks_are_kept_in_one_file(tmp_path: Path) -> None:
    whole, single = pair("mask")
    y = invsolve.simulate(images(), whole, NOISE)
    options: dict[str, Any] = {"noise": NOISE, "strategy": invsolve.strategy("ads", steps=4, budget=4), "samples": 2}
    got = invsolve.reconstruct(y, whole, prior(), **options)
    acquired = got.diagnostics["acquired_at"] >= 0
    assert acquired.sum(-1).tolist() == [[4, 4]] * ITEMS
    for i, one in enumerate(single):
        mask = offered(one.group_mask(acquired[i]))
        assert not bool((mask & ~offered(one.measured())).any())


def test_operators_of_ones_own_for_each_item() -> None:
    class Gain(invsolve.LinearOperator):
        def __init__(self, gain: float) -> None:
            self.gain = torch.tensor(gain)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gain * x

    whole = invsolve.per_item([Gain(1.0), Gain(2.0), Gain(4.0)])
    x = images()
    y = invsolve.simulate(x, whole, invsolve.Gaussian(0.0))
    assert torch.equal(y, torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1) * x)
    doubled = invsolve.simulate(x, 2.0 * offered(whole) + offered(whole), invsolve.Gaussian(0.0))
    assert torch.allclose(doubled, 3 * y)
    result = invsolve.reconstruct(y, whole, noise=invsolve.Gaussian(1e-3), strategy=invsolve.strategy("linear"))
    assert torch.allclose(result.mean, x, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: invsolve.operator("mri", mask=torch.ones(3, 8, 10), coil_maps=torch.ones(2, 2, 8, 10) + 0j),
            "numbers",
        ),
        (lambda: invsolve.operator("inpainting", mask=torch.tensor([1.0, torch.nan]).view(2, 1, 1, 1)), r"item 1 of 2"),
        (lambda: invsolve.per_item([]), "got none"),
        (lambda: invsolve.operator("inpainting", mask=_mask(3, 1, 8, 10))(torch.ones(2, 1, 8, 10)), "got 2 rows"),
        (
            lambda: invsolve.per_item([invsolve.operator("ct", image_size=s, angles=2) for s in (4, 5)]),
            "of one kind and size",
        ),
        (
            lambda: invsolve.simulate(
                torch.ones(4, 1, 8, 10), invsolve.operator("blur", kernel=torch.ones(3, 2, 2)), NOISE
            ),
            "has 4 items, but operator 'blur' has parameters for 3",
        ),
        (
            lambda: invsolve.reconstruct(
                torch.ones(4, 1, 8, 10),
                invsolve.operator("blur", kernel=torch.ones(3, 2, 2)),
                noise=NOISE,
                strategy="linear",
            ),
            "has 4 items, but operator 'blur' has parameters for 3",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(make: Any, says: str) -> None:
    with pytest.raises(invsolve.UserError, match=says):
        make()
