"""Layout "ismrmrd" beyond Cartesian slices: volumes, and lines with a trajectory, against direct sums; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve import UserError
from invsolve.contracts.operator import Operator
from invsolve.datasets.layouts.ismrmrd import ISMRMRD
from invsolve.files.opening import open_measurement
from tests.support.mri_files import line, write_lines

DEPTH, ROWS, COLUMNS, COILS = 12, 14, 16, 3
XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>63870000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>
<fieldOfView_mm><x>{x}</x><y>{y}</y><z>{z}</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{rx}</x><y>{y}</y><z>{z}</z></matrixSize>
<fieldOfView_mm><x>{rx}</x><y>{y}</y><z>{z}</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{y}</maximum><center>{c1}</center>
</kspace_encoding_step_1><kspace_encoding_step_2><minimum>0</minimum><maximum>{z}</maximum><center>{c2}</center>
</kspace_encoding_step_2></encodingLimits><trajectory>{trajectory}</trajectory></encoding></ismrmrdHeader>"""


def xml(x: int, y: int, z: int, trajectory: str = "cartesian", rx: int | None = None) -> str:
    """A header; isotropic pixels of 1 mm."""
    return XML.format(x=x, y=y, z=z, rx=rx or x, c1=y // 2, c2=z // 2, trajectory=trajectory)


def scene(*size: int) -> tuple[np.ndarray, np.ndarray]:
    """(image, coil maps (COILS, *size)): a ball with a smaller one in it, and a coil on each of three sides."""
    axes = np.meshgrid(*[(np.arange(n) - n // 2) / (n / 2) for n in size], indexing="ij")
    image = 1 / (1 + np.exp(12 * (np.sqrt(sum(a**2 for a in axes)) - 0.65)))
    image = image + 0.5 * np.exp(-sum((a - 0.2) ** 2 for a in axes) / 0.05)
    maps = []
    for c in range(COILS):
        turn = 2 * np.pi * c / COILS
        near = np.exp(-((axes[-2] - np.sin(turn)) ** 2 + (axes[-1] - np.cos(turn)) ** 2) / 2)
        maps.append(near * np.exp(1j * (turn + 0.4 * axes[-1])))
    return image, np.stack(maps)


def sums(images: np.ndarray, k: np.ndarray) -> np.ndarray:
    """y[c, j] = sum over pixels of images[c] exp(-2 pi i k_j . (n - n // 2) / size) / sqrt(pixels); k (points, dimensions)."""
    size = images.shape[1:]
    total = images.astype(np.complex128)
    waves = [np.exp(-2j * np.pi * np.outer(k[:, a], np.arange(n) - n // 2) / n) for a, n in enumerate(size)]
    letters = "xyz"[: len(size)]
    spec = f"c{letters},{','.join('j' + letter for letter in letters)}->cj"
    return np.einsum(spec, total, *waves, optimize=True) / np.sqrt(np.prod(size))


def grid(*size: int) -> np.ndarray:
    """The points of the Cartesian grid, (points, dimensions)."""
    return np.stack(np.meshgrid(*[np.arange(n) - n // 2 for n in size], indexing="ij"), -1).reshape(-1, len(size))


def spoke(samples: np.ndarray, k: np.ndarray, **index: int) -> np.ndarray:
    """A line (coils, count) with its trajectory (count, dimensions)."""
    made = line(samples, centre=samples.shape[1] // 2)
    made["head"]["trajectory_dimensions"] = k.shape[1]
    made["traj"][0] = np.ascontiguousarray(k, np.float32).ravel()
    for name, value in index.items():
        made["head"]["idx"][name] = value
    return made


def directions(spokes: int) -> np.ndarray:
    """(spokes, 2), along rows and columns, by the golden angle."""
    angles = np.arange(spokes) * np.pi * (3 - np.sqrt(5))
    return np.stack([np.sin(angles), np.cos(angles)], -1)


def partitions(kspace: np.ndarray) -> list[np.ndarray]:
    """The lines (along the rows) of k-space (coils, depth, rows, columns)."""
    lines = []
    for z in range(kspace.shape[1]):
        for y in range(kspace.shape[3]):
            made = line(kspace[:, z, :, y], y, centre=kspace.shape[2] // 2)
            made["head"]["idx"]["kspace_encode_step_2"] = z
            lines.append(made)
    return lines


def cartesian(path: Path, rows: int = ROWS, keep: Callable[[int], bool] = lambda k: True, **header: Any) -> Path:
    """A volume on the grid by direct sums, of so many points of readout."""
    image, maps = scene(DEPTH, rows, COLUMNS)
    kspace = sums(maps * image, grid(DEPTH, rows, COLUMNS)).reshape(COILS, DEPTH, rows, COLUMNS)
    rng = np.random.default_rng(1)
    kspace = kspace + 1e-4 * (rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape))
    lines = [one for k, one in enumerate(partitions(kspace)) if keep(k)]
    return write_lines(path, lines, xml(rows, COLUMNS, DEPTH, **header))


def radial(path: Path, spokes: int = 40, images: int = 1, weights: bool = False) -> Path:
    """Golden-angle spokes of a slice by direct sums, each image with the spokes that follow."""
    image, maps = scene(ROWS, COLUMNS)
    radius = (np.arange(2 * COLUMNS) - COLUMNS) / (2 * COLUMNS)
    lines = []
    for number, way in enumerate(directions(images * spokes)):
        k = radius[:, None] * way
        y = sums(maps * image, k * [ROWS, COLUMNS])
        lines.append(spoke(y, np.c_[k, np.abs(radius)] if weights else k, repetition=number // spokes))
    return write_lines(path, lines, xml(ROWS, COLUMNS, 1, "goldenangle"))


def attribute(operator: Operator, name: str) -> torch.Tensor:
    """A tensor that an operator has."""
    value = getattr(operator, name)
    assert isinstance(value, torch.Tensor)
    return value


def error(x: torch.Tensor, truth: np.ndarray) -> float:
    """Relative, of moduli."""
    return float(np.linalg.norm(np.abs(x.squeeze().numpy()) - truth) / np.linalg.norm(truth))


def test_a_volume_is_read_as_mri_3d(tmp_path: Path) -> None:
    image, maps = scene(DEPTH, ROWS, COLUMNS)
    scan = ISMRMRD(coil_maps=torch.from_numpy(maps), real=False).open(cartesian(tmp_path / "raw.h5"), invsolve.make)
    assert scan.operator.name == "mri-3d"
    assert scan.operator.image_shape == (1, DEPTH, ROWS, COLUMNS)
    exact = sums(maps * image, grid(DEPTH, ROWS, COLUMNS)).reshape(1, COILS, DEPTH, ROWS, COLUMNS)
    y = scan.y[0:1]
    assert np.abs(y.numpy() - exact).max() < 1e-3
    x = torch.from_numpy(image).to(torch.complex64)[None, None]
    assert torch.allclose(scan.operator(x), torch.from_numpy(exact).to(torch.complex64), atol=1e-5)
    assert error(scan.operator.baseline(y), image) < 2e-3
    # The noise in the file is 1e-4; the object's corners of k-space are there too.
    assert 0.5e-4 < scan.noise.sigma < 4e-4


def test_coil_maps_of_a_volume_are_calibrated(tmp_path: Path) -> None:
    image, maps = scene(DEPTH, ROWS, COLUMNS)
    scan = ISMRMRD(calibration=10).open(cartesian(tmp_path / "raw.h5"), invsolve.make)
    # The root sum of squares over the coils, with its phase put into the maps.
    truth = image * np.linalg.norm(maps, axis=0)
    x = scan.operator.baseline(scan.y[0:1])
    assert error(x, truth) < 0.03
    assert float(x.imag.norm() / x.real.norm()) < 0.1


def test_a_volume_is_cut_and_thinned(tmp_path: Path) -> None:
    image, maps = scene(DEPTH, 2 * ROWS, COLUMNS)
    path = cartesian(tmp_path / "raw.h5", rows=2 * ROWS, keep=lambda k: k % 7 != 3, rx=ROWS)
    cut = torch.from_numpy(np.ascontiguousarray(maps[:, :, ROWS // 2 : -(ROWS // 2)]))
    scan = ISMRMRD(coil_maps=cut, real=False, whiten=False).open(path, invsolve.make)
    assert scan.operator.image_shape == (1, DEPTH, ROWS, COLUMNS)
    measured = scan.operator.measured()[:, 0]
    assert measured.sum() == sum(k % 7 != 3 for k in range(DEPTH * COLUMNS))
    assert error(scan.operator.pinv(scan.y[0:1]), image[:, ROWS // 2 : -(ROWS // 2)]) < 0.01
    sparse = ISMRMRD(coil_maps=cut, real=False, whiten=False, acceleration=3, mask="poisson-disc").open(
        path, invsolve.make
    )
    kept = sparse.operator.measured()[:, 0]
    assert kept.sum() <= DEPTH * COLUMNS // 3
    assert torch.equal(sparse.y[0:1], scan.y[0:1] * kept[:, None].to(torch.complex64))


def test_spokes_are_read_with_their_trajectory(tmp_path: Path) -> None:
    image, maps = scene(ROWS, COLUMNS)
    path = radial(tmp_path / "raw.h5")
    with h5py.File(path) as file:
        assert ISMRMRD.recognises(file)
    scan = ISMRMRD(coil_maps=torch.from_numpy(maps), real=False).open(path, invsolve.make)
    assert scan.operator.name == "mri-noncartesian"
    y = scan.y[0:1]
    assert y.shape == (1, COILS, 40, 2 * COLUMNS)
    x = torch.from_numpy(image).to(torch.complex64)[None, None]
    assert float((scan.operator(x) - y).norm() / y.norm()) < 1e-5
    # Rings of the width of half a sample: (pi / spokes) radius, in cycles per field of view of pixels that are not square.
    density = scan.operator.density(y)
    radius = np.abs(np.arange(2 * COLUMNS) - COLUMNS) / (2 * COLUMNS)
    rings = np.pi * radius / (2 * COLUMNS) * ROWS * COLUMNS
    assert np.allclose(density.sum(0).numpy()[1:COLUMNS], rings[1:COLUMNS], rtol=1e-3)
    assert error(scan.operator.pinv(y), image) < 0.03


def test_coil_maps_of_spokes_are_calibrated_and_frames_share_them(tmp_path: Path) -> None:
    image, maps = scene(ROWS, COLUMNS)
    truth = image * np.linalg.norm(maps, axis=0)
    path = radial(tmp_path / "raw.h5", spokes=30, images=2)
    scan = ISMRMRD(calibration=12).open(path, invsolve.make)
    assert len(scan.y) == 2
    first, second = (attribute(scan.operator_for(k), "trajectory") for k in range(2))
    assert not torch.equal(first, second)
    for item in range(2):
        assert error(scan.operator_for(item).baseline(scan.y[item : item + 1]), truth) < 0.06
    shared = ISMRMRD(calibration=12, dynamic=True).open(path, invsolve.make)
    assert torch.equal(*(attribute(shared.operator_for(k), "coil_maps") for k in range(2)))
    few = ISMRMRD(calibration=12, spokes=20).open(path, invsolve.make)
    assert few.y[1:2].shape[2] == 20
    assert torch.equal(attribute(few.operator_for(1), "trajectory"), second[:20])


def test_a_stack_of_stars_and_spokes_in_space_are_volumes(tmp_path: Path) -> None:
    depth, image_and_maps = 6, scene(6, 8, 8)
    images = image_and_maps[1] * image_and_maps[0]
    radius = (np.arange(16) - 8) / 16
    stars, balls = [], []
    for number, way in enumerate(directions(18)):
        flat = radius[:, None] * way
        z = number % depth
        k = np.c_[np.full(16, z - depth // 2), flat * 8]
        stars.append(spoke(sums(images, k), flat, kspace_encode_step_2=z))
        space = np.c_[flat, 0.3 * radius]  # x, y, z
        balls.append(spoke(sums(images, space[:, [2, 0, 1]] * [depth, 8, 8]), space))
    given = torch.from_numpy(image_and_maps[1])
    x = torch.from_numpy(image_and_maps[0]).to(torch.complex64)[None, None]
    for name, lines, kind in (("stars.h5", stars, "radial"), ("balls.h5", balls, "other")):
        path = write_lines(tmp_path / name, lines, xml(8, 8, depth, kind))
        scan = ISMRMRD(coil_maps=given, real=False).open(path, invsolve.make)
        assert scan.operator.name == "mri-noncartesian-3d"
        y = scan.y[0:1]
        assert float((scan.operator(x) - y).norm() / y.norm()) < 1e-5


@pytest.mark.discrepant  # maps from few points of spokes
def test_the_command_line_reconstructs_spokes(tmp_path: Path) -> None:
    image, maps = scene(ROWS, COLUMNS)
    scan = open_measurement(radial(tmp_path / "raw.h5", weights=True), None, {"calibration": 12})
    assert any("left out" in note for note in scan.notes)
    result = invsolve.reconstruct(scan, strategy="linear", scale=(0, 1), progress=False)
    assert error(result.mean[0, 0], image * np.linalg.norm(maps, axis=0)) < 0.06


def _spoil(field: str, value: Any) -> Callable[[list[np.ndarray]], None]:
    def harm(lines: list[np.ndarray]) -> None:
        if field == "traj":
            lines[3]["traj"][0] = value(lines[3]["traj"][0])
        else:
            lines[3]["head"][field] = value

    return harm


def _all(field: str, value: int) -> Callable[[list[np.ndarray]], None]:
    def harm(lines: list[np.ndarray]) -> None:
        for one in lines:
            one["head"][field] = value

    return harm


@pytest.mark.parametrize(
    ("harm", "options", "expected"),
    [
        (
            _spoil("traj", lambda k: k[:-1]),
            {},
            "a trajectory of 63 numbers, but its head says a trajectory of 32 samples x 2",
        ),
        (_spoil("traj", lambda k: k * np.nan), {}, "trajectory of image 0 has 64 NaN or infinite entries"),
        (
            _spoil("traj", lambda k: 9 * k),
            {},
            "cycles per pixel, beyond 1/2, if it is in cycles/pixel; say what it is in",
        ),
        (_spoil("trajectory_dimensions", 3), {}, "2 and 3 numbers per sample"),
        (_all("trajectory_dimensions", 0), {}, "says 'radial', but its lines carry no trajectory; write one"),
        (_spoil("discard_pre", 4), {}, "lines have 28 to 32 samples that are not discarded"),
        (None, {"spokes": 99}, "spokes=99 must be from 1 to 12"),
        (None, {"acceleration": 2}, "are for Cartesian lines; keep fewer with spokes=N"),
        (None, {"slices": [0, 9]}, "slices=[0, 9] must be [start, stop) within the 1 items"),
        (None, {"coil_maps": torch.ones(2, 4, 4)}, "coil_maps torch.float32 (2, 4, 4): expected complex (3, 14, 16)"),
        (None, {"calibration": 16}, "too little around the centre of k-space is measured"),
    ],
)
def test_what_is_refused_of_trajectories(
    tmp_path: Path, harm: Callable[[list[np.ndarray]], None] | None, options: dict[str, Any], expected: str
) -> None:
    image, maps = scene(ROWS, COLUMNS)
    radius = (np.arange(32) - 16) / 32
    few = directions(12) if "calibration" not in options else directions(3)
    lines = [spoke(sums(maps * image, radius[:, None] * way * [ROWS, COLUMNS]), radius[:, None] * way) for way in few]
    if harm is not None:
        harm(lines)
    path = write_lines(tmp_path / "raw.h5", lines, xml(ROWS, COLUMNS, 1, "radial"))
    options = {"calibration": 8, **options}
    with pytest.raises(UserError) as caught:
        ISMRMRD(**options).open(path, invsolve.make).y[0:1]
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_with_unequal_numbers_of_lines_are_refused(tmp_path: Path) -> None:
    image, maps = scene(ROWS, COLUMNS)
    radius = (np.arange(32) - 16) / 32
    lines = []
    for number, way in enumerate(directions(9)):
        k = radius[:, None] * way
        lines.append(spoke(sums(maps * image, k * [ROWS, COLUMNS]), k, repetition=number // 5))
    path = write_lines(tmp_path / "raw.h5", lines, xml(ROWS, COLUMNS, 1, "radial"))
    with pytest.raises(UserError, match=r"images have 4 to 5 lines; take so many of each, spokes=4"):
        ISMRMRD().open(path, invsolve.make)


def test_a_volume_that_is_not_calibrated_says_so(tmp_path: Path) -> None:
    path = cartesian(tmp_path / "raw.h5", keep=lambda k: k % 2 == 0)
    with pytest.raises(UserError, match="too few to calibrate coil maps; give them"):
        ISMRMRD().open(path, invsolve.make)
