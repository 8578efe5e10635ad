"""Non-Cartesian MRI against direct sums and mri-nufft; field maps, frames, groups, a real brain, bad input."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import invsolve
from invsolve.numerics.krylov import CG
from invsolve.operators.mri.noncartesian import trajectories
from invsolve.operators.mri.noncartesian.off_resonance import error_bound, segmented, segments_for
from tests.support.types import Cli, linear_operator, offered

SIZE = (20, 26)
VOLUME = (6, 9, 8)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def field(*size: int) -> torch.Tensor:
    """Hz, smooth, from about -60 to 100."""
    axes = [torch.linspace(-1, 1, n) for n in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return 20 + 80 * torch.sin(2 * grid.sum(0))


def direct_sum(operator: Any, x: torch.Tensor) -> torch.Tensor:
    """What the docstring says y is, term by term, in double precision; (B, coils, *samples)."""
    size = operator.size
    k = operator.trajectory.flatten(0, -2) / torch.tensor(size, dtype=torch.float64)
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 for n in size]
    n = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, len(size))
    turns = k @ n.T
    if "b0_map" in operator._buffers:
        turns = turns + operator.times.double().flatten()[:, None] * operator.b0_map.double().flatten()
    images = x.to(torch.complex128)
    if "coil_maps" in operator._buffers:
        images = images * operator.coil_maps.to(torch.complex128)
    y = images.flatten(2) @ torch.exp(-2j * math.pi * turns).T / math.sqrt(len(n))
    return y.view(*y.shape[:2], *operator.trajectory.shape[:-1])


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


SETTINGS: dict[str, dict[str, Any]] = {
    "radial": {"image_size": SIZE, "spokes": 31},
    "golden, coils": {"coil_maps": drawn(3, *SIZE, seed=1), "trajectory": "golden", "spokes": 13},
    "spiral": {"image_size": SIZE, "trajectory": "spiral"},
    "points": {"image_size": SIZE, "trajectory": (torch.rand(300, 2) - 0.5), "unit": "cycles/pixel"},
    "radial, field map, coils": {
        "coil_maps": drawn(2, *SIZE, seed=1),
        "spokes": 15,
        "b0_map": field(*SIZE),
        "readout_time": 0.02,
    },
    "spiral, times of samples": {
        "image_size": SIZE,
        "trajectory": "spiral",
        "spokes": 2,
        "samples": 150,
        "b0_map": field(*SIZE),
        "readout_time": torch.linspace(0.003, 0.03, 150),
    },
}
VOLUMES: dict[str, dict[str, Any]] = {
    "radial": {"volume_size": VOLUME, "spokes": 40},
    "golden, coils, field map": {
        "coil_maps": drawn(2, *VOLUME, seed=1),
        "trajectory": "golden",
        "spokes": 25,
        "b0_map": field(*VOLUME),
        "readout_time": 0.01,
    },
    "points": {"volume_size": VOLUME, "trajectory": math.pi * (2 * torch.rand(200, 3) - 1), "unit": "rad/pixel"},
}
ALL = [("mri-noncartesian", key, given) for key, given in SETTINGS.items()]
ALL += [("mri-noncartesian-3d", key, given) for key, given in VOLUMES.items()]


@pytest.mark.parametrize(("name", "key", "given"), ALL)
def test_it_is_the_sum_that_it_says_it_is(name: str, key: str, given: dict[str, Any]) -> None:
    operator = linear_operator(name, **given)
    x = drawn(2, *operator.blank().shape[1:])
    y = operator(x)
    wanted = direct_sum(operator, x)
    assert y.shape == wanted.shape
    assert relative(y, wanted) < 1e-5
    fine: Any = linear_operator(name, **given, tolerance=1e-10).double()
    assert relative(fine(x.to(torch.complex128)), direct_sum(fine, x)) < 1e-9


@pytest.mark.parametrize(("name", "key", "given"), ALL)
def test_convolution_is_adjoint_after_forward(name: str, key: str, given: dict[str, Any]) -> None:
    operator = linear_operator(name, **given)
    x = drawn(2, *operator.blank().shape[1:])
    assert relative(operator.normal(x), operator.adjoint(operator(x))) < 1e-5
    fine, x = linear_operator(name, **given, tolerance=1e-10).double(), x.to(torch.complex128)
    assert relative(fine.normal(x), fine.adjoint(fine(x))) < 2e-9


def test_spectra_too_large_to_be_kept_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    base = importlib.import_module("invsolve.operators.mri.noncartesian.base")
    operator = linear_operator("mri-noncartesian", **SETTINGS["radial, field map, coils"])
    x = drawn(2, 1, *SIZE)
    kept = operator.normal(x)
    monkeypatch.setattr(base, "_SPECTRA_BYTES", 0)
    assert torch.equal(operator.normal(x), operator.adjoint(operator(x)))
    assert relative(operator.normal(x), kept) < 1e-5


def test_on_the_grid_it_is_the_cartesian_operator() -> None:
    maps = drawn(2, *SIZE, seed=1)
    k = torch.cartesian_prod(*(torch.arange(n) - n // 2 for n in SIZE)).view(*SIZE, 2)
    x = drawn(3, 1, *SIZE)
    y = invsolve.operator("mri-noncartesian", coil_maps=maps, trajectory=k)(x)
    assert relative(y, invsolve.operator("mri", coil_maps=maps)(x)) < 1e-5


def test_units_of_a_trajectory_are_one_another() -> None:
    k = torch.rand(40, 2, dtype=torch.float64) - 0.5
    x = drawn(1, 1, *SIZE)
    per_fov, per_pixel, radians = (
        invsolve.operator("mri-noncartesian", image_size=SIZE, trajectory=given, unit=unit)(x)
        for given, unit in (
            (k * torch.tensor(SIZE), "cycles/fov"),
            (k, "cycles/pixel"),
            (2 * math.pi * k, "rad/pixel"),
        )
    )
    torch.testing.assert_close(per_pixel, per_fov)
    torch.testing.assert_close(radians, per_fov)


def test_single_precision_does_not_move_the_samples() -> None:
    operator = linear_operator("mri-noncartesian", image_size=SIZE, trajectory="golden", spokes=9)
    before = offered(operator).trajectory.clone()
    assert torch.equal(offered(operator.float().double()).trajectory, before)
    assert before.dtype == torch.float64


@pytest.mark.parametrize(("phase", "tolerance"), [(0.0, 1e-6), (1.0, 1e-3), (6.0, 1e-6), (30.0, 1e-2), (30.0, 1e-10)])
def test_field_map_segments_keep_their_bound(phase: float, tolerance: float) -> None:
    count = segments_for(phase, tolerance)
    assert error_bound(phase, count) <= tolerance
    assert count == 1 or error_bound(phase, count - 1) > tolerance
    # Half of the range in Hz times half of the readout in s, times 2 pi, is the phase.
    f = torch.linspace(-40, 60, 301, dtype=torch.float64) * phase / (2 * math.pi)
    t = torch.linspace(0.5, 0.54, 101, dtype=torch.float64)
    parts = segmented(f, t, tolerance)
    assert len(parts.times) == count
    got = parts.weights.T @ parts.phases(f)
    error = float((got - torch.exp(-2j * math.pi * t[:, None] * f)).abs().max())
    assert error < tolerance + 1e-12
    # Not a bound of everything: with half as many segments, it would be broken.
    assert count < 4 or error_bound(phase, count // 2) > tolerance


def test_one_frequency_everywhere_needs_one_segment() -> None:
    given = {"image_size": SIZE, "spokes": 5, "b0_map": torch.full(SIZE, 50.0), "readout_time": 0.02}
    operator: Any = invsolve.operator("mri-noncartesian", **given)
    plain = invsolve.operator("mri-noncartesian", image_size=SIZE, spokes=5)
    x = drawn(1, 1, *SIZE)
    assert len(operator._segments(x)[0]) == 1
    turned = plain(x) * torch.exp(-2j * math.pi * 50 * 0.02 * torch.arange(52) / 52).to(torch.complex64)
    assert relative(operator(x), turned) < 1e-5


def test_sense_recovers_the_image_from_few_spokes() -> None:
    maps = drawn(6, 24, 20, seed=3)
    operator = linear_operator("mri-noncartesian", coil_maps=maps, trajectory="golden", spokes=13)
    x = drawn(2, 1, 24, 20)
    # Beyond the disc of radius 1/2 cycle per pixel nothing is measured but what maps fold in.
    assert relative(operator.pinv(operator(x), CG(1e-6, 400)), x) < 1e-3
    assert relative(operator.baseline(operator(x)), x) < 0.2


def test_a_trajectory_for_each_frame() -> None:
    angles = trajectories.golden_angles(12).view(3, 4)
    k = torch.stack([trajectories.spokes_along(trajectories.directions(a), 30) for a in angles])
    frames = invsolve.operator("mri-noncartesian", image_size=SIZE, trajectory=k, unit="cycles/pixel")
    assert frames.items == 3
    x = drawn(3, 1, *SIZE)
    y = frames(x)
    for item in range(3):
        one = invsolve.operator("mri-noncartesian", image_size=SIZE, trajectory=k[item], unit="cycles/pixel")
        assert torch.equal(y[item : item + 1], one(x[item : item + 1]))


def test_groups_are_spokes() -> None:
    operator: Any = invsolve.operator("mri-noncartesian", coil_maps=drawn(2, *SIZE), spokes=7, samples=30)
    assert operator.groups == 7
    chosen = torch.zeros(1, 7, dtype=torch.bool)
    chosen[0, [2, 5]] = True
    y = operator(drawn(1, 1, *SIZE)) * operator.group_mask(chosen)
    assert y.shape == (1, 2, 7, 30)
    assert (y.abs().sum((0, 1, 3)) > 0).tolist() == [False, False, True, False, False, True, False]
    points: Any = invsolve.operator("mri-noncartesian", image_size=SIZE, trajectory=operator.trajectory[0])
    assert points.groups == 30


@pytest.mark.discrepant
def test_active_acquisition_chooses_spokes() -> None:
    prior = invsolve.load_prior("gaussian-field", size=12)
    operator = invsolve.operator("mri-noncartesian", image_size=12, spokes=8, samples=24)
    y = invsolve.simulate(invsolve.sample(prior, 1, seed=0), operator, invsolve.Gaussian(0.02), seed=0)
    strategy = invsolve.strategy("ads", steps=20, budget=4)
    result = invsolve.reconstruct(y, operator, prior, noise=invsolve.Gaussian(0.02), strategy=strategy, samples=4)
    acquired = result.diagnostics["acquired_at"][0]
    assert acquired.shape == (4, 8)
    assert (acquired >= 0).sum(1).tolist() == [4] * 4


def test_it_is_mri_nufft() -> None:
    try:
        mrinufft: Any = importlib.import_module("mrinufft")
        importlib.import_module("finufft")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no mri-nufft with finufft: {error}")
    ours: Any = invsolve.operator("mri-noncartesian", coil_maps=drawn(3, *SIZE), trajectory="golden", spokes=11)
    k = (ours.trajectory / torch.tensor(SIZE)).view(-1, 2).numpy().astype(np.float32) * 2 * np.pi
    there = mrinufft.get_operator("finufft")(k, shape=SIZE, n_coils=3, smaps=ours.coil_maps.numpy())
    theirs = invsolve.adapt(there)
    x = drawn(2, 1, *SIZE)
    y = theirs(x)
    # It divides by the root of the pixels, and by 2 more; its trajectory is in single precision.
    share = float(there.norm_factor) / math.sqrt(SIZE[0] * SIZE[1])
    assert share == pytest.approx(2)
    assert relative(share * y.view(2, 3, 11, 52), ours(x)) < 2e-5
    assert relative(share**2 * theirs.adjoint(y), ours.adjoint(ours(x))) < 2e-5


@pytest.mark.shared
def test_a_real_brain_from_a_quarter_of_its_spokes(shared: Path) -> None:
    """Coil images of a whole Cartesian scan, sampled along 96 golden-angle spokes, where 361 are at the Nyquist rate."""
    from invsolve.files.opening import open_measurement

    scan = open_measurement(shared / "fixtures" / "fastmri_like_multicoil.h5")
    y, cartesian = scan.y[0:1], offered(scan.operator)
    whole = cartesian.baseline(y)
    coils = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(y, (-2, -1)), norm="ortho"), (-2, -1))[0]
    spokes = {"trajectory": "golden", "spokes": 96}
    data = invsolve.operator(NAME, coil_maps=coils, **spokes)(torch.ones(1, 1, *coils.shape[1:], dtype=torch.complex64))
    operator: Any = invsolve.operator(NAME, coil_maps=cartesian.coil_maps, **spokes)
    image = operator.baseline(data)
    # 0.064 was measured: noise of a quarter of the data, and corners of k-space that spokes do not reach.
    assert relative(image, whole) < 0.08
    assert relative(image.flip(-1), whole) > 0.3
    assert relative(image.roll(1, -1), whole) > 0.15


def test_from_the_command_line_and_a_file(tmp_path: Path, cli: Cli) -> None:
    from invsolve.datasets import hdf5

    np.save(tmp_path / "k.npy", trajectories.spiral(5, 60, 2.0).numpy())
    hdf5.write_images(tmp_path / "x.h5", torch.rand(2, 1, 12, 12))
    for key, settings in {
        "radial": ["--set", "spokes=20"],
        "golden": ["--set", "trajectory=golden", "--set", "spokes=20", "--set", "golden_order=2"],
        "file": ["--set", f"trajectory={tmp_path / 'k.npy'}", "--set", "unit=cycles/pixel"],
    }.items():
        scan, result = str(tmp_path / f"{key}.h5"), str(tmp_path / f"{key}-r.h5")
        words = ["--operator", "mri-noncartesian", *settings, "--noise", "gaussian:0.01"]
        code, _, error = cli("simulate", str(tmp_path / "x.h5"), "-o", scan, *words)
        assert code == 0, error
        code, _, error = cli("reconstruct", scan, "-o", result, "--strategy", "linear", "--scale", "0:1")
        assert code == 0, error
        code, out, error = cli("evaluate", result, "--truth", str(tmp_path / "x.h5"))
        assert code == 0, out + error


K = torch.rand(30, 2) * 4
NAME = "mri-noncartesian"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "needs image_size=, or coil_maps="),
        ({"image_size": [4, 5, 6]}, r"N or \[rows, columns\]"),
        (
            {"image_size": 8, "trajectory": torch.rand(30, 3)},
            r"\(samples, 2\) or \(spokes, samples, 2\), along rows, columns",
        ),
        ({"image_size": 8, "trajectory": torch.rand(30)}, r"\(samples, 2\)"),
        (
            {"image_size": 8, "trajectory": torch.full((4, 2), math.nan)},
            "8 NaN or infinite entries; leave those samples out",
        ),
        ({"image_size": 8, "trajectory": K + 2}, "beyond half a cycle per pixel, 4; give unit='cycles/pixel'"),
        ({"image_size": [8, 20], "trajectory": K + 3}, "along rows, beyond half a cycle per pixel, 4"),
        ({"image_size": 32, "trajectory": K / 8}, "give unit='cycles/pixel'"),
        ({"image_size": 32, "trajectory": K / K.max() * math.pi}, "give unit='rad/pixel'"),
        ({"image_size": 8, "trajectory": "radail"}, "trajectory"),
        ({"image_size": 8, "trajectory": K, "spokes": 3}, "trajectory says it all, so leave out spokes"),
        ({"image_size": 8, "spokes": 0}, "spokes must be above 0, got 0"),
        ({"image_size": 8, "samples": -3}, "samples must be above 0"),
        ({"image_size": 8, "turns": 3.0}, "turns are of trajectory='spiral'"),
        ({"image_size": 8, "golden_order": 2}, "golden_order is 1 or more, of trajectory='golden'"),
        ({"image_size": 8, "coil_maps": torch.rand(3, 8, 8)}, r"must be complex \(coils, rows, columns\)"),
        (
            {"image_size": 9, "coil_maps": drawn(3, 8, 8)},
            r"coil_maps are for images of \[8, 8\], image_size is \[9, 9\]",
        ),
        ({"coil_maps": drawn(3, 8, 8) / 0}, "NaN or infinite entries; set them to 0"),
        ({"image_size": 8, "b0_map": torch.zeros(8, 8)}, "together, or neither"),
        ({"image_size": 8, "readout_time": 0.1}, "together, or neither"),
        ({"image_size": 8, "b0_map": torch.zeros(8, 9), "readout_time": 0.1}, r"real and finite, \(8, 8\), in Hz"),
        ({"image_size": 8, "b0_map": torch.zeros(8, 8), "readout_time": -1.0}, "must be > 0 seconds, got -1"),
        ({"image_size": 8, "b0_map": torch.zeros(8, 8), "readout_time": torch.zeros(3)}, r"\(16,\) or \(13, 16\)"),
        ({"b0_map": field(8, 8), "readout_time": 20.0}, "in Hz and readout_time in seconds"),
        ({"image_size": 8, "tolerance": 0.5}, "tolerance must be from 1e-12 to 0.01, got 0.5"),
    ],
)
def test_bad_input_is_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(invsolve.UserError, match=says) as caught:
        invsolve.operator(NAME, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"volume_size": [4, 5]}, r"volume_size must be N or \[depth, rows, columns\]"),
        ({}, "needs volume_size=, or coil_maps="),
        ({"volume_size": 8, "trajectory": K}, "along depth, rows, columns"),
        ({"volume_size": 8, "spokes": -1}, "spokes must be above 0"),
        ({"volume_size": 8, "trajectory": torch.rand(9, 3), "samples": 4}, "leave out samples"),
    ],
)
def test_bad_input_of_volumes_is_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(invsolve.UserError, match=says) as caught:
        invsolve.operator("mri-noncartesian-3d", **given)
    assert "\n" not in str(caught.value)


def test_real_images_are_refused() -> None:
    operator = linear_operator(NAME, image_size=8)
    for measure in (operator, operator.normal):
        with pytest.raises(invsolve.UserError, match=r"takes complex images \(B, 1, 8, 8\)"):
            measure(torch.zeros(1, 1, 8, 8))
