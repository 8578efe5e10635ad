"""Coils compressed to virtual ones: NumPy's singular values, noise that stays white, and the image that is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets.layouts.fastmri import FastMRI
from invsolve.datasets.mri.compression import compressed
from invsolve.datasets.mri.noise import CoilNoise, whitening
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from tests.files.test_coil_noise import bells, complex_normal, transformed
from tests.support.mri_files import COILS, SIGMA, write_fastmri
from tests.support.types import offered

N = 48
RNG = np.random.default_rng(3)


def kspace(coils: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A disc with an insert, the maps, and its k-space without noise."""
    y, x = np.mgrid[:N, :N] - N / 2
    body = (np.hypot(x, y) < 0.35 * N) + 0.5 * (np.hypot(x - 5, y + 4) < 5)
    maps = bells(coils, N)
    return body, maps, transformed(maps * body)


def test_virtual_coils_are_the_principal_components() -> None:
    _, _, clean = kspace()
    made = invsolve.compress_coils(clean.astype(np.complex64), 3)
    left, strength, right = np.linalg.svd(clean.reshape(8, -1), full_matrices=False)
    wanted = strength[:3, None] * right[:3]
    got = made.kspace.numpy().reshape(3, -1)
    # Each component is known but for its phase.
    overlap = np.abs((got * wanted.conj()).sum(1)) / strength[:3] ** 2
    np.testing.assert_allclose(overlap, 1, atol=1e-5)
    assert made.energy == pytest.approx((strength[:3] ** 2).sum() / (strength**2).sum(), rel=1e-6)
    np.testing.assert_allclose(made.matrix @ made.matrix.conj().T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(np.abs(made.matrix.numpy() @ left[:, :3]), np.eye(3), atol=1e-4)
    both = invsolve.compress_coils(torch.from_numpy(np.stack([clean, 2j * clean])), 3)
    assert both.kspace.shape == (2, 3, N, N)
    torch.testing.assert_close(both.kspace[1], 2j * both.kspace[0], rtol=0, atol=1e-5 * float(both.kspace.abs().max()))


@pytest.mark.parametrize("coils", [1, 3, 6])
def test_noise_stays_white(coils: int) -> None:
    factor = complex_normal(RNG, 6, 6)
    covariance = factor @ factor.conj().T
    _, _, clean = kspace(6)
    made = invsolve.compress_coils(clean.astype(np.complex64), coils, covariance)
    exact = made.matrix.numpy().astype(complex) @ covariance @ made.matrix.numpy().conj().T
    np.testing.assert_allclose(exact / made.sigma**2, np.eye(coils), atol=1e-5)
    # And noise itself, of parts of that covariance each: of n complex numbers it scatters by 1 / sqrt(n).
    count = 20000
    noise = factor @ complex_normal(RNG, 6, count)
    virtual = made.matrix.numpy() @ noise
    sample = virtual @ virtual.conj().T / (2 * count) / made.sigma**2
    np.testing.assert_allclose(sample, np.eye(coils), atol=5 / np.sqrt(count))


def test_coils_made_white_and_then_compressed_are_one_matrix() -> None:
    factor = complex_normal(RNG, 5, 5)
    white = whitening(CoilNoise(factor @ factor.conj().T, 10**6))
    data = complex_normal(RNG, 5, 30, 4)
    small = compressed(white, [white(data)], 5)
    assert small.matrix is not None
    assert small.back is not None
    np.testing.assert_allclose(small.back @ small.matrix, np.eye(5), atol=1e-9)
    # All of them are the same coils, turned.
    np.testing.assert_allclose(np.linalg.norm(small(data), axis=0), np.linalg.norm(white(data), axis=0), rtol=1e-9)
    assert "5 coils compressed to 5 virtual ones, which keep 100.00% of the energy" in small.notes[-1]


@pytest.mark.parametrize("given", [False, True])
def test_a_scan_of_few_virtual_coils_gives_nearly_the_image_of_all(tmp_path: Path, given: bool) -> None:
    body, maps, clean = kspace()
    noisy = clean + 0.01 * complex_normal(RNG, *clean.shape)
    columns = (np.arange(N) % 2 == 0) | (np.abs(np.arange(N) - N // 2) < 8)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = (noisy * columns)[None].astype("c8")
    options: dict[str, Any] = {"real": False}
    if given:
        options["coil_maps"] = torch.from_numpy(maps.astype(np.complex64))
    images = {}
    for coils in (None, 8, 5, 4):
        scan = FastMRI(**options, coils=coils).open(tmp_path / "scan.h5", invsolve.make)
        y = scan.y[0:1]
        assert y.shape == (1, coils or 8, N, N)
        # What is not the object's is as much noise as it was: of n points the level is known to 1 / sqrt(4 n).
        rest = y[0].numpy()[..., columns] - offered(scan.y).white(clean.astype(np.complex64))[..., columns]
        assert np.sqrt((np.abs(rest) ** 2).mean() / 2) == pytest.approx(0.01, rel=5 / np.sqrt(4 * rest.size))
        assert float(np.asarray(scan.noise.sigma)) == pytest.approx(0.01, rel=0.1)
        told = [note for note in scan.notes if "virtual" in note]
        assert len(told) == (coils is not None)
        # One ridge for all: `linear` estimates it from each scan's noise by random probes, which differ by percents.
        operator = scan.operator_for(0)
        image = operator.prox(torch.zeros_like(operator.adjoint(y)), y, 1e-3, CG(1e-6, 200))
        images[coils] = image.abs().squeeze().numpy()
    inside = body > 0
    full = np.linalg.norm(images[None][inside] - body[inside]) / np.linalg.norm(body[inside])
    for coils, share in ((8, 1e-3), (5, 0.02), (4, 0.05)):
        assert np.linalg.norm((images[coils] - images[None])[inside]) < share * np.linalg.norm(body[inside])
        error = np.linalg.norm(images[coils][inside] - body[inside]) / np.linalg.norm(body[inside])
        assert error < full + share


def test_the_layouts_of_many_coils_take_the_option(tmp_path: Path) -> None:
    path = write_fastmri(tmp_path / "scan.h5")
    scan = FastMRI(coils=2).open(path, invsolve.make)
    assert scan.y[0:1].shape[1] == 2
    assert scan.operator.coils == 2
    assert scan.noise.sigma == pytest.approx(SIGMA, rel=0.1)
    assert scan.fingerprint != FastMRI(coils=3).open(path, invsolve.make).fingerprint
    line = next(note for note in scan.notes if "virtual" in note)
    assert line.startswith(f"{COILS} coils compressed to 2 virtual ones, which keep 9")
    for coils in (0, 5):
        with pytest.raises(UserError, match=rf"scan\.h5: coils must be 1 to 4, as many as there are, got {coils}"):
            FastMRI(coils=coils).open(path, invsolve.make)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((np.ones((3, 4, 4)), 2), "takes complex k-space"),
        ((np.ones((3, 4)) + 0j, 2), "takes complex k-space"),
        ((np.ones((3, 4, 4)) + 0j, 4), "coils must be 1 to 3"),
        ((np.ones((3, 4, 4)) + 0j, 2, np.eye(4)), r"covariance \(4, 4\) does not fit 3 coils"),
        ((np.ones((3, 4, 4)) + 0j, 2, np.zeros((3, 3))), "no coil has noise"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        invsolve.compress_coils(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.shared
def test_half_of_the_coils_of_a_brain_keep_its_image(shared: Path) -> None:
    path = shared / "fixtures" / "fastmri_like_multicoil.h5"
    images = {}
    strength = np.linalg.svd(FastMRI().open(path, invsolve.make).y[0:1][0].flatten(1).numpy(), compute_uv=False)
    kept = (strength[:4] ** 2).sum() / (strength**2).sum()
    for coils in (None, 4):
        scan = FastMRI(coils=coils).open(path, invsolve.make)
        images[coils] = invsolve.reconstruct(scan, strategy="linear").mean[0].norm(dim=0)
        told = [note for note in scan.notes if "virtual" in note]
    assert told == [f"8 coils compressed to 4 virtual ones, which keep {kept:.2%} of the energy of k-space"]
    assert kept == pytest.approx(0.97, abs=0.005)
    head = images[None] > 0.1 * images[None].max()
    error = float((images[4] - images[None])[head].norm() / images[None][head].norm())
    assert error < 0.025
