"""NIfTI that leaves something open or has pixels that are not square: said, made square, or refused; truth by nibabel."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from invsolve.datasets.layouts.nifti import NIfTI
from invsolve.errors import UserError

Cli = Callable[..., tuple[int, str, str]]

nibabel = pytest.importorskip("nibabel")
VOLUME = np.random.default_rng(0).random((7, 9, 5)).astype(np.float32)


def saved(path: Path, values: np.ndarray = VOLUME, affine: np.ndarray | None = None, unit: str = "mm") -> Path:
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


def notes(path: Path) -> str:
    return " | ".join(NIfTI().images(path).notes)


@pytest.mark.parametrize("shape", [(7, 9, 5, 1), (7, 9, 5, 1, 1), (7, 9, 1), (7, 9)])
@pytest.mark.parametrize("view", ["axial", "coronal", "sagittal"])
def test_axes_of_length_one_change_nothing(shape: tuple[int, ...], view: Any, tmp_path: Path) -> None:
    values = VOLUME[:, :, : shape[2] if len(shape) > 2 else 1].reshape(shape)
    volume = NIfTI(view=view).images(saved(tmp_path / "a.nii", values))
    same = NIfTI(view=view).images(saved(tmp_path / "b.nii", values.reshape(7, 9, -1)))
    assert np.array_equal(volume.x[0 : len(volume.x)], same.x[0 : len(same.x)])


def test_what_the_file_leaves_open_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    assert "unit of length" not in notes(saved(path))
    assert "does not say its unit of length; taken as mm" in notes(saved(path, unit="unknown"))
    assert NIfTI().images(saved(path, unit="micron")).spacing_unit == "micron"
    nibabel.save(nibabel.Nifti1Image(VOLUME, None), path)
    assert "does not say how the volume lies" in notes(path)
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.set_sform(np.diag([-1, 1, 1, 1.0]), 1)
    image.set_qform(np.eye(4), 1)
    nibabel.save(image, path)
    assert "sform and qform disagree" in notes(path)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]]
    assert "turned by up to 29 degrees" in notes(saved(path, affine=turned))


def test_only_headers_of_this_kind_are_nifti(tmp_path: Path) -> None:
    pair = nibabel.Nifti1Pair(VOLUME, np.eye(4))
    nibabel.save(pair, tmp_path / "a.img")
    assert NIfTI.opens(tmp_path / "a.img")
    assert NIfTI.opens(tmp_path / "a.hdr")
    assert np.array_equal(NIfTI().images(tmp_path / "a.hdr").x[0:1][0, 0], VOLUME[::-1, ::-1, 0].T)
    nibabel.save(nibabel.AnalyzeImage(VOLUME, np.eye(4)), tmp_path / "old.img")
    assert NIfTI.opens(tmp_path / "old.hdr")
    assert "does not say how the volume lies" in notes(tmp_path / "old.img")
    (tmp_path / "b.hdr").write_text("ENVI\nsamples = 3\n")
    assert not NIfTI.opens(tmp_path / "b.hdr")
    assert not NIfTI.opens(tmp_path / "nowhere.img")


def test_pixels_that_are_not_square_are_no_squares_to_a_projection(tmp_path: Path, cli: Cli) -> None:
    """A disc of 20 mm on pixels of 1 x 2 mm: its projections are equally long from every side, or it is refused."""
    y, x = (np.arange(32) - 15.5) * 2, np.arange(64) - 31.5
    disc = (np.hypot(x[:, None], y[None]) < 20).astype(np.float32)
    path = saved(tmp_path / "a.nii", disc[:, :, None], np.diag([1, 2, 1, 1.0]))
    command = (
        "simulate",
        path,
        "-o",
        tmp_path / "s.h5",
        "--operator",
        "ct",
        "--set",
        "angles=2",
        "--noise",
        "gaussian:0",
    )
    code, _, err = cli(*command)
    assert code == 2
    assert "pixels of 2 x 1 mm are not square" in err
    assert "--read square=true" in err
    assert not (tmp_path / "s.h5").exists()
    code, _, err = cli(*command, "--read", "square=true")
    assert code == 0, err
    assert "made square by linear interpolation" in err
    with h5py.File(tmp_path / "s.h5") as file:
        across = file["y"][0]
    # The longest chord of the disc is 40 mm from both sides.
    assert np.allclose(across.max(1), 40, atol=2)
    assert np.allclose(across.sum(1), np.pi * 400, rtol=0.03)


def test_a_blur_takes_pixels_of_any_shape(tmp_path: Path, cli: Cli) -> None:
    path = saved(tmp_path / "a.nii", VOLUME, np.diag([1, 2, 1, 1.0]))
    code, _, err = cli("simulate", path, "-o", tmp_path / "s.h5", "--operator", "blur", "--set", "sigma=1.0")
    assert code == 0, err


def test_vectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds \(7, 9, 5, 1, 3\)"):
        NIfTI().images(saved(tmp_path / "a.nii", np.zeros((7, 9, 5, 1, 3), np.float32)))
