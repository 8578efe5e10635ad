"""What MATLAB's files of version 7.3 are as HDF5: axes in reverse, complex numbers in pairs, empty arrays by their size."""

from __future__ import annotations

from typing import Any

from invsolve.datasets.hdf5.reading import members
from invsolve.errors import UserError


def is_matlab(dset: Any) -> bool:
    """Whether an HDF5 dataset was written by MATLAB."""
    return "MATLAB_class" in dset.attrs


def written_by_matlab(file: Any) -> bool:
    """Whether an open `h5py.File` holds a variable of MATLAB's at its root; what cannot be opened is none."""
    return any(is_matlab(member) for _, member in members(file))


def matlab_notes(dset: Any) -> list[str]:
    """What a reader of a dataset should know; nothing where MATLAB did not write it.

    Args:
        dset: an open `h5py.Dataset`.

    Raises:
        UserError: the array is empty in MATLAB; its size is stored in place of numbers.
    """
    if not is_matlab(dset):
        return []
    if dset.attrs.get("MATLAB_empty", 0):
        raise UserError(
            f"{dset.file.filename}: dataset {dset.name!r} is empty in MATLAB; save it again with its values"
        )
    theirs = " x ".join(map(str, reversed(dset.shape)))
    ours = " x ".join(map(str, dset.shape))
    return [
        f"MATLAB stores axes in reverse: its {theirs} is {ours} in the file, and axes= names them in the file's order"
    ]
