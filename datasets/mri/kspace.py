"""What Cartesian MRI layouts share: from centred k-space and a header to a Measurement; a layout says where lines are."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.layout import Layout, Make, make_for
from invsolve.contracts.measurement import Measurement, Rows
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import Operator
from invsolve.datasets.hdf5 import fingerprint, to_tensor
from invsolve.datasets.mri.coil_maps import absorb_phase, calibration_region, espirit
from invsolve.errors import UserError

_LOOKED_AT = 3
# Median of the modulus of a complex normal number whose parts have standard deviation 1.
_RAYLEIGH_MEDIAN = 1.1774
_MAPS_KEPT = 2
_MASKS_KEPT = 64


@dataclass
class Acquired:
    """Where a file keeps what.

    Attributes:
        read: k-space of one item, complex (coils, readout, phase), centred, zero where nothing was measured.
        items, coils: how many.
        matrix: readout and phase points.
        mask: what was measured of one item, boolean: (phase,) where that is whole columns, else (readout, phase).
        recon: rows and columns of the image that the scanner makes, if the file says.
        maps: coil maps of one item, if the file has them.
        truth: (items, 1, rows, columns), if the file has it.
        sigma: noise standard deviation of each part, if the file tells (noise scans).
        calibration: k-space of one item with lines that serve calibration alone, and its mask.
        notes, missing: one line each.
    """

    read: Callable[[int], np.ndarray]
    items: int
    coils: int
    matrix: tuple[int, int]
    mask: Callable[[int], np.ndarray]
    recon: tuple[int, int] | None = None
    maps: Callable[[int], np.ndarray] | None = None
    truth: Rows | None = None
    sigma: float | None = None
    calibration: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class KSpaceLayout(Layout):
    """Cartesian k-space; items are slices, y (slices, coils, rows, columns) complex, rows along the readout.

    Class attributes:
        picked_by: the option that chooses among the slices.
    """

    picked_by: ClassVar[str] = "slices"

    def __init__(
        self,
        slices: list[int] | None = None,
        coil_maps: Tensor | None = None,
        calibration: int = 24,
        real: bool = True,
        crop: bool = True,
        acceleration: float | None = None,
        centre_fraction: float = 0.08,
        seed: int = 0,
    ) -> None:
        """Reading options.

        Args:
            slices: [start, stop) of the slices (items); default all.
            coil_maps: complex (coils, rows, columns), or (slices, coils, rows, columns); default the file's, else calibrated
                from the centre of k-space (ESPIRiT).
            calibration: points along each side of that centre that are used, if measured.
            real: put the phase of the image, seen at low resolution, into the coil maps, so that the image is nearly real
                and positive, as priors of one channel want it.
            crop: cut readout oversampling off, and the result down to the scanner's reconstructed field of view.
            acceleration: keep 1 in so many of the measured columns, at random, to try sparser scans.
            centre_fraction: part of the columns around the centre that is kept then.
            seed: of the random columns.
        """
        if calibration < 8:
            raise UserError(f"layout {self.name!r}: calibration must be 8 points or more, got {calibration}")
        if acceleration is not None and not acceleration >= 1:
            raise UserError(f"layout {self.name!r}: acceleration must be at least 1, got {acceleration}")
        self.slices, self.coil_maps, self.calibration, self.real = slices, coil_maps, calibration, real
        self.crop, self.acceleration, self.centre_fraction, self.seed = crop, acceleration, centre_fraction, seed

    def find(self, path: Path) -> Acquired:
        """Say where the file keeps what.

        Raises:
            UserError: something is missing or contradictory.
        """
        raise NotImplementedError

    def open(self, path: Path, make: Make) -> Measurement:
        path = Path(path)
        acquisition = self.find(path)
        notes = acquisition.notes
        start, stop = (
            (0, acquisition.items) if self.slices is None else (self.slices if len(self.slices) == 2 else (-1, -1))
        )
        if not 0 <= start < stop <= acquisition.items:
            raise UserError(f"{path}: slices={self.slices} must be [start, stop) within the {acquisition.items} slices")
        rows = acquisition.matrix[0]
        by_columns = acquisition.mask(start).ndim == 1
        if self.crop and acquisition.recon is not None and acquisition.recon[0] < rows and by_columns:
            rows = acquisition.recon[0]
            notes.append(f"readout of {acquisition.matrix[0]} points cut to {rows}, the reconstructed field of view")
        y = _Slices(acquisition, lru_cache(_MASKS_KEPT)(self._masks(acquisition, path)), rows, start, stop)
        self._tell(y, notes)
        sigma = acquisition.sigma or _edge_sigma(y, path)
        how = (
            "from the noise scans"
            if acquisition.sigma
            else "from the corners of k-space; noise scans are not in the file"
        )
        notes.append(f"noise sigma {sigma:.4g}, {how}")
        if not acquisition.sigma:
            acquisition.missing.append(
                f"noise level: taken from the corners of k-space, {sigma:.4g}; --noise gaussian:SIGMA fixes it"
            )
        operators = _Operators(self, path, make_for(path, make), y, sigma, notes, acquisition.missing)
        return Measurement(
            y=y,
            operator=operators(0),
            noise=Gaussian(sigma),
            truth=_Part(acquisition.truth, start, stop) if acquisition.truth is not None else None,
            unit="a.u.",
            source=str(path),
            fingerprint=self._fingerprint(path),
            notes=notes,
            missing=acquisition.missing,
            axes="slice coil readout phase",
            operators=operators if stop - start > 1 else None,
            region=_region((rows, acquisition.matrix[1]), acquisition.recon) if self.crop else None,
        )

    def _masks(self, acquisition: Acquired, path: Path) -> Callable[[int], np.ndarray]:
        """What is taken for measured of an item of the file: what the file says, and of that what `acceleration` keeps."""

        def mask(item: int) -> np.ndarray:
            measured = acquisition.mask(item).astype(bool)
            if not measured.any():
                raise UserError(
                    f"{path}: no column of k-space is measured in slice {item}: the mask or k-space is all zero there; leave it "
                    f"out with {self.picked_by}="
                )
            if self.acceleration is None:
                return measured
            return measured & _sparser(_columns(measured), self.acceleration, self.centre_fraction, self.seed)

        return mask

    def _tell(self, y: _Slices, notes: list[str]) -> None:
        """Note how many columns are measured, by the first slice: of the others the data may not have been read yet."""
        columns = _columns(y.acquisition.mask(y.start))
        notes.append(f"{int(columns.sum())} of {len(columns)} k-space columns measured, {y.acquisition.coils} coils")
        if self.acceleration is not None:
            kept = _columns(y.mask(0))
            notes.append(f"{int(kept.sum())} of these columns kept, for acceleration={self.acceleration:g}")

    def _fingerprint(self, path: Path) -> str:
        options = {k: v.numpy().tobytes() if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        digest = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()
        return f"{fingerprint(path)}+options:{digest[:16]}"


@dataclass(frozen=True)
class _Slices:
    """k-space of the items (slices, coils, rows, columns), read when sliced; masked, and cut along the readout."""

    acquisition: Acquired
    masks: Callable[[int], np.ndarray]
    rows: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, rows: slice, /) -> Tensor:
        picked = range(*rows.indices(len(self)))
        if not picked:
            return torch.empty(0, self.acquisition.coils, self.rows, self.acquisition.matrix[1], dtype=torch.complex64)
        read = self.acquisition.read
        return to_tensor(np.stack([self.cut(read(self.start + item)) * self.mask(item) for item in picked]))

    def mask(self, item: int) -> np.ndarray:
        """What is measured of one of these items, (columns,) or (rows, columns)."""
        return self.masks(self.start + item)

    def cut(self, kspace: np.ndarray) -> np.ndarray:
        """Keep the middle of the field of view along the readout: exact, as readout lines are measured whole."""
        if self.rows == kspace.shape[1]:
            return kspace
        lines = self.middle(np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, 1), axis=1, norm="ortho"), 1))
        return np.fft.fftshift(np.fft.fft(np.fft.ifftshift(lines, 1), axis=1, norm="ortho"), 1)

    def middle(self, image: np.ndarray) -> np.ndarray:
        """The rows of (coils, rows, columns) that are kept: the zero frequency's centre stays the centre."""
        first = image.shape[1] // 2 - self.rows // 2
        return image[:, first : first + self.rows]


class _Part:
    """Rows start..stop of others."""

    def __init__(self, rows: Rows, start: int, stop: int) -> None:
        self.rows, self.start, self.stop = rows, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, rows: slice, /) -> Tensor:
        first, last, step = rows.indices(len(self))
        return self.rows[self.start + first : self.start + max(first, last) : step]


class _Operators:
    """The operator "mri" of each item, with its coil maps; the last two are kept."""

    def __init__(
        self,
        layout: KSpaceLayout,
        path: Path,
        make: Make,
        y: _Slices,
        sigma: float,
        notes: list[str],
        missing: list[str],
    ) -> None:
        self.layout, self.path, self.make = layout, path, make
        self.y, self.sigma = y, sigma
        coils = y.acquisition.coils
        self.size = (y.rows, y.acquisition.matrix[1])
        self.kept: OrderedDict[int, Operator] = OrderedDict()
        maps = layout.coil_maps
        if maps is not None:
            notes.append("coil maps given")
            allowed = ((coils, *self.size), (y.acquisition.items, coils, *self.size))
            if not maps.is_complex() or tuple(maps.shape) not in allowed:
                raise UserError(
                    f"{path}: coil_maps {maps.dtype} {tuple(maps.shape)}: expected complex {allowed[0]}, or with the "
                    f"{y.acquisition.items} slices in front"
                )
        elif y.acquisition.maps is not None:
            notes.append("coil maps from the file")
        elif coils > 1:
            notes.append("coil maps calibrated from the centre of k-space (ESPIRiT)")
            missing.append("coil maps: calibrated from the centre of k-space; --read coil_maps=MAPS.npy gives others")

    def __call__(self, item: int) -> Operator:
        if item not in self.kept:
            mask = self.y.mask(item)
            parameters: dict[str, Any] = {"mask": torch.from_numpy(mask)}
            maps = self._maps(item)
            if maps is None:
                parameters["mask"] = torch.from_numpy(np.broadcast_to(mask, self.size).copy())
            else:
                parameters["coil_maps"] = torch.from_numpy(np.ascontiguousarray(maps, np.complex64))
            self.kept[item] = self.make("mri", **parameters)
            while len(self.kept) > _MAPS_KEPT:
                self.kept.popitem(last=False)
        return self.kept[item]

    def _maps(self, item: int) -> np.ndarray | None:
        coil_maps, acquisition = self.layout.coil_maps, self.y.acquisition
        maps: np.ndarray | None = None
        if coil_maps is not None:
            maps = (coil_maps if coil_maps.ndim == 3 else coil_maps[self.y.start + item]).numpy()
        elif acquisition.maps is not None:
            maps = self.y.middle(acquisition.maps(self.y.start + item))
        elif acquisition.coils == 1:
            if not self.layout.real:
                return None
            maps = np.ones((1, *self.size), np.complex64)
        if maps is not None and not self.layout.real:
            return maps
        kspace, mask = self.y[item : item + 1][0].numpy(), np.broadcast_to(self.y.mask(item), self.size)
        if acquisition.calibration is not None:
            kspace, mask = acquisition.calibration(self.y.start + item)
            if self.y.rows != len(mask):
                kspace, mask = self.y.cut(kspace), np.asarray(mask.all(0))
            mask = np.broadcast_to(mask, self.size)
        centre = calibration_region(kspace, mask, self.layout.calibration, str(self.path))
        if maps is None:
            maps = espirit(centre, self.size, self.sigma).maps
        return absorb_phase(maps, centre) if self.layout.real else maps


def _edge_sigma(y: _Slices, path: Path) -> float:
    """Standard deviation of each part of the noise, where k-space holds least signal: its corners."""
    picked = np.unique(np.linspace(0, len(y) - 1, min(len(y), _LOOKED_AT)).round().astype(int))
    levels = []
    for item in picked.tolist():
        kspace = y.acquisition.read(y.start + item)
        if not np.isfinite(kspace).all():
            count = int((~np.isfinite(kspace)).sum())
            raise UserError(
                f"{path}: k-space has {count} NaN or infinite values in slice {y.start + item}; leave it out with slices="
            )
        measured = np.broadcast_to(y.mask(item), kspace.shape[1:]) & (np.abs(kspace).sum(0) > 0)
        corner = measured & _outer(measured.any(1), 0.9)[:, None] & _outer(measured.any(0), 0.5)
        values = np.abs(kspace[:, corner if corner.any() else measured])
        if values.size:
            levels.append(np.median(values, axis=1) / _RAYLEIGH_MEDIAN)
    level = float(np.sqrt(np.mean(np.square(levels)))) if levels else 0.0
    if not level > 0:
        raise UserError(
            f"{path}: the measured k-space is zero in slices {picked.tolist()}; leave them out with slices="
        )
    return level


def where_not_zero(kspace: np.ndarray) -> np.ndarray:
    """What was measured, where a file says nothing else than that the rest is zero in every coil.

    Args:
        kspace: of one item, (coils, readout, phase).

    Returns:
        (phase,) where all but 1 % of the points of columns that hold anything do, as a number may happen to be zero; else
        (readout, phase).
    """
    measured: np.ndarray = (kspace != 0).any(0)
    columns = measured.any(0)
    by_columns = bool(columns.any()) and float(measured[:, columns].mean()) > 0.99
    return np.asarray(columns) if by_columns else measured


def in_columns(masks: Sequence[np.ndarray]) -> bool:
    """Whether each of these (readout, phase) masks is whole columns."""
    return all(bool((mask == mask[:1]).all()) for mask in masks)


def _columns(mask: np.ndarray) -> np.ndarray:
    """The columns of which anything is measured, (phase,)."""
    return np.asarray(np.atleast_2d(mask).any(0))


def _outer(measured: np.ndarray, part: float) -> np.ndarray:
    """The lines farthest from the centre of k-space, beyond this part of the farthest."""
    distance = np.abs(np.arange(len(measured)) - len(measured) // 2)
    return measured & (distance >= part * distance[measured].max(initial=0))


def _sparser(columns: np.ndarray, acceleration: float, centre_fraction: float, seed: int) -> np.ndarray:
    count = len(columns)
    half = max(round(count * centre_fraction) // 2, 2)
    keep = np.zeros(count, bool)
    keep[count // 2 - half : count // 2 + half] = True
    keep &= columns
    others = np.flatnonzero(columns & ~keep)
    number = max(round(columns.sum() / acceleration) - int(keep.sum()), 0)
    keep[np.random.default_rng(seed).permutation(others)[:number]] = True
    return keep


def _region(size: tuple[int, int], recon: tuple[int, int] | None) -> tuple[tuple[int, int], ...] | None:
    """The middle part of an image, as fastMRI cuts it; None when that is all of it."""
    if recon is None:
        return None
    part = [min(n, r) for n, r in zip(size, recon, strict=True)]
    if tuple(part) == size:
        return None
    return tuple(((n - k) // 2, (n - k) // 2 + k) for n, k in zip(size, part, strict=True))
