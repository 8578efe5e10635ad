"""Noise of receive coils: its level from the data alone, and coils of unequal or correlated noise, against NumPy's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.data import shepp_logan_phantom
from skimage.transform import resize

import invsolve
from invsolve.datasets.layouts.fastmri import FastMRI
from invsolve.datasets.layouts.ismrmrd import ISMRMRD
from invsolve.datasets.mri.noise import CoilNoise, estimate_noise, whitening
from invsolve.errors import UserError
from tests.support.mri_files import LARGEST, READOUT, SIGMA, header, line, scene, write_fastmri, write_lines
from tests.support.types import narrow

N = 64
FAR = np.hypot(*(np.mgrid[:N, :N] - N / 2)) / N


def transformed(x: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes), norm="ortho"), axes)


def complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Both parts of standard deviation 1."""
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def bells(coils: int, size: int) -> np.ndarray:
    """Sensitivities whose squares sum to 1."""
    y, x = (np.mgrid[:size, :size] - size / 2) / size
    angles = 2 * np.pi * np.arange(coils) / coils
    maps = np.stack([np.exp(-((x - 0.4 * np.cos(a)) ** 2 + (y - 0.4 * np.sin(a)) ** 2) / 0.5 + 1j * a) for a in angles])
    return maps / np.linalg.norm(maps, axis=0)


def object_(kind: str, size: int) -> np.ndarray:
    """Of peak 1."""
    if kind == "Shepp-Logan":
        return resize(shepp_logan_phantom(), (size, size), anti_aliasing=True)
    if kind == "disc":
        return (np.hypot(*(np.mgrid[:size, :size] - size / 2)) < 0.35 * size) * 1.0
    # Reaches to the edge on all sides: there is no air.
    field = gaussian_filter(np.random.default_rng(4).normal(size=(size, size)), 3, mode="wrap")
    return field / np.abs(field).max()


@pytest.mark.parametrize("coils", [1, 6])
@pytest.mark.parametrize("kind", ["Shepp-Logan", "disc", "random field"])
@pytest.mark.parametrize("sampling", ["whole", "random", "every third", "partial echo"])
def test_the_level_is_right_to_ten_percent(kind: str, coils: int, sampling: str) -> None:
    size = 96
    rng = np.random.default_rng(coils)
    mask = np.ones((size, size), bool)
    if sampling in ("random", "every third"):
        columns = np.abs(np.arange(size) - size // 2) < 8
        columns[rng.permutation(size)[: size // 5] if sampling == "random" else slice(None, None, 3)] = True
        mask &= columns
    elif sampling == "partial echo":
        mask[: size // 4] = False
    clean = transformed(bells(coils, size) * object_(kind, size))
    for peak in (10, 30, 100, 300):
        kspace = (clean + complex_normal(rng, *clean.shape) / peak) * mask
        noise = estimate_noise(kspace, mask)
        assert whitening(noise).sigma * peak == pytest.approx(1.0, rel=0.1), peak


def test_whitening_makes_the_covariance_a_multiple_of_one() -> None:
    rng = np.random.default_rng(0)
    factor = complex_normal(rng, 5, 5)
    covariance = factor @ factor.conj().T
    white = whitening(CoilNoise(covariance, 10**6))
    assert white.matrix is not None
    assert white.back is not None
    np.testing.assert_allclose(
        white.matrix @ covariance @ white.matrix.conj().T, white.sigma**2 * np.eye(5), atol=1e-9 * white.sigma**2
    )
    np.testing.assert_allclose(white.back @ white.matrix, np.eye(5), atol=1e-9)
    assert white.sigma == pytest.approx(np.median(np.sqrt(covariance.diagonal().real)))


def test_equal_coils_are_left_as_they_are_and_a_copy_counts_once() -> None:
    rng = np.random.default_rng(0)
    values = complex_normal(rng, 4, 600)
    equal = whitening(CoilNoise(values @ values.conj().T / 1200, 600))
    assert equal.matrix is None
    assert equal.sigma == pytest.approx(1.0, rel=0.1)
    twice = np.concatenate([values, 3 * values[:1]])
    white = whitening(CoilNoise(twice @ twice.conj().T / 1200, 600))
    assert white.matrix is not None
    assert white.matrix.shape == (4, 5)
    made = white.matrix @ twice
    np.testing.assert_allclose(made @ made.conj().T / 1200, white.sigma**2 * np.eye(4), atol=1e-9)


def sense(kspace: np.ndarray, maps: np.ndarray, mask: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Weighted least squares, column by column of the mask's aliasing: whole k-space, so pixel by pixel."""
    images = np.conj(transformed(np.conj(kspace)))
    weights = np.linalg.inv(covariance)
    assert mask.all()
    top = np.einsum("cxy,cd,dxy->xy", maps.conj(), weights, images)
    return top / np.einsum("cxy,cd,dxy->xy", maps.conj(), weights, maps).real


CORRELATED = 0.02**2 * (0.2 * np.eye(4) + 0.8)

#: Covariance of the four coils' noise, and the coil that is dead.
COILS: dict[str, tuple[np.ndarray, int | None]] = {
    "equal": (np.diag([0.02**2] * 4), None),
    "one ten times noisier": (np.diag([0.02, 0.02, 0.02, 0.2]) ** 2, None),
    "correlated": (CORRELATED, None),
    "gains from 1 to 1000": (np.diag([0.0002, 0.002, 0.02, 0.2]) ** 2, None),
    "one dead": (np.diag([0.02**2] * 4), 3),
}


@pytest.mark.parametrize(
    ("kind", "calibrated"),
    # Where one coil is all of the root sum of squares, that is as exact as its own map.
    [(kind, calibrated) for kind in COILS for calibrated in (False, True) if not (calibrated and "gains" in kind)],
)
def test_coils_of_any_noise_give_what_weighted_least_squares_gives(tmp_path: Path, kind: str, calibrated: bool) -> None:
    covariance, dead = COILS[kind]
    rng = np.random.default_rng(1)
    body = (FAR < 0.35) + 0.5 * (np.hypot(*(np.mgrid[:N, :N] - [[[N / 2]], [[0.6 * N]]])) < 0.1 * N)
    maps = bells(4, N)
    if "gains" in kind:
        maps = maps * np.array([0.01, 0.1, 1.0, 10.0])[:, None, None]
    noise = np.einsum("cd,dxy->cxy", np.linalg.cholesky(covariance), complex_normal(rng, 4, N, N))
    kspace = transformed(maps * body) + noise
    live = [c for c in range(4) if c != dead]
    kspace[[c for c in range(4) if c == dead]] = 0
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace[None].astype("c8")
    given: dict[str, Any] = {} if calibrated else {"coil_maps": invsolve_maps(maps)}
    scan = FastMRI(real=False, **given).open(tmp_path / "scan.h5", invsolve.make)
    y = scan.y[0:1]
    assert y.shape == (1, len(live), N, N)
    mean = invsolve.reconstruct(scan, strategy="linear").mean[0].numpy()
    modulus = np.hypot(*mean)
    known, seen = maps[live], np.ones((N, N))
    expected = np.abs(sense(kspace[live], known, np.ones((N, N), bool), covariance[np.ix_(live, live)]))
    # Calibrated maps leave the image in the root sum of squares of the coils as they are, and nothing outside the body.
    length = np.linalg.norm(known, axis=0) if calibrated else seen
    inside = FAR < 0.34
    truth = (body * length)[inside]
    error, best = (np.linalg.norm(v[inside] - truth) / np.linalg.norm(truth) for v in (modulus, expected * length))
    assert error < 1.15 * best + (0.03 if calibrated else 0.003)
    text = " | ".join(scan.notes)
    assert ("prewhitened" in text) == (kind not in ("equal", "one dead"))
    assert ("coil 3 of 0 to 3 holds zeros: left out" in text) == (dead is not None)
    # The level is that of the data then: of the points that are noise alone, in all coils.
    corner = y[0].numpy()[:, :6, :6]
    assert np.abs(corner).std() < 3 * float(np.asarray(scan.noise.sigma))


@pytest.mark.parametrize("levels", [[0.02] * 4, [0.02, 0.02, 0.02, 0.2]], ids=["alike", "one ten times noisier"])
def test_a_thinned_scan_is_no_noisier_for_one_bad_coil(tmp_path: Path, levels: list[float]) -> None:
    """Of broad coils and a third of the columns whitened least squares alone has an error of 0.7 and 1.0, by tr (A' A)^-1.

    A ridge of 0.001 leaves 0.31 and 0.30, 12 steps of conjugate gradients 0.30 and 0.17, the best of all ridges 0.10 and 0.11.
    """
    rng = np.random.default_rng(0)
    y, x = (np.mgrid[:N, :N] - N / 2) / N
    body = (FAR < 0.35) + 0.5 * (np.hypot(x - 0.1, y) < 0.1)
    maps = np.stack(
        [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.5) for a, b in ((-0.4, 0), (0.4, 0), (0, -0.4), (0, 0.4))]
    )
    maps = maps / np.linalg.norm(maps, axis=0)
    kept = (np.arange(N) % 3 == 0) | (abs(np.arange(N) - N // 2) < 6)
    kspace = transformed(maps * body) + np.array(levels)[:, None, None] * complex_normal(rng, 4, N, N)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"], file["mask"] = (kspace * kept)[None].astype("c8"), kept
    scan = FastMRI(real=False, coil_maps=invsolve_maps(maps)).open(tmp_path / "scan.h5", invsolve.make)
    modulus = np.hypot(*invsolve.reconstruct(scan, strategy="linear").mean[0].numpy())
    assert np.linalg.norm(modulus - body) < 0.15 * np.linalg.norm(body)


def invsolve_maps(maps: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(maps.astype(np.complex64))


def test_noise_scans_give_the_covariance_in_the_bandwidth_of_the_image(tmp_path: Path) -> None:
    _, kspace = scene()
    rng = np.random.default_rng(2)
    factor = np.linalg.cholesky(CORRELATED)
    scans = line((factor @ complex_normal(rng, 4, 20000)).astype(np.complex64), flags=1 << 18)
    scans["head"]["sample_time_us"] = 0.8 * 5.0
    lines = [scans, *(line(kspace[0][:, :, 2 + s], s) for s in range(LARGEST + 1))]
    system = (
        "<acquisitionSystemInformation><relativeReceiverNoiseBandwidth>0.8</relativeReceiverNoiseBandwidth>"
        "</acquisitionSystemInformation><encoding>"
    )
    xml = header().replace("<encoding>", system)
    scan = ISMRMRD(real=False).open(write_lines(tmp_path / "raw.h5", lines, xml), invsolve.make)
    # Fewer numbers in a second let less noise in, the receiver's ends too: 0.8 / 0.8.
    assert scan.noise.sigma == pytest.approx(0.02, rel=0.02)
    assert "correlated by up to 0.8" in " ".join(scan.notes)
    bad = xml.replace(">0.8<", ">8<")
    with pytest.raises(UserError, match=r"relativeReceiverNoiseBandwidth is 8, expected a number from 0 to 1"):
        ISMRMRD().open(write_lines(tmp_path / "bad.h5", lines, bad), invsolve.make)


@pytest.mark.parametrize("shift", [0, 2, 8])
def test_k_space_beside_its_centre_is_told(tmp_path: Path, shift: int) -> None:
    path = write_fastmri(tmp_path / "scan.h5")
    with h5py.File(path, "a") as file:
        file["kspace"][:] = np.roll(file["kspace"][:], shift, 2)
    told = [note for note in FastMRI().open(path, invsolve.make).notes if "peaks at" in note]
    assert bool(told) == (shift > 2)
    if told:
        assert f"[{READOUT // 2 + shift}, 20], not at its centre [{READOUT // 2}, 20]" in told[0]


@pytest.mark.parametrize("source", ["calibrated", "given", "file"])
def test_what_no_coil_sees_is_not_left_to_the_prior(tmp_path: Path, source: str) -> None:
    """A prior that is sure of 1 everywhere, but unsure by 1: the data, which hold noise in the air, must decide there."""
    rng = np.random.default_rng(1)
    maps, body = bells(4, N), (FAR < 0.3) * 1.0
    kspace = transformed(maps * body) + 0.01 * complex_normal(rng, 4, N, N)
    holes = np.where(FAR < 0.35, maps, 0)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace[None].astype("c8")
        if source == "file":
            file["coil_maps"] = holes[None].astype("c8")
    given: dict[str, Any] = {"coil_maps": invsolve_maps(holes)} if source == "given" else {}
    scan = FastMRI(**given).open(tmp_path / "scan.h5", invsolve.make)
    operator, y = narrow(invsolve.LinearOperator, scan.operator), scan.y[0:1]
    # The posterior mean of prior N(1, 1): the proximal step from 1 with weight sigma^2 / 1.
    mean = operator.prox(operator.adjoint(y) * 0 + 1, y, float(np.asarray(scan.noise.sigma)) ** 2)[0, 0].abs().numpy()
    assert np.quantile(mean[FAR > 0.4], 0.9) < 0.1
    assert np.quantile(mean[FAR < 0.28], 0.1) > 0.9


@pytest.mark.parametrize("scans", [True, False], ids=["noise scans", "by the data"])
def test_channels_with_gains_from_1_to_1000_are_white_to_ten_percent(tmp_path: Path, scans: bool) -> None:
    # What a channel multiplies its signal and its noise with is arbitrary, and the last of four drowns the others.
    gains = np.geomspace(1, 1000, 4)
    _, kspace = scene()
    rng = np.random.default_rng(3)
    # The scene's own noise is a tenth of this.
    noisy = (kspace[0] + 10 * SIGMA * complex_normal(rng, *kspace[0].shape)) * gains[:, None, None]
    lines = [line(noisy[:, :, 2 + s].astype(np.complex64), s) for s in range(LARGEST + 1)]
    level = 10 * SIGMA * np.sqrt(1.01)
    if scans:
        alone = level * gains[:, None] * complex_normal(rng, 4, 5000)
        lines.insert(0, line(alone.astype(np.complex64), flags=1 << 18))
    xml = header().replace(
        "<encoding>",
        "<acquisitionSystemInformation><relativeReceiverNoiseBandwidth>1</relativeReceiverNoiseBandwidth>"
        "</acquisitionSystemInformation><encoding>",
        1,
    )
    scan = ISMRMRD(real=False).open(write_lines(tmp_path / "raw.h5", lines, xml), invsolve.make)
    sigma = float(np.asarray(scan.noise.sigma))
    assert sigma == pytest.approx(level * np.median(gains), rel=0.1)
    # The corners of k-space hold noise alone: every coil's, of one level now, and none in common with another's.
    y = scan.y[0:1][0].numpy()
    corner = np.concatenate([y[:, :8, 2:10], y[:, :8, -10:-2], y[:, -8:, 2:10], y[:, -8:, -10:-2]], 2).reshape(4, -1)
    covariance = corner @ corner.conj().T / (2 * corner.shape[1])
    # 256 complex numbers have a standard deviation to 1 / sqrt(4 * 256), 3 %.
    np.testing.assert_allclose(np.sqrt(covariance.diagonal().real), sigma, rtol=0.1)
    assert np.abs(covariance / sigma**2 - np.diag(covariance.diagonal() / sigma**2)).max() < 0.25
    assert "coils prewhitened" in " ".join(scan.notes)


def falling(size: int, power: float) -> np.ndarray:
    """An image of peak 1 that fills its field of view, whose k-space falls off as a power of the distance."""
    far = np.hypot(*(np.mgrid[:size, :size] - size // 2))
    far[size // 2, size // 2] = 1
    image = np.fft.ifft2(np.fft.ifftshift(complex_normal(np.random.default_rng(4), size, size) / far**power))
    return np.fft.fftshift(image) / np.abs(image).max()


def crop(size: int) -> np.ndarray:
    """The middle third of a Shepp-Logan phantom: no air around it."""
    return resize(shepp_logan_phantom(), (3 * size, 3 * size), anti_aliasing=True)[size : 2 * size, size : 2 * size]


def thinned(size: int) -> np.ndarray:
    columns = np.abs(np.arange(size) - size // 2) < size // 12
    columns[np.random.default_rng(1).permutation(size)[: size // 5]] = True
    return np.tile(columns, (size, 1))


def test_a_level_that_is_far_off_is_doubted_and_one_that_is_right_is_not() -> None:
    missed, wrong, right, alarms = [], 0, 0, 0
    for size, coils in ((32, 1), (64, 1), (96, 1), (64, 8), (96, 8)):
        images = {f"falls {power}": falling(size, power) for power in (1.0, 1.5, 2.0)}
        images |= {"crop": crop(size), "phantom": object_("Shepp-Logan", size)}
        for name, image in images.items():
            clean = transformed(bells(coils, size) * image)
            for mask in (np.ones((size, size), bool), thinned(size)):
                for peak in (10, 30, 100, 300):
                    noise = complex_normal(np.random.default_rng(0), *clean.shape) / peak
                    found = estimate_noise((clean + noise) * mask, mask)
                    level = float(np.sqrt(found.covariance.diagonal().real.mean())) * peak
                    if level > 1.25 or level < 0.8:
                        wrong += 1
                        missed += [] if found.doubt else [(size, coils, name, peak, round(level, 2))]
                    elif 0.95 < level < 1.05 and found.count * coils > 1000:
                        right, alarms = right + 1, alarms + bool(found.doubt)
    assert wrong > 50
    assert right > 50
    assert missed == []
    assert alarms < 0.05 * right


def test_a_doubtful_level_is_told_and_noise_scans_are_not_doubted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, image, told in (("slow", falling(N, 1.5), True), ("disc", object_("disc", N), False)):
        kspace = transformed(bells(4, N) * image) + complex_normal(rng, 4, N, N) / 100
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["kspace"] = kspace[None].astype("c8")
        notes = FastMRI(real=False).open(tmp_path / f"{name}.h5", invsolve.make).notes
        assert any("the noise level may be far too high" in note for note in notes) == told
