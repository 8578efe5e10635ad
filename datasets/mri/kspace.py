"""What Cartesian MRI layouts share: from centred k-space and a header to a Measurement; a layout says where lines are."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from invsolve.datasets.mri.masks import columns_of, sparser
from invsolve.datasets.mri.noise import AS_THEY_ARE, CoilNoise, Whitening, estimate_noise, left_alone, whitening
from invsolve.errors import UserError

_LOOKED_AT = 3
# Part of the object that may see two places of it, as near an edge.
_FOLDED = 0.05
# Echoes come a point or two early or late.
_OFF_CENTRE = 2
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
        noise: of the coils, if the file tells (noise scans).
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
    noise: CoilNoise | None = None
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
        whiten: bool = True,
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
            whiten: bring coils of unequal or correlated noise to white noise of one level.
        """
        if calibration < 8:
            raise UserError(f"layout {self.name!r}: calibration must be 8 points or more, got {calibration}")
        if acceleration is not None and not acceleration >= 1:
            raise UserError(f"layout {self.name!r}: acceleration must be at least 1, got {acceleration}")
        self.slices, self.coil_maps, self.calibration, self.real = slices, coil_maps, calibration, real
        self.crop, self.acceleration, self.centre_fraction, self.seed = crop, acceleration, centre_fraction, seed
        self.whiten = whiten

    def find(self, path: Path) -> Acquired:
        """Say where the file keeps what.

        Raises:
            UserError: something is missing or contradictory.
        """
        raise NotImplementedError

    # What is not finite is looked for in the outcome, and named with its slice.
    @np.errstate(all="ignore")
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
        noise = acquisition.noise or _noise(y, path)
        how = (
            "from the noise scans"
            if acquisition.noise
            else "where there is least signal; noise scans are not in the file"
        )
        white = whitening(noise) if self.whiten else left_alone(noise)
        y = replace(y, white=white)
        notes += [f"noise sigma {white.sigma:.4g}, {how}", *white.notes]
        if line := _peak(y):
            notes.append(line)
        if not acquisition.noise:
            acquisition.missing.append(
                f"noise level: estimated where there is least signal, {white.sigma:.4g}; --noise gaussian:SIGMA fixes it"
            )
        operators = _Operators(self, path, make_for(path, make), y, notes, acquisition.missing)
        return Measurement(
            y=y,
            operator=operators(0),
            noise=Gaussian(white.sigma),
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
            return measured & sparser(columns_of(measured), self.acceleration, self.centre_fraction, self.seed)

        return mask

    def _tell(self, y: _Slices, notes: list[str]) -> None:
        """Note how many columns are measured, by the first slice: of the others the data may not have been read yet."""
        columns = columns_of(y.acquisition.mask(y.start))
        notes.append(f"{int(columns.sum())} of {len(columns)} k-space columns measured, {y.acquisition.coils} coils")
        if self.acceleration is not None:
            kept = columns_of(y.mask(0))
            notes.append(f"{int(kept.sum())} of these columns kept, for acceleration={self.acceleration:g}")

    def _fingerprint(self, path: Path) -> str:
        options = {k: v.numpy().tobytes() if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        digest = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()
        return f"{fingerprint(path)}+options:{digest[:16]}"


@dataclass(frozen=True)
class _Slices:
    """k-space of the items (slices, coils, rows, columns), read when sliced; masked, cut along the readout, and white."""

    acquisition: Acquired
    masks: Callable[[int], np.ndarray]
    rows: int
    start: int
    stop: int
    white: Whitening = AS_THEY_ARE

    def __len__(self) -> int:
        return self.stop - self.start

    @np.errstate(all="ignore")
    def __getitem__(self, rows: slice, /) -> Tensor:
        picked = range(*rows.indices(len(self)))
        if not picked:
            return torch.empty(0, self.coils, self.rows, self.acquisition.matrix[1], dtype=torch.complex64)
        return to_tensor(np.stack([self.white(self.raw(item)) for item in picked]))

    @property
    def coils(self) -> int:
        """How many there are once they are white."""
        return self.acquisition.coils if self.white.matrix is None else len(self.white.matrix)

    def raw(self, item: int) -> np.ndarray:
        """K-space of one of these items with its coils as they are."""
        return self.cut(self.acquisition.read(self.start + item)) * self.mask(item)

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
        notes: list[str],
        missing: list[str],
    ) -> None:
        self.layout, self.path, self.make = layout, path, make
        self.y, self.notes = y, notes
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

    @np.errstate(all="ignore")
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
        coil_maps, acquisition, white = self.layout.coil_maps, self.y.acquisition, self.y.white
        maps: np.ndarray | None = None
        if coil_maps is not None:
            maps = white((coil_maps if coil_maps.ndim == 3 else coil_maps[self.y.start + item]).numpy())
        elif acquisition.maps is not None:
            maps = white(self.y.middle(acquisition.maps(self.y.start + item)))
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
            kspace, mask = white(kspace), np.broadcast_to(mask, self.size)
        centre = calibration_region(kspace, mask, self.layout.calibration, str(self.path))
        if maps is None:
            calibrated = espirit(centre, self.size, white.sigma)
            self._tell_folded(calibrated.folded(), item)
            maps = calibrated.maps
            # The image is that of the coils as they are, whose root sum of squares it then has.
            maps = maps / np.maximum(white.lengths(maps), np.finfo(np.float32).tiny)
        return absorb_phase(maps, centre) if self.layout.real else maps

    def _tell_folded(self, part: float, item: int) -> None:
        # Only what is found when the file is opened gets into the record.
        if part > _FOLDED and item == 0:
            self.notes.append(
                f"the object is larger than the field of view: {part:.0%} of its pixels see two places of it (they need two sets "
                "of coil maps, here is one), so the image is wrong where it folds over; encode a larger field of view"
            )


def _noise(y: _Slices, path: Path) -> CoilNoise:
    """The noise of the coils, by the data of a few slices.

    Raises:
        UserError: they hold NaN, or nothing.
    """
    picked = np.unique(np.linspace(0, len(y) - 1, min(len(y), _LOOKED_AT)).round().astype(int)).tolist()
    parts = []
    for item in picked:
        kspace = y.raw(item)
        if not np.isfinite(kspace).all():
            count = int((~np.isfinite(kspace)).sum())
            raise UserError(
                f"{path}: k-space has {count} NaN or infinite values in slice {y.start + item}; leave it out with slices="
            )
        parts.append(estimate_noise(kspace, np.broadcast_to(y.mask(item), kspace.shape[1:])))
    count = sum(part.count for part in parts)
    if not count:
        raise UserError(f"{path}: the measured k-space is zero in slices {picked}; leave them out with slices=")
    weighted = [part.count / count * part.covariance for part in parts]
    return CoilNoise(np.sum(weighted, axis=0), count)


def _peak(y: _Slices) -> str:
    """A line where the energy of k-space, of the first slice, is not at its centre; else empty."""
    kspace = y.acquisition.read(y.start) * y.acquisition.mask(y.start)
    energy = (np.abs(kspace) ** 2).sum(0)
    peak = [int(v) for v in np.unravel_index(int(energy.argmax()), energy.shape)]
    centre = [n // 2 for n in energy.shape]
    if max(abs(a - b) for a, b in zip(peak, centre, strict=True)) <= _OFF_CENTRE:
        return ""
    return (
        f"the energy of k-space peaks at {peak}, not at its centre {centre}: the image has a phase that turns along it, and "
        "coil maps are calibrated beside the peak; shift k-space, or mend the centre in the header"
    )


def _region(size: tuple[int, int], recon: tuple[int, int] | None) -> tuple[tuple[int, int], ...] | None:
    """The middle part of an image, as fastMRI cuts it; None when that is all of it."""
    if recon is None:
        return None
    part = [min(n, r) for n, r in zip(size, recon, strict=True)]
    if tuple(part) == size:
        return None
    return tuple(((n - k) // 2, (n - k) // 2 + k) for n, k in zip(size, part, strict=True))
