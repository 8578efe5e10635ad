"""The commands of docs/real_data.md at small size, each held to a value of another library or of NumPy."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import scipy.sparse.linalg
import skimage
import torch
from PIL import Image

import invsolve
from invsolve.datasets import hdf5
from invsolve.files.opening import open_measurement
from tests.support.types import Cli, linear_operator, offered

pytestmark = pytest.mark.shared

#: The tooth's rotation axis, as its own authors give it.
AXIS = 295.75


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    return float(skimage.metrics.peak_signal_noise_ratio(truth, image, data_range=float(np.ptp(truth))))


@pytest.fixture
def photograph(shared: Path) -> np.ndarray:
    """96 x 96 grey pixels of a Kodak photograph that no prior has seen, 0 to 255."""
    return 255 * skimage.color.rgb2gray(skimage.io.imread(shared / "natural" / "kodim20.jpg"))[200:296, 180:276]


@pytest.fixture
def shake(shared: Path) -> np.ndarray:
    """A measured camera shake (Levin 2009), 27 x 27."""
    with np.load(shared / "blur_kernels" / "Levin09.npz") as kernels:
        return kernels["k03"]


def fbp(path: Path, tmp_path: Path, cli: Cli, *how: str) -> np.ndarray:
    out = tmp_path / f"{path.stem}_fbp.h5"
    read = [part for option in (f"centre={AXIS}", *how) for part in ("--read", option)]
    code, _, err = cli("reconstruct", path, "-o", out, "--strategy", "linear", *read)
    assert code == 0, err
    return hdf5.read_result(out).mean[0:2].numpy()


@pytest.mark.slow
def test_the_tooth_is_the_same_as_dxchange_and_as_nxtomo_after_filtered_back_projection(
    shared: Path, tmp_path: Path, cli: Cli
) -> None:
    whole = tmp_path / "whole.h5"
    # The NXtomo copy holds whole counts.
    with h5py.File(shared / "ct_tooth" / "tooth.h5") as old, h5py.File(whole, "w") as new:
        for name in ("data", "data_white", "data_dark"):
            new[f"exchange/{name}"] = np.round(old[f"exchange/{name}"][:])
        old.copy("exchange/theta", new["exchange"])
    one = fbp(whole, tmp_path, cli, "bin=2")
    other = fbp(shared / "fixtures" / "nxtomo_tooth.nxs", tmp_path, cli, "bin=2")
    assert one.shape == other.shape == (2, 1, 320, 320)
    # Counts are single precision, and are divided and summed in another order.
    assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()


def test_the_tooth_is_scikit_images_filtered_back_projection(shared: Path) -> None:
    scan = open_measurement(shared / "ct_tooth" / "tooth.h5", None, {"centre": AXIS, "bin": 5})
    geometry, sinogram = scan.operator.geometry, scan.y[0:1][0].double().numpy()
    degrees = np.asarray(geometry.angles)
    # scikit-image's axis is on the middle of an odd number of pixels: moved there, linearly between two pixels.
    places = np.arange(129) - 64 + geometry.centre
    moved = np.stack([np.interp(places, np.arange(128), row) for row in sinogram], 1)
    theirs = skimage.transform.iradon(moved, degrees, filter_name="hann", circle=True)
    operator = linear_operator("ct", image_size=129, angles=degrees, detectors=128, centre=geometry.centre)
    ours = operator.fbp(torch.from_numpy(sinogram)[None], "hann", extend=False)[0, 0].numpy()
    row, column = np.indices((129, 129)) - 64
    seen = np.hypot(row, column) < 50
    ours, theirs = ours[seen], theirs[seen]
    # Both interpolate linearly, along the image's axes here and along the detector there.
    assert np.corrcoef(ours, theirs)[0, 1] > 0.995
    assert float(ours @ theirs / (theirs @ theirs)) == pytest.approx(1, abs=0.02)


def test_sense_of_the_brain_is_scipys_solution_and_beats_zero_filling(shared: Path, tmp_path: Path) -> None:
    with h5py.File(shared / "fixtures" / "fastmri_like_multicoil.h5") as file:
        kspace = file["kspace"][..., 115 - 32 : 115 + 32, 90 - 30 : 90 + 30]
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace
    read = {"acceleration": 3, "centre_fraction": 0.2, "whiten": False}
    scan = open_measurement(tmp_path / "scan.h5", None, read)
    maps, mask = offered(scan.operator).coil_maps.numpy(), offered(scan.operator).mask.numpy()
    y, size = scan.y[0:1], maps.shape[1:]

    def transform(image: np.ndarray, way: str) -> np.ndarray:
        apply = np.fft.fft2 if way == "forward" else np.fft.ifft2
        return np.fft.fftshift(apply(np.fft.ifftshift(image, (-2, -1)), norm="ortho"), (-2, -1))

    def back(data: np.ndarray) -> np.ndarray:
        return (maps.conj() * transform(mask * data, "back")).sum(0)

    linear = scan.operator
    rho = linear.baseline_floor * linear.norm(y) ** 2
    normal = scipy.sparse.linalg.LinearOperator(
        (maps[0].size,) * 2,
        matvec=lambda x: (back(transform(maps * x.reshape(size), "forward")) + rho * x.reshape(size)).ravel(),
        dtype=np.complex128,
    )
    wanted, _ = scipy.sparse.linalg.cg(normal, back(y[0].numpy()).ravel(), rtol=1e-8, maxiter=2000)
    ours = linear.baseline(y)[0, 0].numpy()
    # The solver here stops at a residual of 1e-4; small singular values, above the root of 1e-3, enlarge what is left of it.
    assert np.linalg.norm(ours - wanted.reshape(size)) < 1e-4 / 1e-3 * np.linalg.norm(wanted) * 0.2
    whole = np.sqrt((abs(transform(kspace[0], "back")) ** 2).sum(0))
    filled = np.sqrt((abs(transform(mask * kspace[0], "back")) ** 2).sum(0))
    assert psnr(abs(ours), whole) > psnr(filled, whole) + 2


def test_a_shaken_photograph_is_scikit_images_wiener_filter(
    photograph: np.ndarray, shake: np.ndarray, tmp_path: Path, cli: Cli
) -> None:
    np.save(tmp_path / "shake.npy", shake)
    hdf5.write_images(tmp_path / "x.h5", photograph[None, None].astype(np.float32))
    operator = ("--operator", "blur", "--set", f"kernel={tmp_path / 'shake.npy'}", "--noise", "gaussian:2.5")
    code, _, err = cli("simulate", tmp_path / "x.h5", "-o", tmp_path / "y.h5", *operator)
    assert code == 0, err
    y = open_measurement(tmp_path / "y.h5").y[0:1][0, 0].double().numpy()
    # What was measured is SciPy's convolution and noise of that width.
    clean = scipy.ndimage.convolve(photograph, shake, mode="wrap")
    assert np.std(y - clean) == pytest.approx(2.5, rel=5 / np.sqrt(2 * clean.size))
    images = {}
    for strategy in ("linear", "tv"):
        out = tmp_path / f"{strategy}.h5"
        code, _, err = cli("reconstruct", tmp_path / "y.h5", "-o", out, "--strategy", strategy, "--scale=0:255")
        assert code == 0, err
        images[strategy] = hdf5.read_result(out).mean[0:1][0, 0].double().numpy()
    # Noise over the signal's standard deviation, half of what the scale's half range is.
    balance = (2.5 / 127.5 / 0.5) ** 2
    wiener = skimage.restoration.wiener(y, shake, balance, reg=np.ones((1, 1)), clip=False)
    np.testing.assert_allclose(images["linear"], wiener, atol=0.02)
    assert psnr(images["linear"], photograph) == pytest.approx(psnr(wiener, photograph), abs=0.01)
    lucy = skimage.restoration.richardson_lucy(np.clip(y / 255, 0, None), shake, 30, clip=False) * 255
    assert psnr(images["tv"], photograph) > max(psnr(wiener, photograph), psnr(lucy, photograph), psnr(y, photograph))


def test_a_photograph_of_a_sixteenth_of_the_pixels_is_pillows_and_is_enlarged_better(photograph: np.ndarray) -> None:
    operator = linear_operator("downsample", factor=4, kernel="bicubic")
    x = torch.from_numpy(photograph)[None, None]
    small = operator(x)[0, 0].numpy()
    pillow = np.asarray(Image.fromarray(photograph.astype(np.float32)).resize((24, 24), Image.Resampling.BICUBIC))
    # At the edges Pillow leaves weights out, where the picture goes on periodically here.
    np.testing.assert_allclose(small[2:-2, 2:-2], pillow[2:-2, 2:-2], atol=1e-3)
    y = invsolve.simulate(x, operator, invsolve.Gaussian(1.0))
    result = invsolve.reconstruct(y, operator, noise=invsolve.Gaussian(1.0), strategy="tv", scale=(0, 255))
    large = Image.fromarray(y[0, 0].numpy()).resize((96, 96), Image.Resampling.BICUBIC)
    assert psnr(result.mean[0, 0].double().numpy(), photograph) > psnr(np.asarray(large, dtype=float), photograph)


def test_a_galaxy_through_a_telescope(shared: Path, tmp_path: Path, cli: Cli) -> None:
    galaxy = np.load(shared / "psf_astro" / "example_galaxy_image.npy").astype(float)
    star = shared / "psf_astro" / "example_psf_image.npy"
    hdf5.write_images(tmp_path / "x.h5", galaxy[None, None].astype(np.float32))
    settings = [f"picture={star}", "centre=peak", "background=0", "boundary=zero"]
    sets = [part for setting in settings for part in ("--set", setting)]
    noise = ("--noise", "gaussian:0.0002")
    code, _, err = cli(
        "simulate", tmp_path / "x.h5", "-o", tmp_path / "y.h5", "--operator", "measured-blur", *sets, *noise
    )
    assert code == 0, err
    scan = open_measurement(tmp_path / "y.h5")
    point = np.load(star).astype(float)
    point /= point.sum()
    peak = np.unravel_index(point.argmax(), point.shape)
    whole = scipy.signal.fftconvolve(galaxy, point)
    wanted = whole[peak[0] : peak[0] + 41, peak[1] : peak[1] + 41]
    np.testing.assert_allclose(
        scan.operator(torch.from_numpy(galaxy)[None, None])[0, 0], wanted, atol=1e-6 * wanted.max()
    )
    y, out = scan.y[0:1][0, 0].double().numpy(), tmp_path / "linear.h5"
    code, _, err = cli("reconstruct", tmp_path / "y.h5", "-o", out, "--strategy", "linear", "--scale=0:0.05")
    assert code == 0, err
    linear = hdf5.read_result(out).mean[0:1][0, 0].double().numpy()
    # Noise over the signal's standard deviation, half of what the scale's half range is.
    balance = (0.0002 / 0.025 / 0.5) ** 2
    columns = (scipy.signal.fftconvolve(one.reshape(41, 41), point) for one in np.eye(41 * 41))
    matrix = np.stack([c[peak[0] : peak[0] + 41, peak[1] : peak[1] + 41].ravel() for c in columns], 1)
    exact = np.linalg.solve(matrix.T @ matrix + balance * np.eye(41 * 41), matrix.T @ y.ravel())
    # Conjugate gradients stop at a residual of 1e-4 to 1e-5 of the right-hand side; the least eigenvalue is the balance.
    assert np.linalg.norm(linear.ravel() - exact) < 0.02 * np.linalg.norm(exact)
    assert psnr(linear, galaxy) > psnr(y, galaxy)
