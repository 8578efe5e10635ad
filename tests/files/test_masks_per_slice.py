"""Slices of which each measures other lines of k-space: every layout of k-space takes the mask of the slice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.contracts.layout import Layout
from invsolve.datasets.layouts.array import Array
from invsolve.datasets.layouts.bart import BART
from invsolve.datasets.layouts.fastmri import FastMRI
from invsolve.datasets.layouts.ismrmrd import ISMRMRD
from invsolve.datasets.mri.kspace import KSpaceLayout
from tests.files.test_bart import pair
from tests.support.mri_files import PHASE, READOUT, line, scene, write_lines
from tests.support.types import offered

SLICES = 2


def masks() -> np.ndarray:
    """Columns of each slice, (slices, PHASE): the centre, and every other column, the even ones or the odd ones."""
    column = np.arange(PHASE)
    inside = (column >= 2) & (column < 38)
    return np.stack([inside & ((column % 2 == k) | (abs(column - PHASE // 2) < 6)) for k in range(SLICES)])


def kspace() -> np.ndarray:
    return scene()[1] * masks()[:, None, None]


def _array(folder: Path) -> tuple[Layout, Path]:
    np.save(folder / "k.npy", kspace())
    return Array(axes="slice,coil,row,column", real=False), folder / "k.npy"


def _bart(folder: Path) -> tuple[Layout, Path]:
    order = kspace().transpose(2, 3, 1, 0)
    return BART(real=False), pair(folder / "k", order.reshape(*order.shape[:2], 1, order.shape[2], *[1] * 9, SLICES))


def _fastmri(folder: Path) -> tuple[Layout, Path]:
    with h5py.File(folder / "zeros.h5", "w") as file:
        file["kspace"] = kspace()
    return FastMRI(real=False), folder / "zeros.h5"


def _fastmri_mask(folder: Path) -> tuple[Layout, Path]:
    with h5py.File(folder / "mask.h5", "w") as file:
        file["kspace"], file["mask"] = scene()[1], masks()
    return FastMRI(real=False), folder / "mask.h5"


def _ismrmrd(folder: Path) -> tuple[Layout, Path]:
    values = kspace()
    lines = [line(values[k][:, :, c], c - 2, k) for k in range(SLICES) for c in np.flatnonzero(masks()[k]).tolist()]
    return ISMRMRD(real=False, crop=False), write_lines(folder / "raw.h5", lines)


WRITERS = [_array, _bart, _fastmri, _fastmri_mask, _ismrmrd]


@pytest.mark.parametrize("write", WRITERS)
def test_each_slice_has_the_mask_that_it_was_measured_with(
    write: Callable[[Path], tuple[Layout, Path]], tmp_path: Path
) -> None:
    layout, path = write(tmp_path)
    scan = layout.open(path, invsolve.make)
    for k in range(SLICES):
        own = offered(scan.operator_for(k))
        assert np.array_equal(own.mask.numpy(), np.broadcast_to(masks()[k], (READOUT, PHASE)))
        assert own.groups == masks()[k].sum()
        assert np.allclose(scan.y[k : k + 1].numpy()[0], kspace()[k], atol=1e-6)
    if isinstance(layout, KSpaceLayout):
        layout.slices = [1, 2]
        one = layout.open(path, invsolve.make)
        assert torch.equal(offered(one.operator_for(0)).mask, offered(scan.operator_for(1)).mask)


def test_a_sparser_scan_keeps_columns_that_each_slice_has(tmp_path: Path) -> None:
    _, path = _fastmri(tmp_path)
    scan = FastMRI(real=False, acceleration=2).open(path, invsolve.make)
    for k in range(SLICES):
        kept = offered(scan.operator_for(k)).mask[0].numpy()
        assert not (kept & ~masks()[k]).any()
        assert kept.sum() == round(masks()[k].sum() / 2)


@pytest.mark.discrepant  # the maps are random numbers
def test_the_linear_reconstruction_of_a_slice_is_that_of_a_file_of_its_own(tmp_path: Path) -> None:
    """SENSE by the maps of the file, which does not know of the other slice."""
    drawn = np.random.default_rng(0).normal(size=(4, READOUT, PHASE)) * (1 + 0.5j)
    maps = torch.from_numpy(drawn.astype(np.complex64))
    np.save(tmp_path / "k.npy", kspace())
    both = Array(axes="slice,coil,row,column", coil_maps=maps, real=False).open(tmp_path / "k.npy", invsolve.make)
    result = invsolve.reconstruct(both, strategy="linear")
    np.save(tmp_path / "one.npy", kspace()[1])
    one = Array(axes="coil,row,column", coil_maps=maps, real=False).open(tmp_path / "one.npy", invsolve.make)
    alone = invsolve.reconstruct(one, strategy="linear")
    scale = float(alone.mean.abs().max())
    assert float((result.mean[1] - alone.mean[0]).abs().max()) < 1e-3 * scale


def test_a_slice_without_anything_is_one_line(tmp_path: Path) -> None:
    values = kspace()
    values[1] = 0
    np.save(tmp_path / "k.npy", values)
    scan = Array(axes="slice,coil,row,column", real=False, coil_maps=torch.ones(4, READOUT, PHASE) + 0j)
    with pytest.raises(invsolve.UserError, match=r"no column of k-space is measured in slice 1: .*items="):
        invsolve.reconstruct(scan.open(tmp_path / "k.npy", invsolve.make), strategy="linear")
