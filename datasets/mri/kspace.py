"""What Cartesian MRI layouts share: from centred k-space and a header to a Measurement; a layout says where lines are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from invsolve.contracts.layout import Layout, Make, make_for
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Gaussian
from invsolve.datasets.hdf5 import fingerprint
from invsolve.datasets.mri.acquired import Acquired, Part, Slices
from invsolve.datasets.mri.compression import compressed
from invsolve.datasets.mri.masks import columns_of, sparser
from invsolve.datasets.mri.noise import CoilNoise, estimate_noise, left_alone, whitening
from invsolve.datasets.mri.operators import Operators
from invsolve.errors import UserError
from invsolve.operators.mri.masks import Pattern, kspace_mask

_LOOKED_AT = 3
# Echoes come a point or two early or late.
_OFF_CENTRE = 2
_MASKS_KEPT = 64


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
        mask: Pattern | None = None,
        coils: int | None = None,
        dynamic: bool = False,
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
            mask: keep the points of a pattern with that acceleration instead, such as "poisson-disc"
                (`invsolve.kspace_mask`); frames of a dynamic scan interleave.
            coils: compress the coils, once they are white, to so many virtual ones.
            dynamic: items are frames of a moving object: those of one place share coil maps, calibrated from all of them.
        """
        if calibration < 8:
            raise UserError(f"layout {self.name!r}: calibration must be 8 points or more, got {calibration}")
        if acceleration is not None and not acceleration >= 1:
            raise UserError(f"layout {self.name!r}: acceleration must be at least 1, got {acceleration}")
        self.slices, self.coil_maps, self.calibration, self.real = slices, coil_maps, calibration, real
        self.crop, self.acceleration, self.centre_fraction, self.seed = crop, acceleration, centre_fraction, seed
        if mask is not None and acceleration is None:
            raise UserError(f"layout {self.name!r}: mask={mask} keeps points by acceleration=; give it")
        self.whiten, self.mask, self.coils, self.dynamic = whiten, mask, coils, dynamic

    def find(self, path: Path) -> Acquired:
        """Say where the file keeps what.

        Raises:
            UserError: something is missing or contradictory.
        """
        raise NotImplementedError

    def open(self, path: Path, make: Make) -> Measurement:
        path = Path(path)
        return self.sliced(path, make, self.find(path))

    # What is not finite is looked for in the outcome, and named with its slice.
    @np.errstate(all="ignore")
    def sliced(self, path: Path, make: Make, acquisition: Acquired) -> Measurement:
        """The measurement of what was found."""
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
        masks = lru_cache(_MASKS_KEPT)(self._masks(acquisition, path, rows, (start, stop)))
        y = Slices(acquisition, masks, rows, start, stop)
        self._tell(y, notes)
        noise = acquisition.noise or _noise(y, path)
        how = (
            "from the noise scans"
            if acquisition.noise
            else "where there is least signal; noise scans are not in the file"
        )
        white = whitening(noise) if self.whiten else left_alone(noise)
        y = replace(y, white=white)
        if self.coils is not None:
            try:
                white = compressed(white, (white(y.raw(item)) for item in _looked_at(y)), self.coils)
            except ValueError as error:
                raise UserError(f"{path}: {error}") from None
            y = replace(y, white=white)
        notes += [f"noise sigma {white.sigma:.4g}, {how}", *white.notes]
        if noise.doubt:
            notes.append(
                f"the noise level may be far too high, since signal may be wherever it was looked for: {noise.doubt}; give the "
                "level of a noise scan, --noise gaussian:SIGMA"
            )
        if line := _peak(y):
            notes.append(line)
        if not acquisition.noise:
            acquisition.missing.append(
                f"noise level: estimated where there is least signal, {white.sigma:.4g}; --noise gaussian:SIGMA fixes it"
            )
        volumes = acquisition.places if self.dynamic else acquisition.volumes
        options = (self.coil_maps, self.calibration, self.real, self.dynamic)
        operators = Operators(path, make_for(path, make), y, notes, acquisition.missing, *options)
        return Measurement(
            y=y,
            operator=operators(0),
            noise=Gaussian(white.sigma),
            truth=Part(acquisition.truth, start, stop) if acquisition.truth is not None else None,
            unit="a.u.",
            source=str(path),
            fingerprint=self.fingerprint(path),
            notes=notes,
            missing=acquisition.missing,
            axes="slice coil readout phase",
            operators=operators if stop - start > 1 else None,
            volumes=None if volumes is None else volumes[start:stop],
            region=_region((rows, acquisition.matrix[1]), acquisition.recon) if self.crop else None,
        )

    def _masks(
        self, acquisition: Acquired, path: Path, rows: int, items: tuple[int, int]
    ) -> Callable[[int], np.ndarray]:
        """What is taken for measured of an item of the file: what the file says, and of that what `acceleration` keeps."""
        pattern: np.ndarray | None = None
        frames = dict.fromkeys(range(*items), 0)
        if self.mask is not None and self.acceleration is not None:
            places = acquisition.places or [0] * acquisition.items
            seen: dict[int, int] = {}
            for item in range(*items) if self.dynamic else ():
                frames[item] = seen[places[item]] = seen.get(places[item], -1) + 1
            size = (rows, acquisition.matrix[1])
            settings = (self.acceleration, self.centre_fraction, self.seed)
            try:
                pattern = kspace_mask(self.mask, size, *settings, frames=1 + max(frames.values())).numpy()
            except UserError as error:
                raise UserError(f"{path}: {error}") from None

        def mask(item: int) -> np.ndarray:
            measured = acquisition.mask(item).astype(bool)
            if not measured.any():
                raise UserError(
                    f"{path}: no column of k-space is measured in slice {item}: the mask or k-space is all zero there; leave it "
                    f"out with {self.picked_by}="
                )
            if pattern is not None:
                kept = measured & pattern[frames[item]]
                return kept[0] if len(kept) == 1 else kept
            if self.acceleration is None:
                return measured
            return measured & sparser(columns_of(measured), self.acceleration, self.centre_fraction, self.seed)

        return mask

    def _tell(self, y: Slices, notes: list[str]) -> None:
        """Note how many columns are measured, by the first slice: of the others the data may not have been read yet."""
        columns = columns_of(y.acquisition.mask(y.start))
        notes.append(f"{int(columns.sum())} of {len(columns)} k-space columns measured, {y.acquisition.coils} coils")
        if self.mask is not None:
            measured, kept = (
                np.broadcast_to(m, (y.rows, len(columns))) for m in (y.acquisition.mask(y.start), y.mask(0))
            )
            notes.append(
                f"{int(kept.sum())} of these {int(measured.sum())} points kept, {measured.sum() / max(kept.sum(), 1):.2f} times "
                f"fewer, by mask={self.mask} with acceleration={self.acceleration:g}"
            )
        elif self.acceleration is not None:
            kept = columns_of(y.mask(0))
            notes.append(f"{int(kept.sum())} of these columns kept, for acceleration={self.acceleration:g}")

    def fingerprint(self, path: Path) -> str:
        """Of the file and these options."""
        options = {k: v.numpy().tobytes() if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        digest = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()
        return f"{fingerprint(path)}+options:{digest[:16]}"


def _looked_at(y: Slices) -> list[int]:
    """A few slices all over."""
    return [int(k) for k in np.unique(np.linspace(0, len(y) - 1, min(len(y), _LOOKED_AT)).round())]


def _noise(y: Slices, path: Path) -> CoilNoise:
    """The noise of the coils, by the data of a few slices.

    Raises:
        UserError: they hold NaN, or nothing.
    """
    picked = _looked_at(y)
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
    doubtful = [part for part in parts if part.doubt]
    doubted = sum(part.count for part in doubtful) > count / 2
    doubt = max(doubtful, key=lambda part: part.count).doubt if doubted else ""
    return CoilNoise(np.sum(weighted, axis=0), count, doubt)


def _peak(y: Slices) -> str:
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
