"""Every registered layout and noise holds what its kind promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import invsolve
from invsolve import registry
from invsolve.registry.check import instances
from invsolve.testing import check_layout, check_noise
from tests.files.test_bart import measured
from tests.support.ct_files import CENTRE, write_dxchange, write_nxtomo
from tests.support.mri_files import ismrmrd_lines, write_fastmri, write_lines

Writer = Callable[[Path], Path]


def _own(folder: Path) -> Path:
    operator = invsolve.operator("blur", sigma=1.0)
    truth = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    from invsolve.datasets.hdf5 import write_scan

    write_scan(folder / "scan.h5", truth, operator, invsolve.Gaussian(0.1), truth=truth)
    return folder / "scan.h5"


def _array(folder: Path) -> Path:
    path = folder / "sinograms.npy"
    np.save(path, np.random.default_rng(0).random((3, 6, 9), dtype=np.float32))
    return path


def _nifti(folder: Path) -> Path:
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).random((5, 6, 7), dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "head.nii")
    return folder / "head.nii"


def _dicom(folder: Path) -> Path:
    pytest.importorskip("pydicom")
    from tests.support.dicom_files import stack

    return stack(folder / "series", [100, 700, 300], [0.0, 2.0, 4.0])


def _lodopab(folder: Path) -> Path:
    path = folder / "observation_test_000.hdf5"
    with h5py.File(path, "w") as file:
        values = np.random.default_rng(0).random((2, 1000, 513), dtype=np.float32)
        file["data"] = values
    return path


#: Options and a writer of a small file for each layout.
EXAMPLES: dict[str, tuple[dict[str, Any], Writer]] = {
    "array": ({"axes": "item,angle,detector", "angles": 6, "values": "integrals", "centre": 4.0}, _array),
    "bart": ({}, lambda folder: measured(folder / "scan")[0]),
    "dicom": ({}, _dicom),
    "dxchange": ({"centre": CENTRE}, lambda folder: write_dxchange(folder / "scan.h5")),
    "fastmri": ({}, lambda folder: write_fastmri(folder / "scan.h5")),
    "invsolve": ({}, _own),
    "ismrmrd": ({}, lambda folder: write_lines(folder / "scan.h5", ismrmrd_lines())),
    "lodopab": ({"thin": 250}, _lodopab),
    "nifti": ({}, _nifti),
    "nxtomo": ({"centre": CENTRE}, lambda folder: write_nxtomo(folder / "scan.nxs")),
}


@pytest.mark.parametrize("name", registry.available("layout"))
def test_layout(name: str) -> None:
    options, write = EXAMPLES[name]
    layout = registry.find("layout", name)(**options)
    report = check_layout(layout, invsolve.make, write)
    assert report, str(report)


@pytest.mark.parametrize(
    ("name", "k"),
    [(name, k) for name, cls in registry.available("noise").items() for k in range(len(cls.examples))],  # type: ignore[attr-defined]
)
def test_noise(name: str, k: int) -> None:
    report = check_noise(instances(registry.find("noise", name), "noise", name)[k])
    assert report, str(report)
