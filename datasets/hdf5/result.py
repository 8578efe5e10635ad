"""Result files, as they are written: the sink that survives a kill."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from invsolve.contracts.measurement import Rows
from invsolve.datasets.hdf5.resume import continue_partial
from invsolve.datasets.hdf5.writing import check_target, image_axes, replace, sync, to_numpy
from invsolve.errors import InUse, UserError

#: What a result file is, and the version of its layout: raised when a reader of the one before would misread it.
FORMAT = "invsolve-result/1"
#: Arrays that are images and lie at the root; everything else is a diagnostic.
IMAGES = {"mean": ("item", "channel"), "std": ("item", "channel"), "samples": ("item", "sample", "channel")}
IMAGES |= {"truth": ("item", "channel"), "linear": ("item", "channel")}
_ATTRIBUTE_LIMIT = 60_000
#: Bytes that groups, attributes and empty datasets take, and more.
_STRUCTURE = 65_536


def partial_path(path: str | Path) -> Path:
    """Where the unfinished result of this output path lies."""
    return Path(f"{path}.partial.h5")


class ResultFile:
    """A sink on `<path>.partial.h5`, renamed to `path` when all is done. An exception in its block keeps the partial.

    Every dataset is allocated in full, filled with NaN, before the first item is written, so that writing an item
    changes numbers in place and no structure: a kill at any moment leaves the other items as they are. Datasets:
    `mean`, `std`, `samples` (and `truth`, `linear` if given), `done` (N,), `items` (N,) with the input's item of each row,
    and in `diagnostics` every other array and fact. The attribute `input_items` is how many items the input has;
    `format` says what the file is and the version of its layout.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self.partial, self._file = path, partial_path(path), file
        self._done: np.ndarray = file["done"][:]
        self._first = int(file["items"][0])

    @classmethod
    def create(
        cls,
        path: str | Path,
        items: int | range,
        samples: int,
        provenance: dict[str, Any],
        overwrite: bool = False,
        unit: str = "",
        input_items: int | None = None,
    ) -> ResultFile:
        """Start a result, or continue the partial one of the same configuration.

        Args:
            path: the output.
            items: how many, or which of the input's: neighbours, such as range(10, 50).
            samples: S.
            provenance: the record of the run; `config_sha256`, `seed`, `versions` and `input` are used, all is stored.
            overwrite: replace an existing result (only when the new one is complete), and start anew where the
                partial one has another configuration or version, or cannot be read.
            unit: physical unit of the images.
            input_items: how many items the input has; default as many as there are.

        Raises:
            InUse: another process is writing it.
            UserError: the path cannot be written, exists, is in use, or its partial belongs to another configuration.
        """
        target, partial = Path(path), partial_path(path)
        check_target(target, (provenance.get("input") or {}).get("file"))
        if target.exists() and not overwrite:
            raise UserError(f"{target} exists; give --overwrite to replace it")
        which = range(items) if isinstance(items, int) else items
        file = continue_partial(partial, provenance, which, overwrite) if partial.exists() else None
        return cls(target, file or _start(partial, which, samples, provenance, unit, input_items or len(which)))

    def is_done(self, item: int) -> bool:
        """Whether the item (its number in the input) was written completely."""
        return bool(self._done[item - self._first])

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None:
        """Store a finished item: `mean`, `std` (C, *spatial), `samples` (S, C, *spatial), and whatever else."""
        row = item - self._first
        values = {_place(name): to_numpy(value) for name, value in arrays.items()}
        numbers = {f"diagnostics/{name}": np.float64(value) for name, value in facts.items()}
        try:
            if "mean" not in self._file:
                self._allocate(values, facts)
            for name, value in (values | numbers).items():
                if name not in self._file:
                    raise UserError(f"{self.partial}: was begun without {name!r}; give --overwrite to start anew")
                self._file[name][row] = value
            self._file.flush()
            self._file["done"][row] = True
            self._file.flush()
        except (OSError, RuntimeError, ValueError) as error:
            if (reason := _reason(error)) is None:
                raise
            raise UserError(
                f"{self.partial}: writing item {item} failed ({reason}); finished items are kept: make space, or mend the "
                "cause, and run the same command to go on"
            ) from None
        self._done[row] = True

    def finish(self, extra: Mapping[str, Rows | np.ndarray] | None = None) -> Path:
        """Give the complete result its final name.

        Args:
            extra: further datasets, (N, ...) each, such as `truth`. They cost a copy of the file: structure is not
                changed in the partial, where a kill could damage it.

        Raises:
            UserError: the partial was replaced by another process.
        """
        if not self._done.all():
            raise RuntimeError(f"{self.partial}: {int((~self._done).sum())} of {len(self._done)} items are not done")
        self._check_ours()
        whole, copy = self.partial, self.partial.with_name(f"{self.partial.name}.new")
        if extra:
            whole = copy
            with h5py.File(whole, "w") as file:
                copy_all(self._file, file)
                for name, rows in extra.items():
                    _add_rows(file, name, rows)
        self.close()
        replace(whole, self.path)
        for leftover in (self.partial, copy):
            leftover.unlink(missing_ok=True)
        return self.path

    def discard(self) -> None:
        """Close the partial file and remove it: for runs that failed before their first item."""
        self.close()
        self.partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; the partial stays."""
        self._file.close()

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _allocate(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, float]) -> None:
        """Make the datasets in a second file that then takes the partial's name: a kill leaves one or the other."""
        fresh = self.partial.with_name(f"{self.partial.name}.new")
        file = h5py.File(fresh, "w")
        try:
            copy_all(self._file, file)
            for name, value in arrays.items():
                allocate(file, name, len(self._done), value)
            for name in facts:
                allocate(file, f"diagnostics/{name}", len(self._done), np.float64(0))
            file.flush()
            self._check_ours()
            os.replace(fresh, self.partial)
        except BaseException:
            _drop(file, fresh)
            raise
        self._file.close()
        self._file = file

    def _check_ours(self) -> None:
        held = os.fstat(self._file.id.get_vfd_handle())
        there = os.stat(self.partial) if self.partial.exists() else None
        if there is None or (held.st_dev, held.st_ino) != (there.st_dev, there.st_ino):
            raise UserError(f"{self.partial}: was removed or replaced by another process; run one at a time")


def _place(name: str) -> str:
    return name if name in IMAGES else f"diagnostics/{name}"


def allocate(file: h5py.File, name: str, items: int, like: np.ndarray | np.generic) -> None:
    """Allocate one dataset; one chunk with a checksum per item, plain numbers for facts."""
    fill: Any = {"f": np.nan, "c": complex(np.nan, np.nan), "i": -2}.get(like.dtype.kind, 0)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_fill_value(np.array(fill, like.dtype))
    properties.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    if like.ndim:
        properties.set_chunk((1, *like.shape))
        properties.set_fletcher32()
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple((items, *like.shape))
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(like.dtype, logical=True), space, properties, links)
    if name in IMAGES:
        file[name].attrs["axes"] = image_axes(like.ndim + 1, *IMAGES[name])
        file[name].attrs["unit"] = file.attrs["unit"]


def _add_rows(file: h5py.File, name: str, rows: Rows | np.ndarray) -> None:
    for k in range(len(rows)):
        value = to_numpy(rows[k : k + 1])[0]
        if k == 0:
            allocate(file, name, len(rows), value)
        file[name][k] = value


def copy_all(source: h5py.File, target: h5py.File) -> None:
    """Copy every attribute and dataset."""
    for name, value in source.attrs.items():
        target.attrs[name] = value
    for name in source:
        source.copy(name, target)


def _start(
    partial: Path, items: range, samples: int, provenance: dict[str, Any], unit: str, input_items: int
) -> h5py.File:
    """A partial file with everything but the arrays, whose shapes the first item tells."""
    fresh = partial.with_name(f"{partial.name}.new")
    record = json.dumps(provenance, sort_keys=True, default=str)
    attributes = {
        "format": FORMAT,
        "invsolve_version": (provenance.get("versions") or {}).get("invsolve", ""),
        "seed": provenance.get("seed", -1),
        "samples": samples,
        "input_items": input_items,
        "config_sha256": provenance.get("config_sha256", ""),
        "input_fingerprint": (provenance.get("input") or {}).get("fingerprint", ""),
        "unit": unit,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        _reserve(partial, len(record) + len(items) * 16 + _STRUCTURE)
        file = h5py.File(fresh, "w")
    except BlockingIOError:
        raise InUse(f"{partial}: another process is starting it; wait for that one") from None
    except OSError as error:
        raise UserError(
            f"{partial}: cannot be written ({' '.join(str(error).split())}); make space or choose another folder"
        ) from None
    try:
        for name, value in attributes.items():
            file.attrs[name] = value
        if len(record) > _ATTRIBUTE_LIMIT:
            file["config"] = record
        else:
            file.attrs["config"] = record
        file["items"] = np.arange(items.start, items.stop)
        allocate(file, "done", len(items), np.bool_(False))
        file.flush()
        sync(fresh)
        os.replace(fresh, partial)
    except (OSError, RuntimeError, ValueError) as error:
        _drop(file, fresh)
        if (reason := _reason(error)) is None:
            raise
        raise UserError(f"{partial}: cannot be written ({reason}); make space or choose another folder") from None
    return file


def _reserve(partial: Path, size: int) -> None:
    """Fail where so many bytes do not fit: HDF5 cannot close a file whose first bytes could not be written."""
    with tempfile.TemporaryFile(dir=partial.parent) as probe:
        probe.write(bytes(size))
        probe.flush()
        os.fsync(probe.fileno())


def _reason(error: Exception) -> str | None:
    """Why the system refused to write; None where it was not the system. HDF5 says it in errors of several classes."""
    text = " ".join(str(error).split())
    told = re.search(r"error message = '([^']*)'", text)
    if isinstance(error, UserError) or not (isinstance(error, OSError) or told):
        return None
    return told[1] if told else text


def _drop(file: h5py.File, path: Path) -> None:
    """Close and remove a file that could not be written."""
    # Closing writes what is left, and fails again where the disk is full.
    with suppress(Exception):
        file.close()
    path.unlink(missing_ok=True)
