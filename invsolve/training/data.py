"""The training images: one HDF5 dataset, read image by image, checked, and mapped to network units."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from invsolve import registry
from invsolve.contracts.measurement import Rows
from invsolve.datasets.hdf5 import dataset, fingerprint, open_readonly, read, text
from invsolve.errors import UserError
from invsolve.files.opening import open_images
from invsolve.training.axes import Axes, find_axes
from invsolve.training.settings import Settings

#: Below this an array is held in memory; above, each image is read when it is needed.
_MEMORY = 2 * 2**30
_LOOKED_AT = 256
_VALUES = 4096


class Images:
    """Images (C, *spatial) of one dataset, in physical units, float32; complex ones as real and imaginary channel.

    Args:
        path: the file; stays open read-only, and is read when an image is asked for unless it is small.
        settings: of these `dataset`, `axes`, `slice_axis`, `unit` and `phase`.

    Raises:
        UserError: unreadable, or its axes are unknown or look wrong.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.name = path, settings.dataset or "x"
        self._file: h5py.File | dict[str, h5py.Dataset] = {}
        self._data: h5py.Dataset | np.ndarray | _Rows
        self.complex: bool
        foreign = settings.layout is not None or _is_foreign(path)
        size = self._open_by_layout(settings) if foreign else self._open_hdf5(settings)
        axes = self.axes
        self.volumes = size[axes.item] if axes.item is not None else 1
        self.cuts = size[axes.cut] if axes.cut is not None else 1
        channels = size[axes.channel] if axes.channel is not None else 1
        self.spatial = tuple(size[k] for k in axes.space)
        # Magnitudes that are to be given phases are complex numbers without an imaginary part until then.
        self.magnitudes = bool(settings.phase) and not self.complex
        self.complex = self.complex or self.magnitudes
        self.shape = (channels * (2 if self.complex else 1), *self.spatial)
        if self.magnitudes and len(self.spatial) != 2:
            raise UserError(f"{self.where}: phase is for images of two dimensions; leave it out")

    def _open_hdf5(self, settings: Settings) -> tuple[int, ...]:
        self._open = ExitStack()
        path = self.path
        file = self._file = self._open.enter_context(open_readonly(path))
        if settings.dataset is None and "x" not in file:
            numbers = [n for n, d in file.items() if isinstance(d, h5py.Dataset) and d.ndim >= 3]
            hint = f"; name one, such as --dataset {numbers[0]}" if numbers else ""
            raise UserError(f"{path}: has no dataset 'x', but {', '.join(sorted(file)) or 'nothing'}{hint}")
        data = dataset(file, self.name)
        self.where = f"{path}: dataset {self.name!r} {data.shape}"
        if data.ndim < 2 or not data.size:
            raise UserError(f"{self.where}: expected (items, channels, rows, columns)")
        stored = text(data.attrs.get("axes", ""))
        self.axes = find_axes(self.where, data.shape, stored, settings.axes, settings.slice_axis, self.name == "x")
        self.unit = settings.unit
        if self.unit is None:
            self.unit = text(data.attrs.get("units", data.attrs.get("unit", file.attrs.get("unit", ""))))
        self.complex = data.dtype.kind == "c" or data.dtype.names is not None
        self.dtype = data.dtype
        self._data = read(data) if data.nbytes <= _MEMORY else data
        self.fingerprint = fingerprint(path)
        return tuple(data.shape)

    def _open_by_layout(self, settings: Settings) -> tuple[int, ...]:
        opened = open_images(self.path, settings.layout, settings.read)
        first = opened.x[0:1]
        size = (len(opened.x), *first.shape[1:])
        self.fingerprint = opened.fingerprint
        self.where = f"{self.path}: images {size}"
        self.axes = Axes(0, None, 1, tuple(range(2, len(size))))
        self.unit = opened.unit if settings.unit is None else settings.unit
        self.complex = first.is_complex()
        self.dtype = first.numpy().dtype
        rows = _Rows(opened.x, size)
        self._data = rows[(slice(None),)] if math.prod(size) * first.element_size() <= _MEMORY else rows
        return size

    def __len__(self) -> int:
        return self.volumes * self.cuts

    @property
    def in_memory(self) -> bool:
        return isinstance(self._data, np.ndarray)

    def read(self, index: int, window: Sequence[slice] | None = None) -> np.ndarray:
        """One image, or a window (one slice a spatial axis) of it: (C, *spatial) float32.

        Raises:
            UserError: it holds NaN or infinite values, or the file is damaged.
        """
        axes = self.axes
        selection: list[slice | int] = [slice(None)] * len(self._data.shape)
        for axis, part in zip(axes.space, window or [], strict=False):
            selection[axis] = part
        volume, cut = divmod(int(index), self.cuts)
        rest = [k for k in range(len(selection)) if k not in (axes.item, axes.cut)]
        if axes.item is not None:
            selection[axes.item] = volume
        if axes.cut is not None:
            selection[axes.cut] = cut
        at = tuple(selection)
        values = read(self._data, at) if isinstance(self._data, h5py.Dataset) else self._data[at]
        values = values[None] if axes.channel is None else np.moveaxis(values, rest.index(axes.channel), 0)
        if self.magnitudes:
            values = np.stack([values, np.zeros_like(values)], 1).reshape(-1, *values.shape[1:])
        elif self.complex:
            values = np.stack([values.real, values.imag], 1).reshape(-1, *values.shape[1:])
        image = np.ascontiguousarray(values, np.float32)
        if not np.isfinite(image).all():
            raise UserError(f"{self.where}: image {index} holds NaN or infinite values; mend or leave out that image")
        return image

    def labels(self, name: str) -> np.ndarray:
        """The label of each image, as text.

        Raises:
            UserError: no such dataset, or not one label an image (or a volume).
        """
        data = self._file.get(name)
        if not isinstance(data, h5py.Dataset) or data.ndim != 1:
            lists = [n for n, d in self._file.items() if isinstance(d, h5py.Dataset) and d.ndim == 1]
            raise UserError(
                f"{self.path}: has no one-dimensional dataset {name!r} of labels; it has {', '.join(lists) or 'none'}"
            )
        values = np.array([text(v) for v in data[()]])
        if len(values) == self.volumes:
            return np.repeat(values, self.cuts)
        if len(values) == len(self):
            return values
        raise UserError(f"{self.path}: {name!r} has {len(values)} labels for {len(self)} images")

    def select(self, where: str | None) -> np.ndarray:
        """Indices of the images that count: all, or those with "NAME=VALUE".

        Raises:
            UserError: malformed, or no image has that value.
        """
        if where is None:
            return np.arange(len(self))
        name, equals, value = where.partition("=")
        if not equals:
            raise UserError(f"where {where!r}: write NAME=VALUE, such as modality=CT")
        labels = self.labels(name)
        rows = np.flatnonzero(labels == value)
        if not len(rows):
            raise UserError(f"{self.path}: no image has {name} {value!r}; there are {', '.join(sorted({*labels})[:8])}")
        return rows


class _Rows:
    """Rows that a layout reads, indexed as an array: the first index is an item or a slice of them."""

    def __init__(self, rows: Rows, shape: tuple[int, ...]) -> None:
        self.rows, self.shape = rows, shape

    def __getitem__(self, at: tuple[slice | int, ...]) -> np.ndarray:
        first = at[0]
        if isinstance(first, slice):
            return self.rows[first].numpy()[(slice(None), *at[1:])]
        return self.rows[first : first + 1][0].numpy()[at[1:]]


def _is_foreign(path: Path) -> bool:
    """Whether a layout knows the file by name or first bytes, as what is no HDF5."""
    return path.exists() and any(cls.opens(path) for cls in registry.available("layout").values())  # type: ignore[attr-defined]


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]


def examine(images: Images, rows: np.ndarray, least: int = 4) -> tuple[np.ndarray, str]:
    """Look for bad data before anything is trained on it.

    Args:
        images: all of them are read when they are in memory, else 256 evenly spread ones.
        rows: the images that count.
        least: refuse fewer.

    Returns:
        A sample of the values, and a remark for the user, or "".

    Raises:
        UserError: too few images, NaN, or more than half of them constant.
    """
    if len(rows) < least:
        raise UserError(
            f"{images.where}: {len(rows)} images, expected at least {least}; give more"
            + (", or cut volumes with --slice-axis" if len(images.spatial) == 3 else "")
        )
    looked = rows if images.in_memory else spread(rows, _LOOKED_AT)
    sampled = set(spread(looked, _LOOKED_AT).tolist())
    constant, values = 0, []
    for row in looked.tolist():
        image = images.read(row)
        constant += bool(image.min() == image.max())
        if row in sampled:
            flat = np.hypot(image[0::2], image[1::2]).ravel() if images.complex else image.ravel()
            values.append(flat[:: max(1, flat.size // _VALUES)])
    pool = np.concatenate(values)
    if 2 * constant > len(looked):
        what = f"{constant} of {len(looked)} images are constant"
        raise UserError(f"{images.where}: {what}; is it the right dataset, and --slice-axis?")
    if pool.min() == pool.max():
        raise UserError(f"{images.where}: every image has the one value {pool[0]:g}; is it the right dataset?")
    note = f"{constant} of {len(looked)} images are constant (empty slices?); they are kept" if constant else ""
    return pool, note


def settle_range(images: Images, pool: np.ndarray, wanted: str) -> tuple[float, float, str]:
    """Physical values of network -1 and +1, and how they were found.

    Raises:
        UserError: malformed, or the data lie outside.
    """
    if wanted == "type" or (wanted == "auto" and images.dtype in (np.uint8, np.int8)):
        if images.dtype.kind not in "iu":
            raise UserError(f"{images.where}: --range type needs integers, these are {images.dtype}; give LOW:HIGH")
        limits = np.iinfo(images.dtype)
        return float(limits.min), float(limits.max), f"range of {images.dtype}"
    if wanted == "auto":
        low, high = (float(v) for v in np.quantile(pool, (0.001, 0.999)))
        if images.complex:
            return -high, high, "99.9 % of the magnitudes"
        if high <= low:
            low, high = float(pool.min()), float(pool.max())
        return low, high, "quantiles 0.1 % and 99.9 %"
    match = re.fullmatch(r"([^:]+):([^:]+)", wanted)
    try:
        low, high = (float(v) for v in match.groups()) if match else (0.0, 0.0)
    except ValueError:
        low, high = 0.0, 0.0
    if not low < high:
        raise UserError(f"--range {wanted!r}: write LOW:HIGH, such as -1000:2000, or auto, or type")
    outside = float(((pool < low) | (pool > high)).mean()) if not images.complex else float((pool > high).mean())
    if outside > 0.5:
        raise UserError(
            f"{images.where}: {outside:.0%} of the values lie outside --range {wanted}; they go from {pool.min():g} to "
            f"{pool.max():g}"
        )
    return low, high, "given"
