"""Coil maps from the centre of k-space, against coils whose maps are known."""

from pathlib import Path

import h5py
import numpy as np
import pytest

import invsolve
from invsolve.datasets.layouts.fastmri import FastMRI
from invsolve.datasets.mri.coil_maps import absorb_phase, calibration_region, espirit
from invsolve.datasets.phantoms import render, thorax
from invsolve.errors import UserError

ROWS, COLUMNS, COILS = 60, 52, 6
SIGMA = 0.002


def centred_fft(x: np.ndarray) -> np.ndarray:
    """Orthonormal, written as sums, so that no library's shift convention can hide in it."""
    matrices = []
    for n in x.shape[-2:]:
        k = np.arange(n) - n // 2
        matrices.append(np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n))
    return np.einsum("ab,...bc,dc->...ad", matrices[0], x, matrices[1], optimize=True)


def coils() -> np.ndarray:
    """Smooth, complex, far from flat: Gaussian bells around the object with phases that wind."""
    y, x = np.meshgrid(np.linspace(-1, 1, ROWS), np.linspace(-1, 1, COLUMNS), indexing="ij")
    maps = []
    for k in range(COILS):
        angle = 2 * np.pi * k / COILS
        bell = np.exp(-((y - np.sin(angle)) ** 2 + (x - np.cos(angle)) ** 2) / 1.3)
        maps.append(bell * np.exp(1j * (angle * 2 + 1.1 * x * np.cos(angle) - 0.9 * y * np.sin(2 * angle))))
    return np.stack(maps)


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image, maps, noisy k-space); the image has a smooth phase of its own."""
    body = np.pad(render(thorax(), 44).numpy()[0], ((8, 8), (4, 4)))
    y, x = np.meshgrid(np.linspace(-1, 1, ROWS), np.linspace(-1, 1, COLUMNS), indexing="ij")
    image = body * np.exp(1j * (0.6 + 0.8 * y - 0.5 * x))
    kspace = centred_fft(coils() * image)
    rng = np.random.default_rng(1)
    noise = rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape)
    return image, coils(), kspace + SIGMA * noise


def test_known_maps_are_found(scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, truth, kspace = scene
    calibration = espirit(calibration_region(kspace, np.ones((ROWS, COLUMNS), bool), 24, "x"), (ROWS, COLUMNS), SIGMA)
    inside = np.abs(image) > 0.1 * np.abs(image).max()
    unit = truth / np.linalg.norm(truth, axis=0)
    # Maps are known up to one phase a pixel, which is the image's.
    turn = np.exp(1j * np.angle((calibration.maps.conj() * unit).sum(0)))
    error = np.linalg.norm((calibration.maps * turn - unit)[:, inside]) / np.linalg.norm(unit[:, inside])
    assert error < 0.02
    assert np.allclose((np.abs(calibration.maps) ** 2).sum(0)[inside], 1, atol=1e-4)
    assert calibration.eigenvalue[inside].min() > 0.9
    assert calibration.eigenvalue.max() < 1 + 1e-5
    # The phase that is left is smooth: neighbours inside differ by little.
    steps = np.angle(calibration.maps[:, :, 1:] * calibration.maps[:, :, :-1].conj())[:, inside[:, 1:] & inside[:, :-1]]
    assert np.quantile(np.abs(steps), 0.99) < 0.5


def test_the_phase_of_the_image_moves_into_the_maps(scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, truth, kspace = scene
    centre = calibration_region(kspace, np.ones((ROWS, COLUMNS), bool), 24, "x")
    maps = absorb_phase(espirit(centre, (ROWS, COLUMNS), SIGMA).maps, centre)
    combined = (maps.conj() * truth * image).sum(0)
    inside = np.abs(image) > 0.1 * np.abs(image).max()
    assert np.linalg.norm(combined.imag[inside]) < 0.05 * np.linalg.norm(combined[inside])
    assert (combined.real[inside] > 0).mean() > 0.999


def test_the_calibration_region_is_what_is_measured_around_the_centre() -> None:
    kspace = np.arange(2 * 20 * 30).reshape(2, 20, 30).astype(complex)
    columns = np.zeros(30, bool)
    columns[[0, 3, 9]] = True
    columns[11:20] = True
    mask = np.broadcast_to(columns, (20, 30))
    assert np.array_equal(calibration_region(kspace, mask, 24, "x"), kspace[:, 0:20, 11:19])
    assert np.array_equal(calibration_region(kspace, mask, 8, "x"), kspace[:, 6:14, 11:19])
    disc = np.hypot(*np.meshgrid(np.arange(20) - 10, np.arange(30) - 15, indexing="ij")) < 7
    part = calibration_region(kspace, disc, 24, "x")
    assert part.shape[1] >= 8
    columns[14:17] = False
    with pytest.raises(UserError, match=r"scan\.h5: only 0 x 0 points .* coil_maps=MAPS\.npy"):
        calibration_region(kspace, np.broadcast_to(columns, (20, 30)), 24, "scan.h5")


@pytest.mark.parametrize("width", [0.35, 0.45, 0.7, 0.8])
def test_an_object_larger_than_the_field_of_view_needs_two_sets_of_maps(tmp_path: Path, width: float) -> None:
    # Columns of twice the field of view; every second line of k-space folds the outer halves over the middle.
    size, number = 48, 6
    y, x = np.meshgrid((np.arange(size) - size / 2) / size, (np.arange(2 * size) - size) / size, indexing="ij")
    body = ((y / 0.4) ** 2 + (x / width) ** 2 < 1) * 1.0
    angles = 2 * np.pi * np.arange(number)[:, None, None] / number
    bells = np.exp(-((x - 0.7 * np.cos(angles)) ** 2 + (y - 0.7 * np.sin(angles)) ** 2) / 0.5 + 1j * angles)
    kspace = centred_fft(bells * body)[:, :, ::2]
    rng = np.random.default_rng(1)
    kspace = kspace + 1e-3 * (rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace[None].astype(np.complex64)
    told = [
        note for note in FastMRI().open(tmp_path / "scan.h5", invsolve.make).notes if "larger than the field" in note
    ]
    assert bool(told) == (width > 0.5)
