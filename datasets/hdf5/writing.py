"""Writing files so that none ever stands half-written under its final name; checking the target beforehand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from invsolve.errors import UserError

#: Bytes of a name that file systems hold, and of what is added to an output's while it is written.
_LONGEST, _ADDED = 255, 32
_SPATIAL = {1: "position", 2: "row column", 3: "depth row column"}


def check_name(path: Path) -> None:
    """Refuse an output name so long that those of the unfinished files beside it could not be made.

    Raises:
        UserError: it is.
    """
    length = len(os.fsencode(path.name))
    if length > _LONGEST - _ADDED:
        raise UserError(
            f"{path.name[:60]}...: the output's name has {length} bytes, expected at most {_LONGEST - _ADDED}, as names of "
            "unfinished files are longer; shorten it"
        )


def check_target(path: Path, input_file: str | Path | None = None) -> None:
    """Refuse an output path that cannot or must not be written.

    Raises:
        UserError: it is a folder or the input, its folder is missing, or that is not writable.
    """
    folder = path.parent
    check_name(path)
    if path.is_dir():
        raise UserError(
            f"{path}: is a folder, expected the name of a file to write; add a name such as {path / 'out.h5'}"
        )
    if not folder.is_dir():
        raise UserError(f"{path}: the folder {folder} does not exist; make it first (mkdir -p {folder})")
    if input_file and path.exists() and Path(input_file).exists() and os.path.samefile(path, input_file):
        raise UserError(f"{path}: is the input itself, which is never written to; give another output name")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path}: the folder {folder} is not writable; choose another or change its permissions")


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(temporary: Path, path: Path) -> None:
    """Give a closed file its final name, in one step that survives a power cut."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


@contextmanager
def atomic(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file that appears under its name only when the block ends well; the name's old file stays until then.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            yield file
        replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({' '.join(str(error).split())}); check space and permissions"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def to_numpy(value: Any) -> np.ndarray:
    """A tensor or anything array-like as an array that HDF5 can hold."""
    if isinstance(value, Tensor):
        host = value.detach().cpu().resolve_conj()
        return (host.float() if host.dtype.is_floating_point and host.element_size() < 4 else host).numpy()
    return np.asarray(value)


def image_axes(ndim: int, *leading: str) -> str:
    """Axis names of an array of images, such as "item channel row column"."""
    spatial = ndim - len(leading)
    names = _SPATIAL.get(spatial) or " ".join(f"axis{k}" for k in range(spatial))
    return " ".join([*leading, names]).strip()
