"""Layout "fastmri": one file per volume, centred k-space of one coil or several, as the fastMRI collection stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from invsolve.contracts.arguments import as_mask
from invsolve.contracts.measurement import Images
from invsolve.datasets.hdf5 import (
    LazyRows,
    WithChannel,
    dataset,
    fingerprint,
    open_readonly,
    read,
    stored_text,
    to_tensor,
)
from invsolve.datasets.mri.acquired import Acquired
from invsolve.datasets.mri.header import Header, parse_header
from invsolve.datasets.mri.kspace import KSpaceLayout
from invsolve.errors import UserError

_TRUTHS = ("reconstruction_rss", "reconstruction_esc")
_MAPS = ("coil_maps", "sensitivity_maps", "sens_maps")


class FastMRI(KSpaceLayout):
    """Cartesian k-space (slice, coil, readout, phase) or (slice, readout, phase), centred; items are slices.

    Columns outside the mask, and those that pad k-space beyond the header's encoding limits, are not measurements. Without a
    mask, columns of zeros are not, slice by slice; a mask (slices, columns) is one for each slice. The image is the orthonormal
    inverse transform, cut to the field of view of the header's reconSpace. As images: the stored reconstructions.
    """

    name = "fastmri"

    @classmethod
    def recognises(cls, file: Any) -> bool:
        kspace = file.get("kspace")
        return isinstance(kspace, h5py.Dataset) and kspace.ndim in (3, 4)

    def find(self, path: Path) -> Acquired:
        notes: list[str] = []
        missing: list[str] = []
        with open_readonly(path) as file:
            kspace = dataset(file, "kspace")
            if kspace.ndim not in (3, 4) or not kspace.size:
                raise UserError(
                    f"{path}: kspace {kspace.shape}: expected (slices, coils, readout, phase), or without coils"
                )
            if kspace.dtype.kind != "c" and kspace.dtype.names is None:
                raise UserError(f"{path}: kspace holds {kspace.dtype}, expected complex numbers; write it again")
            items, *coils, readout, phase = kspace.shape
            header = _header(file, path, missing)
            stated, within = _stated(file, path, kspace), _within(header, phase)
            truth = next((n for n in _TRUTHS if n in file), None)
            recon = None if header is None else header.kept((readout, phase))
            if header is not None and truth is not None and dataset(file, truth).shape[1:] == header.recon[:2]:
                # The collection's targets are cut by the matrix, whatever the fields of view are.
                recon = header.recon[:2]
            # Cut as the result will be; a target of another size cannot be compared with it.
            size = (
                (readout, phase) if recon is None or not self.crop else (min(readout, recon[0]), min(phase, recon[1]))
            )
            if truth is not None and dataset(file, truth).shape != (items, *size):
                notes.append(f"{truth} {file[truth].shape} is not used: the images here are {(items, *size)}")
                truth = None
            maps = next((n for n in _MAPS if n in file), None)
            if maps is not None and dataset(file, maps).shape != kspace.shape:
                raise UserError(f"{path}: {maps} {file[maps].shape} does not fit kspace {kspace.shape}; write it again")
        stored, lazy = LazyRows(path, "kspace"), None if maps is None else LazyRows(path, maps)

        def one(rows: LazyRows, item: int) -> np.ndarray:
            return rows[item : item + 1][0].numpy().reshape(-1, readout, phase)

        def recorded(item: int) -> np.ndarray:
            """The columns that hold something, padding included."""
            if stated is not None:
                return stated[item if len(stated) > 1 else 0]
            return (one(stored, item) != 0).any((0, 1))

        padded = int((recorded(0) & ~within).sum())
        if padded:
            notes.append(f"{padded} padded columns outside the encoding limits are not measurements")
        return Acquired(
            read=lambda item: one(stored, item),
            items=items,
            coils=coils[0] if coils else 1,
            matrix=(readout, phase),
            mask=lambda item: recorded(item) & within,
            recon=recon,
            maps=None if lazy is None else lambda item: one(lazy, item),
            truth=WithChannel(LazyRows(path, truth)) if truth is not None else None,
            notes=notes,
            missing=missing,
        )

    def images(self, path: Path) -> Images:
        with open_readonly(path) as file:
            name = next((n for n in _TRUTHS if n in file), None)
            if name is None:
                raise UserError(
                    f"{path}: has no {' or '.join(_TRUTHS)} (test files have none); reconstruct its k-space instead"
                )
            ndim = dataset(file, name).ndim
        if ndim != 3:
            raise UserError(f"{path}: {name} has {ndim} axes, expected (slices, rows, columns); write it again")
        return Images(WithChannel(LazyRows(path, name)), "a.u.", source=str(path), fingerprint=fingerprint(path))


def _header(file: h5py.File, path: Path, missing: list[str]) -> Header | None:
    if "ismrmrd_header" not in file:
        missing.append("ismrmrd_header: without it nothing is cropped, and columns of zeros count as not measured")
        return None
    return parse_header(stored_text(file, "ismrmrd_header"), f"{path}: ismrmrd_header")


def _stated(file: h5py.File, path: Path, kspace: h5py.Dataset) -> np.ndarray | None:
    """The file's mask, (1, columns) or (slices, columns); None where it has none.

    Raises:
        UserError: its shape is another, or it has more values than two.
    """
    if "mask" not in file:
        return None
    slices, columns = len(kspace), kspace.shape[-1]
    stored = read(dataset(file, "mask"))
    if stored.size not in (columns, slices * columns) or columns not in stored.shape:
        raise UserError(
            f"{path}: mask {stored.shape} has {stored.size} entries, kspace {kspace.shape} has {columns} columns; write it again"
        )
    return as_mask(to_tensor(stored), str(path)).numpy().reshape(-1, columns)


def _within(header: Header | None, columns: int) -> np.ndarray:
    """The columns (columns,) within the header's encoding limits; the others are padding."""
    limits = None if header is None or header.encoded[1] != columns else header.columns(columns)
    within = np.ones(columns, bool) if limits is None else np.zeros(columns, bool)
    if limits is not None:
        within[limits[0] : limits[1]] = True
    return within
