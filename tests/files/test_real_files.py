"""The reference data through every layout: real instruments' files, and what is known about them."""

import json
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.files.opening import open_images, open_measurement
from tests.support.types import Cli, offered

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def brain(shared: Path) -> invsolve.Measurement:
    return open_measurement(shared / "fixtures" / "fastmri_like_multicoil.h5", None, {"whiten": False})


def test_the_tooth_is_the_same_as_dxchange_and_as_nxtomo(shared: Path, tmp_path: Path) -> None:
    # The NXtomo fixture holds whole counts, the original floating-point ones: round those for a comparison to 1e-6.
    with h5py.File(shared / "ct_tooth" / "tooth.h5") as old, h5py.File(tmp_path / "whole.h5", "w") as new:
        for name in ("data", "data_white", "data_dark"):
            new[f"exchange/{name}"] = np.round(old[f"exchange/{name}"][:])
        old.copy("exchange/theta", new["exchange"])
    options = {"centre": 295.75, "thin": 4, "bin": 5}
    nxtomo = open_measurement(shared / "fixtures" / "nxtomo_tooth.nxs", None, options)
    whole = open_measurement(tmp_path / "whole.h5", None, options)
    original = open_measurement(shared / "ct_tooth" / "tooth.h5", None, options)
    assert float((nxtomo.y[0:2] - whole.y[0:2]).abs().max()) < 1e-6
    assert nxtomo.operator.geometry == whole.operator.geometry == original.operator.geometry
    assert nxtomo.noise.sigma == pytest.approx(whole.noise.sigma, rel=1e-6)
    # Rounding moves a line integral by half a count in several thousand.
    assert float((nxtomo.y[0:2] - original.y[0:2]).abs().max()) < 2e-4


@pytest.mark.slow
def test_the_nxtomo_tooths_centre_is_found_near_the_stored_one(shared: Path) -> None:
    scan = open_measurement(shared / "fixtures" / "nxtomo_tooth.nxs", None, {"thin": 6, "bin": 5})
    assert 295.5 <= (scan.operator.geometry.centre + 0.5) * 5 - 0.5 <= 296.0
    assert "the file says 295.5" in " ".join(scan.notes)


def test_the_brain_is_the_same_as_fastmri_and_as_ismrmrd(shared: Path, brain: invsolve.Measurement) -> None:
    raw = open_measurement(shared / "fixtures" / "ismrmrd_cartesian.h5", None, {"whiten": False})
    y, same = brain.y[0:1], raw.y[0:1]
    assert torch.equal(y, same)
    with h5py.File(shared / "fixtures" / "fastmri_like_multicoil.h5") as file:
        stored = torch.from_numpy(file["reconstruction_rss"][:])
    images = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(same, (-2, -1)), norm="ortho"), (-2, -1))
    assert torch.allclose(images.norm(dim=1), stored, rtol=1e-4, atol=1e-3)
    assert torch.allclose(raw.operator.baseline(same), brain.operator.baseline(y), atol=1e-4)


def test_coil_maps_of_the_brain_explain_its_coils(brain: invsolve.Measurement, shared: Path) -> None:
    maps, truth = offered(brain.operator).coil_maps, brain.truth[0:1]
    head = truth[0, 0] > 0.1 * truth.max()
    assert torch.allclose((maps.abs() ** 2).sum(0)[head], torch.ones(1), atol=1e-3)
    y = brain.y[0:1]
    image = brain.operator.baseline(y)
    coils = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(y, (-2, -1)), norm="ortho"), (-2, -1))
    rest = (coils - maps * image)[0][:, head]
    # Seven of eight coil images are predicted; what they leave is noise.
    sigma = float((rest.abs() ** 2).mean() / 2) ** 0.5
    assert 0.6 * brain.noise.sigma < sigma < 1.1 * brain.noise.sigma
    # The noise of a coil, as its two parts together, is 1.5 to 2.2.
    assert 1.5 < brain.noise.sigma * 2**0.5 < 2.2
    assert float((image[0, 0].abs() - truth[0, 0])[head].norm() / truth[0, 0][head].norm()) < 0.03
    # The smooth part of the phase went into the maps; without that, less than half of the image would be real.
    assert float(image[0, 0].real[head].norm() / image[0, 0][head].norm()) > 0.98


def test_the_noise_of_the_brains_coils_is_white(shared: Path, brain: invsolve.Measurement) -> None:
    """In the corners of the image, which see air; the coils' noise differs by a third and is correlated."""
    white = open_measurement(shared / "fixtures" / "fastmri_like_multicoil.h5")
    unequal = []
    for scan in (brain, white):
        y = scan.y[0:1]
        images = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(y, (-2, -1)), norm="ortho"), (-2, -1))[0]
        corners = torch.cat([images[:, :24, :24], images[:, :24, -24:], images[:, -24:, :24], images[:, -24:, -24:]], 2)
        values = corners.flatten(1).numpy()
        levels = np.linalg.eigvalsh(values @ values.conj().T / (2 * values.shape[1] * float(scan.noise.sigma) ** 2))
        unequal.append(float(levels.max() / levels.min()))
        assert 0.7 < levels.mean() < 1.5
    # 2304 numbers of eight white coils scatter by (1 +- sqrt(8 / 2304))^2, a ratio of 1.27.
    assert unequal[0] > 2.5
    assert unequal[1] < 1.6


def test_the_command_suggested_for_a_brain_beats_what_needs_no_prior(shared: Path, tmp_path: Path, cli: Cli) -> None:
    """Of 96 x 80 points of k-space 20 columns; against the image of all, zero-filled and SENSE fall behind."""
    with h5py.File(shared / "fixtures" / "fastmri_like_multicoil.h5") as file:
        kspace = torch.from_numpy(file["kspace"][..., 115 - 48 : 115 + 48, 90 - 40 : 90 + 40])
    whole, scan = np.linalg.norm(centred(kspace), axis=1), tmp_path / "scan.h5"
    with h5py.File(scan, "w") as file:
        file["kspace"] = kspace.numpy()
    how = ("--read", "acceleration=4", "--read", "centre_fraction=0.16")
    code, out, err = cli("inspect", scan, *how, "--json")
    assert code == 0, err
    command = shlex.split(json.loads(out)["commands"][-1]["command"])
    assert "mr-complex-128" in command
    # A tenth of its time: fewer steps and one sample, which only makes it worse.
    command[command.index("--samples") + 1] = "1"
    command[command.index("steps=100")] = "steps=30"
    recon = tmp_path / "recon.h5"
    command[command.index("-o") + 1] = str(recon)
    code, _, err = cli(*command[1:])
    assert code == 0, err
    with h5py.File(recon) as file:
        mean, linear = (np.linalg.norm(file[name][:], axis=1) for name in ("mean", "linear"))
    mask = offered(open_measurement(scan, None, {"acceleration": 4, "centre_fraction": 0.16}).operator).mask
    filled = np.linalg.norm(centred(kspace * mask), axis=1)

    def psnr(image: np.ndarray) -> float:
        return float(10 * np.log10(whole.max() ** 2 / np.mean((image - whole) ** 2)))

    assert psnr(mean) > psnr(linear) + 1
    assert psnr(mean) > psnr(filled) + 3


def centred(kspace: torch.Tensor) -> np.ndarray:
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(kspace, axes), norm="ortho"), axes).numpy()


def test_the_masked_brain(shared: Path, brain: invsolve.Measurement) -> None:
    path = shared / "fixtures" / "fastmri_like_multicoil_test.h5"
    scan = open_measurement(path, None, {"whiten": False})
    with h5py.File(path) as file:
        mask = torch.from_numpy(file["mask"][:] != 0)
    assert torch.equal(offered(scan.operator).mask, mask.expand(230, 180))
    assert torch.equal(scan.y[0:1], brain.y[0:1] * mask)
    assert scan.truth is None
    truth = brain.truth[0:1]
    head = truth[0, 0] > 0.1 * truth.max()
    # Fourteen columns calibrate nearly as well as all of them.
    agreement = (scan.operator.coil_maps.conj() * brain.operator.coil_maps).sum(0).abs()[head]
    assert float(agreement.quantile(0.05)) > 0.98


def test_lodopab_ground_truth(shared: Path) -> None:
    dataset = open_images(shared / "fixtures" / "lodopab_like_ground_truth.hdf5", "lodopab")
    images = dataset.x[0:8]
    assert images.shape == (8, 1, 362, 362)
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    # Soft tissue attenuates by about 20 / m.
    assert 15 < float(images[images > 0.1].median()) * 81.35858 < 25
    assert dataset.spacing == pytest.approx((0.718, 0.718), abs=1e-3)


FILES = {
    "ct_tooth/tooth.h5": ("--read", "bin=8", "--read", "thin=4"),
    "fixtures/nxtomo_tooth.nxs": ("--read", "bin=8", "--read", "thin=4"),
    "fixtures/fastmri_like_multicoil.h5": (),
    "fixtures/fastmri_like_multicoil_test.h5": (),
    "fixtures/ismrmrd_cartesian.h5": (),
    "mri_brain8/cartesian_ksp.npy": ("--read", "axes=coil,row,column"),
    "fixtures/lodopab_like_ground_truth.hdf5": ("--layout", "lodopab"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_suggested_command_runs_as_printed(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("inspect", shared / name, *FILES[name], "--json")
    assert code == 0, err
    command = shlex.split(json.loads(out)["commands"][0]["command"])
    code, _, err = cli(*command[1:])
    assert code == 0, err
    with h5py.File(command[command.index("-o") + 1]) as file:
        assert np.isfinite(file["mean" if command[1] == "reconstruct" else "y"][:]).all()
