"""Operators "mri" and "mri-3d" against direct sums: the centre, whatever axes a mask leaves whole, what is solved directly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import jobs
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.datasets import hdf5
from invsolve.engine import Options
from invsolve.files.opening import open_measurement
from invsolve.numerics.krylov import CG
from tests.support.types import linear_operator, offered


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def direct(x: np.ndarray, axes: int) -> np.ndarray:
    """The centred orthonormal transform over the last axes, written as sums."""
    for axis in range(-axes, 0):
        n = x.shape[axis]
        k = np.arange(n) - n // 2
        matrix = np.exp(-2j * np.pi * np.outer(k, k) / n) / math.sqrt(n)
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def named(size: tuple[int, ...]) -> str:
    return "mri" if len(size) == 2 else "mri-3d"


SIZES = [(1, 1), (1, 6), (2, 3), (4, 6), (5, 7), (8, 9), (10, 14), (2, 3, 4), (3, 5, 1), (6, 4, 10), (5, 7, 9)]


@pytest.mark.parametrize("size", SIZES)
def test_forward_and_adjoint_are_the_centred_sums(size: tuple[int, ...]) -> None:
    maps = torch.randn(3, *size, 2, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(size, generator=torch.Generator().manual_seed(2)) < 0.6
    operator = linear_operator(named(size), coil_maps=maps, mask=mask).double()
    x, y = draw(2, 1, *size), draw(2, 3, *size, seed=3)
    weights = torch.view_as_complex(maps).numpy().astype(complex)
    np.testing.assert_allclose(operator(x), direct(weights * x.numpy(), len(size)) * mask.numpy(), atol=1e-12)
    back = direct((y * mask).numpy().conj(), len(size)).conj()
    np.testing.assert_allclose(operator.adjoint(y), (weights.conj() * back).sum(1, keepdims=True), atol=1e-12)
    one = linear_operator(named(size), mask=mask, image_size=list(size)).double()
    np.testing.assert_allclose(one(x), direct(x.numpy(), len(size)) * mask.numpy(), atol=1e-12)
    # In single precision as near to shifting as that is to the sums.
    axes = tuple(range(-len(size), 0))
    single = (x * torch.view_as_complex(maps)).to(torch.complex64)
    shifted = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(single, axes), dim=axes, norm="ortho"), axes)
    made = operator.float()(x.to(torch.complex64))
    assert float((made - shifted * mask).abs().max()) <= 8 * 1.2e-7 * float(shifted.abs().max())


#: Masks of (6, 8) images, by what they leave whole.
MASKS: dict[str, Any] = {
    "columns": [1, 0, 1, 1, 1, 0, 1, 0],
    "columns of one row": [[1, 0, 1, 1, 1, 0, 1, 0]],
    "rows": [[1], [0], [1], [1], [1], [0]],
    "points": (torch.rand(6, 8, generator=torch.Generator().manual_seed(5)) < 0.5).tolist(),
    "columns, said as points": [[1, 0, 1, 1, 1, 0, 1, 0]] * 6,
    "everything": None,
    "nothing": [0] * 8,
}


@pytest.mark.parametrize("coils", [0, 3])
@pytest.mark.parametrize("kind", MASKS)
def test_the_normal_map_leaves_transforms_out_that_cancel(
    kind: str, coils: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = draw(coils, 6, 8).to(torch.complex64) if coils else None
    operator = linear_operator("mri", mask=MASKS[kind], coil_maps=maps, image_size=[6, 8]).double()
    x = draw(2, 1, 6, 8)
    torch.testing.assert_close(operator.normal(x), operator.adjoint(operator(x)), rtol=0, atol=1e-12)
    axes: list[Any] = []
    plain = torch.fft.fftn

    def seen(*args: Any, **options: Any) -> Tensor:
        axes.append(options["dim"])
        return plain(*args, **options)

    monkeypatch.setattr(torch.fft, "fftn", seen)
    operator.normal(x)
    whole = {"points": (-2, -1), "rows": (-2,), "everything": None, "nothing": None}.get(kind, (-1,))
    assert set(axes) == ({whole} if whole else set())


@pytest.mark.parametrize("coils", [0, 2])
def test_nothing_is_shifted_once_the_factors_are_known(coils: int, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = draw(coils, 7, 8).to(torch.complex64) if coils else None
    operator = linear_operator("mri", mask=MASKS["columns"], coil_maps=maps, image_size=[7, 8])
    x = draw(1, 1, 7, 8).to(torch.complex64)

    def work() -> None:
        operator.prox(operator.normal(x), operator(x), 0.3)

    work()

    def refused(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("shifted in memory")

    for name in ("fftshift", "ifftshift"):
        monkeypatch.setattr(torch.fft, name, refused)
    monkeypatch.setattr(torch, "roll", refused)
    work()


PHASE = torch.polar(torch.ones(1, 6, 8), torch.arange(48.0).view(1, 6, 8))
#: What is solved directly.
CLOSED: dict[str, dict[str, Any]] = {
    "one coil": {"mask": MASKS["columns"], "image_size": [6, 8]},
    "one coil, points": {"mask": MASKS["points"]},
    "one coil of modulus 1": {"mask": MASKS["points"], "coil_maps": PHASE},
    "one coil, all measured": {"coil_maps": draw(1, 6, 8).to(torch.complex64)},
    "coils, all measured": {"coil_maps": draw(3, 6, 8).to(torch.complex64)},
}


def matrix(operator: invsolve.LinearOperator) -> Tensor:
    """Its matrix in double precision, column by column."""
    pixels = torch.eye(48, dtype=torch.complex128).view(48, 1, 6, 8)
    return operator(pixels).flatten(1).T


@pytest.mark.parametrize("rho", [1e-3, 0.7, torch.tensor([0.2, 30.0], dtype=torch.float64).view(2, 1, 1, 1)])
@pytest.mark.parametrize("kind", CLOSED)
def test_direct_solves_are_those_of_the_matrix(kind: str, rho: float | Tensor) -> None:
    operator = linear_operator("mri", **CLOSED[kind]).double()
    dense = matrix(operator)
    z, y = draw(2, 1, 6, 8), draw(2, *operator.measurement_shape((1, 6, 8)), seed=4)

    def iterates(_: Any) -> None:
        raise AssertionError("conjugate gradients were called")

    got = operator.prox(z, y, rho, CG(told=iterates))
    short = operator.tikhonov(y, rho)
    assert short is not None
    inverse = operator.pinv(y, CG(told=iterates))
    # The modulus of a map in single precision is 1 to 1e-7.
    tolerance = 1e-6 if kind == "one coil of modulus 1" else 1e-10
    for row in range(2):
        weight = float(rho[row]) if isinstance(rho, Tensor) else rho
        system = dense.mH @ dense + weight * torch.eye(48, dtype=torch.complex128)
        wanted = torch.linalg.solve(system, dense.mH @ y[row].flatten() + weight * z[row].flatten())
        torch.testing.assert_close(got[row].flatten(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))
        wanted = torch.linalg.solve(system, dense.mH @ y[row].flatten())
        torch.testing.assert_close(short[row].flatten(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))
        least = torch.linalg.pinv(dense, rtol=1e-5) @ y[row].flatten()
        torch.testing.assert_close(inverse[row].flatten(), least, rtol=0, atol=tolerance * float(least.abs().max()))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", CLOSED)
def test_the_data_step_of_a_problem_takes_them(kind: str, channels: int) -> None:
    """Against the matrix on real images, of one channel or of real and imaginary part; without one iteration."""
    operator = linear_operator("mri", **CLOSED[kind])
    y = draw(1, *operator.measurement_shape((1, 6, 8)), seed=4).to(torch.complex64)
    problem = make_problem(None, operator, invsolve.Gaussian(0.5), y, (channels, 6, 8), Scale())
    z = torch.randn(1, channels, 6, 8, generator=torch.Generator().manual_seed(8))
    got = problem.prox(z, problem.y, 0.4)
    assert int(problem.unconverged()) == 0
    dense = matrix(operator.double())
    real = torch.cat([dense.real, dense.imag]) if channels == 1 else None
    parts = torch.cat([torch.cat([dense.real, -dense.imag], 1), torch.cat([dense.imag, dense.real], 1)])
    full = parts if real is None else real
    data = torch.cat([y.real.flatten(), y.imag.flatten()]).double()
    wanted = torch.linalg.solve(
        full.T @ full + 0.4 * torch.eye(full.shape[1], dtype=torch.float64), full.T @ data + 0.4 * z.flatten().double()
    )
    torch.testing.assert_close(got.flatten().double(), wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


def test_coils_of_unit_norm_have_no_direct_solve_where_something_is_missing() -> None:
    """A'A is no projection then: coils of which the squares sum to 1 do not make the closed form of one coil exact."""
    maps = draw(3, 6, 8)
    maps = (maps / maps.abs().square().sum(0).sqrt()).to(torch.complex64)
    operator = linear_operator("mri", mask=MASKS["columns"], coil_maps=maps).double()
    x = draw(1, 1, 6, 8)
    once = operator.normal(x)
    assert float((operator.normal(once) - once).norm() / once.norm()) > 0.1
    assert operator.tikhonov(operator(x), 0.1) is None
    assert operator.svd((1, 6, 8), operator(x)) is None
    # Squares that sum to 1 bound the norm by 1, and the largest sum of squares bounds that of any maps.
    assert 0.5 < operator.norm() <= 1 + 1e-6
    loud = linear_operator("mri", mask=MASKS["columns"], coil_maps=3 * maps).double()
    assert loud.norm() == pytest.approx(float(torch.linalg.matrix_norm(matrix(loud), 2)), rel=1e-2)


def test_groups_are_lines_where_the_mask_said_lines() -> None:
    groups = {
        kind: offered(linear_operator("mri", mask=mask, image_size=[6, 8])).groups for kind, mask in MASKS.items()
    }
    assert groups["columns"] == groups["columns of one row"] == 5
    assert groups["rows"] == 4
    assert groups["everything"] == 8
    assert groups["columns, said as points"] == 30
    volume = offered(linear_operator("mri-3d", image_size=[4, 5, 6]))
    assert volume.groups == 24
    assert volume.group_index.shape == (1, 4, 1, 6)


def test_a_mask_tells_the_size_where_it_can() -> None:
    assert linear_operator("mri", mask=torch.ones(6, 8)).image_shape == (1, 6, 8)
    assert linear_operator("mri", mask=torch.ones(6, 1)).image_shape == (1, 6, 6)
    assert linear_operator("mri-3d", mask=torch.ones(2, 3, 4)).image_shape == (1, 2, 3, 4)
    assert linear_operator("mri-3d", mask=torch.ones(3, 1), image_size=[2, 3, 4]).image_shape == (1, 2, 3, 4)


VOLUME = (4, 6, 8)
COIL_MAPS = draw(2, *VOLUME, seed=6).to(torch.complex64)


def test_a_volume_is_its_slices_where_depth_is_measured_whole() -> None:
    volume = linear_operator("mri-3d", mask=MASKS["points"], coil_maps=COIL_MAPS).double()
    x = draw(1, 1, *VOLUME)
    whole = volume(x)
    slices = [linear_operator("mri", mask=MASKS["points"], coil_maps=COIL_MAPS[:, k]).double() for k in range(4)]
    stacked = torch.stack([one(x[:, :, k]) for k, one in enumerate(slices)], 2).numpy()
    depth = np.moveaxis(direct(np.moveaxis(stacked, 2, -1), 1), -1, 2)
    np.testing.assert_allclose(whole, depth, atol=1e-12)
    separate = torch.stack([one.normal(x[:, :, k]) for k, one in enumerate(slices)], 2)
    torch.testing.assert_close(volume.normal(x), separate, rtol=0, atol=1e-12)


@pytest.mark.parametrize("coils", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_volumes_go_all_the_way(coils: bool, tmp_path: Path) -> None:
    """Measured, written with two masks of phase encodings for as many items, read back and reconstructed."""
    truth = torch.rand(2, 1, *VOLUME, generator=torch.Generator().manual_seed(2))
    hdf5.write_images(tmp_path / "x.h5", truth)
    masks = invsolve.kspace_mask("random", VOLUME, 2, frames=2, seed=3)
    assert masks.shape == (2, 4, 1, 8)
    np.save(tmp_path / "mask.npy", masks.numpy())
    set_: dict[str, Any] = {"mask": str(tmp_path / "mask.npy"), "image_size": list(VOLUME)}
    if coils:
        np.save(tmp_path / "maps.npy", COIL_MAPS.numpy())
        set_["coil_maps"] = str(tmp_path / "maps.npy")
    jobs.simulate_file(tmp_path / "x.h5", tmp_path / "y.h5", "mri-3d", set_, "gaussian:0.001", 0, False)
    scan = open_measurement(tmp_path / "y.h5")
    assert scan.operator.items == 2
    for item in range(2):
        one = scan.operator_for(item)
        assert torch.equal(offered(one).mask, masks[item].expand(VOLUME))
        y, clean = scan.y[item : item + 1], one(truth[item : item + 1].to(torch.complex64))
        # Of 96 complex points measured by each coil the noise is 0.001 in each part, give or take 1 / sqrt(2 * 192).
        spread = float((y - clean)[..., offered(one).mask].abs().square().mean().sqrt())
        assert spread == pytest.approx(0.001 * math.sqrt(2), rel=0.3)
    for strategy in ("linear", "tv"):
        out = tmp_path / f"{strategy}.h5"
        jobs.reconstruct_file(jobs.Request(tmp_path / "y.h5", out, None, strategy, {}, Options(scale=(0, 1))))
        mean = hdf5.read_result(out).mean[0:2]
        assert mean.shape == (2, 2, *VOLUME)
        predicted = torch.stack(
            [scan.operator_for(k)(torch.complex(mean[k, :1], mean[k, 1:])[None])[0] for k in (0, 1)]
        )
        # Half of k-space cannot tell the image, but what comes out explains the data.
        assert float((predicted - scan.y[0:2]).norm() / scan.y[0:2].norm()) < (0.02 if strategy == "linear" else 0.1)


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("mri", {"mask": [1, 0, 1], "image_size": [4, 5]}, r"mask \(3,\) does not fit images of 4 x 5"),
        ("mri", {"mask": torch.ones(2, 5), "image_size": [4, 5]}, r"mask \(2, 5\) does not fit images of 4 x 5"),
        ("mri", {}, "needs image_size="),
        ("mri", {"coil_maps": COIL_MAPS[:, 0], "image_size": 6}, "coil_maps of 6 x 8 do not fit images of 6 x 6"),
        ("mri", {"coil_maps": torch.ones(2, 4, 4)}, r"must be complex \(coils, rows, columns\)"),
        ("mri-3d", {"coil_maps": COIL_MAPS[0]}, r"must be complex \(coils, depth, rows, columns\)"),
        ("mri-3d", {"image_size": [4, 4]}, r"N or \[depth, rows, columns\], above 0"),
        ("mri-3d", {"mask": torch.ones(3, 1, 8), "image_size": list(VOLUME)}, r"mask \(3, 1, 8\) does not fit"),
        ("mri", {"mask": "poisson", "acceleration": 2, "image_size": 8}, "mask='poisson' is not .*'poisson-disc'"),
        ("mri", {"mask": "uniform", "image_size": 8}, "needs acceleration="),
        ("mri", {"mask": "uniform", "acceleration": 2}, r"needs image_size= or coil_maps="),
        ("mri", {"mask": [1, 0], "acceleration": 2}, "mask, not both"),
        ("mri", {"frames": 3, "image_size": 8}, "needs the name of a pattern as mask="),
        ("mri", {"acceleration": 0.5, "image_size": 8}, "acceleration must be 1 or more, got 0.5"),
        ("mri", {"acceleration": 8, "centre_fraction": 0.5, "image_size": 8}, "the centre alone has 4; lower"),
        ("mri", {"acceleration": 2, "centre_fraction": 2, "image_size": 8}, "centre_fraction must be from 0 to 1"),
        ("mri", {"acceleration": 2, "phase_axes": 3, "image_size": 8}, "phase_axes must be 1 or 2"),
        ("mri", {"acceleration": 2, "density_power": 3, "image_size": 8}, "has no density_power"),
        ("mri", {"mask": "partial-fourier", "acceleration": 2, "image_size": 8}, "must be below 2"),
        ("mri", {"mask": "uniform", "acceleration": 2.5, "phase_axes": 2, "image_size": 8}, "a whole acceleration"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(invsolve.UserError, match=says) as caught:
        invsolve.operator(name, **parameters)
    assert "\n" not in str(caught.value)
    assert f"operator '{name}'" in str(caught.value)
