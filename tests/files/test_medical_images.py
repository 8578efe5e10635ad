"""Layouts "nifti" and "dicom": orientation, order, rescaling; and a clear word when a package is missing."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import invsolve
from invsolve.datasets.layouts.dicom import DICOM
from invsolve.datasets.layouts.nifti import NIfTI
from invsolve.errors import UserError
from tests.support.types import Cli

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

# A RAS+ volume in which every voxel knows where it is: x + 100 y + 10000 z.
X, Y, Z = 5, 6, 7
WORLD = (np.arange(X)[:, None, None] + 100 * np.arange(Y)[:, None] + 10000 * np.arange(Z)).astype(np.int16)


def saved(path: Path, order: tuple[int, int, int] = (0, 1, 2), signs: tuple[int, int, int] = (1, 1, 1)) -> Path:
    """The volume stored with permuted and reversed axes, and the affine that says so."""
    values = WORLD[:: signs[0], :: signs[1], :: signs[2]].transpose(order)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for k, world in enumerate(order):
        affine[world, k] = (1.0, 2.0, 3.0)[world] * signs[world]
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_slices_look_the_same_however_they_are_stored(
    tmp_path: Path, order: tuple[int, int, int], signs: tuple[int, int, int], ending: str
) -> None:
    path = saved(tmp_path / f"a.{ending}", order, signs)
    assert NIfTI.opens(path)
    axial = NIfTI(unit="HU").images(path)
    assert axial.x[0:7].shape == (Z, 1, Y, X)
    # Rows from front (large y) to back, columns from the patient's right (large x) to left.
    assert np.array_equal(axial.x[2:3].numpy()[0, 0], WORLD[::-1, ::-1, 2].T)
    assert axial.spacing == (2.0, 1.0)
    coronal = NIfTI(view="coronal").images(path)
    assert np.array_equal(coronal.x[4:5].numpy()[0, 0], WORLD[::-1, 4, ::-1].T)
    sagittal = NIfTI(view="sagittal", slices=[1, 3]).images(path)
    assert np.array_equal(sagittal.x[0:1].numpy()[0, 0], WORLD[1, ::-1, ::-1].T)
    assert (len(sagittal.x), sagittal.spacing) == (2, (3.0, 2.0))


def test_nifti_scaling_volumes_and_damage(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.stack([WORLD, WORLD + 1], -1), np.eye(4))
    image.header.set_slope_inter(0.5, -1000)
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    # nibabel stores values so that they come back scaled.
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([0.5, -1000], "<f4").tobytes()
    path.write_bytes(raw)
    stored = np.frombuffer(raw[352:], np.int16).reshape(2, Z, Y, X)[1, 3].astype(np.float32)
    volume = NIfTI(volume=1).images(path)
    assert np.array_equal(volume.x[3:4].numpy()[0, 0], 0.5 * stored[::-1, ::-1] - 1000)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "holds 2 volumes"),
        ({"volume": 2}, "must be 0 to 1"),
        ({"volume": 0, "slices": [5, 9]}, "7 axial"),
    ]
    for options, expected in wrong:
        with pytest.raises(UserError, match=expected):
            NIfTI(**options).images(path)
    with pytest.raises(UserError, match="holds images, not a measurement"):
        NIfTI().open(path, invsolve.make)
    damaged = {b"": "is empty", b"version https://git-lfs": "git-LFS", bytes(raw[:300]): "cannot be read as NIfTI"}
    for content, expected in damaged.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.nii: .*{expected}"):
            NIfTI().images(path)
    path.write_bytes(raw[:500])
    with pytest.raises(UserError, match=r"a\.nii: .*cannot be read"):
        NIfTI(volume=1).images(path).x[3:4]


def write_slice(path: Path, values: np.ndarray, position: float, number: int, uid: str = "1.2.3", **more: Any) -> None:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{number}"
    data.SeriesInstanceUID, data.SeriesDescription, data.Modality, data.InstanceNumber = (
        uid,
        f"thorax {uid}",
        "CT",
        number,
    )
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [0.8, 0.7], 2, -1024
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, position]
    data.PixelData = values.astype(np.uint16).tobytes()
    for name, value in more.items():
        setattr(data, name, value)
    pydicom.dcmwrite(path, data, enforce_file_format=True)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Four slices whose names, numbers and positions disagree; positions count."""
    folder = tmp_path / "series"
    folder.mkdir()
    for k, position in enumerate([5.0, -5.0, 10.0, 0.0]):
        write_slice(folder / f"{k}", np.full((3, 4), 1000 + 10 * position), position, number=9 - k)
    (folder / "readme.txt").write_text("not an image")
    return folder


def test_a_series_is_sorted_and_in_hounsfield_units(series: Path) -> None:
    assert DICOM.opens(series)
    assert DICOM.opens(series / "0")
    slices = DICOM().images(series)
    assert slices.x[0:4].shape == (4, 1, 3, 4)
    assert slices.x[0:4][:, 0, 0, 0].tolist() == [2 * v - 1024 for v in (950, 1000, 1050, 1100)]
    assert (slices.unit, slices.spacing, slices.spacing_unit) == ("HU", (0.8, 0.7), "mm")
    assert len(DICOM(slices=[1, 3]).images(series).x) == 2
    assert len(DICOM().images(series / "2").x) == 1


def test_what_dicom_refuses(series: Path, tmp_path: Path) -> None:
    write_slice(series / "other", np.ones((3, 4)), 0.0, 1, uid="7.8")
    with pytest.raises(UserError, match=r"holds 2 series; choose one with series=UID: .*7\.8 \(thorax 7\.8, 1\)"):
        DICOM().images(series)
    assert len(DICOM(series="7.8").images(series).x) == 1
    (series / "other").unlink()
    write_slice(series / "large", np.ones((5, 4)), 20.0, 1)
    with pytest.raises(UserError, match="its slices have 2 sizes"):
        DICOM().images(series)
    (series / "large").unlink()
    write_slice(series / "colour", np.ones((3, 4)), 20.0, 1, SamplesPerPixel=3)
    with pytest.raises(UserError, match="is a colour image"):
        DICOM().images(series)
    (series / "colour").unlink()
    (series / "0").write_bytes((series / "0").read_bytes()[:-10])
    with pytest.raises(UserError, match="its pixels cannot be read"):
        DICOM().images(series).x[0:4]
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no DICOM image"):
        DICOM().images(empty)


@pytest.mark.parametrize(("layout", "module", "name"), [(NIfTI, "nibabel", "a.nii"), (DICOM, "pydicom", "a.dcm")])
def test_a_missing_package_is_named_with_its_extra(
    layout: type[NIfTI | DICOM], module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(bytes(128) + b"DICM" + bytes(300))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package {module} .*pip install 'invsolve\[{layout.name}\]'"):
        layout().images(tmp_path / name)


def test_simulate_and_train_from_them(series: Path, tmp_path: Path, cli: Cli) -> None:
    volume = tmp_path / "brain.nii.gz"
    rng = np.random.default_rng(0)
    nibabel.save(nibabel.Nifti1Image(rng.normal(size=(16, 16, 6)).astype(np.float32), np.eye(4)), volume)
    scan = tmp_path / "scan.h5"
    options = ("--operator", "ct", "--set", "angles=5", "--read", "slices=[1,4]", "--read", "unit=T1")
    code, out, err = cli("simulate", volume, "-o", scan, *options)
    assert code == 0, err
    assert "3 items, y of 5 x 23" in out
    code, out, err = cli("simulate", series, "-o", tmp_path / "b.h5", "--operator", "blur", "--set", "sigma=1.0")
    assert code == 0, err
    code, out, err = cli(
        *("train", volume, "-o", tmp_path / "p.safetensors", "--steps", "2", "--width", "8", "--levels", "2"),
        *("--batch-size", "2", "--set", 'read={view="axial"}', "--device", "cpu"),
    )
    assert code == 0, err
    assert (tmp_path / "p.safetensors").exists()
