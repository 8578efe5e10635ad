"""Detector counts to line integrals: flat and dark field, binning, logarithm, and how much noise the counts carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from invsolve.datasets.hdf5 import dataset, doubles, open_readonly, read, to_tensor
from invsolve.datasets.tomography.frame_checks import robust_mean
from invsolve.datasets.tomography.pixel_checks import spikes, stuck_pixels, weak_pixels
from invsolve.datasets.tomography.rings import suppress_rings
from invsolve.datasets.tomography.row_cache import RowCache, gather
from invsolve.errors import UserError

#: Transmissions below this are set to it: their logarithm would be noise alone, or not a number.
FLOOR = 1e-4


#: What is not finite is looked for in the outcome, and named with its row.
_LATER = np.errstate(all="ignore")


@dataclass(frozen=True)
class Frames:
    """A dataset of detector frames.

    Args:
        path: the file.
        name: dataset in it.
        order: its axes that are frame, detector row and detector column; no frame axis (a single frame): -1.
        frames: which of its frames these are, rising; default all.
    """

    path: Path
    name: str
    order: tuple[int, int, int]
    frames: tuple[int, ...] | None = None

    def count(self) -> int:
        """How many frames these are."""
        if self.frames is not None:
            return len(self.frames)
        return self._stored()[0][self.order[0]] if self.order[0] >= 0 else 1

    def width(self) -> int:
        """Detector columns."""
        return self._stored()[0][self.order[2]]

    def _stored(self) -> tuple[tuple[int, ...], tuple[int, ...] | None, int]:
        with open_readonly(self.path) as file:
            dset = dataset(file, self.name)
            return tuple(dset.shape), _chunks(dset), dset.dtype.itemsize

    def load(self, rows: Sequence[int], picked: Sequence[int] | None = None) -> np.ndarray:
        """Detector rows of some of these frames, each chunk read once: (rows, frames, columns), as stored.

        Args:
            rows: rising.
            picked: positions among these frames, rising; default all.
        """
        frame, row, _ = self.order
        with open_readonly(self.path) as file:
            dset = dataset(file, self.name)

            def part(selection: tuple[Any, ...]) -> np.ndarray:
                return read(dset, selection)

            if frame < 0:
                low, high = rows[0], rows[-1] + 1
                values = part((slice(low, high), slice(None)) if row == 0 else (slice(None), slice(low, high)))
                return (values if row == 0 else values.T)[np.asarray(rows) - low][:, None]
            index = np.arange(dset.shape[frame]) if self.frames is None else np.asarray(self.frames)
            index = index if picked is None else index[list(picked)]
            return gather(part, dset.shape, _chunks(dset), self.order, rows, index.tolist(), dset.dtype.itemsize)

    def cache(self, rows: tuple[int, int], picked: Sequence[int]) -> RowCache:
        """Reads slabs of detector rows start..stop of the picked frames in few passes."""
        shape, chunks, size = self._stored()
        frame, row, column = self.order
        row_bytes = len(picked) * shape[column] * size
        if frame < 0 or chunks is None:
            return RowCache(self.load, rows, picked, 1, row_bytes)
        index = list(picked) if self.frames is None else [self.frames[k] for k in picked]
        chunk_of = [k // chunks[frame] for k in index]
        return RowCache(self.load, rows, picked, chunks[row], row_bytes, chunks[frame] >= shape[frame], chunk_of)


def _chunks(dset: h5py.Dataset) -> tuple[int, ...] | None:
    """What is decompressed at once. The sources of a virtual dataset are most often files of one frame, or of a few."""
    if dset.is_virtual:
        return (1, *dset.shape[1:]) if dset.ndim == 3 else None
    return dset.chunks


def kept(count: int, thin: int) -> slice:
    """The first of each complete group of `thin` angles: 181 thinned by 4 are 45, without the repeated half turn."""
    return slice(0, max(count // thin, 1) * thin, thin)


@dataclass
class Corrected:
    """Counts of some detector rows above the dark field, binned.

    Attributes:
        signal: (rows, angles, detectors), floored.
        open: (rows, detectors), without the object.
        above: `signal` before it was floored.
        low: which values of `signal` were raised to the floor.
        dead, stuck: detector pixels that were filled from their neighbours, unbinned: by the flats, and by the data.
        spikes: single values that were filled, unbinned.
    """

    signal: np.ndarray
    open: np.ndarray
    low: np.ndarray
    dead: int
    stuck: int
    spikes: int
    above: np.ndarray

    def line_integrals(self) -> np.ndarray:
        """-log of the transmission, (rows, angles, detectors)."""
        return -np.log(self.signal / self.open[:, None])


@dataclass(frozen=True)
class Treatment:
    """What is done to counts on their way to line integrals; every detector row by itself.

    Args:
        flats: "robust" leaves outliers out of the mean of flats and darks, "mean" takes all.
        zingers: replace single values that no neighbouring projection shows.
        dead_pixels: fill detector pixels that the flats or the data show to be weak or stuck; without it only those
            that see no beam at all.
        air: columns at both edges of the detector that see no object, to whose mean each projection is normalised.
        angles: degrees, of all projections; neighbouring ones are compared.
        gain: variance of a count a count; None when the frames do not tell.
        beam: factor of each projection; None for ones.
        beam_flats: factor of each flat; None for ones.
    """

    flats: str = "robust"
    zingers: bool = True
    dead_pixels: bool = True
    air: int = 0
    angles: tuple[float, ...] = ()
    gain: float | None = None
    beam: tuple[float, ...] | None = None
    beam_flats: tuple[float, ...] | None = None

    def moves(self, picked: Sequence[int], width: int) -> int:
        """Detector pixels that a feature at the edge of the view moves from one picked angle to the next."""
        if len(picked) < 2 or not self.angles:
            return 10**6
        step = np.median(np.diff(np.sort(np.asarray(self.angles)[list(picked)] % 360)))
        return int(np.ceil(np.deg2rad(step) * width / 2))


class LineIntegrals:
    """Rows (detector rows as items) of sinograms (angles, detectors), computed when sliced.

    Args:
        data: projections.
        white, dark: flats and darks; None when the data are transmissions already.
        start, stop: detector rows.
        picked: positions of the projections that count; default all.
        bin: detector pixels whose counts are averaged, as a wider pixel would.
        rings: width of the ring filter, see `suppress_rings`; 0 for none.
        treatment: what is done to the counts.
    """

    def __init__(
        self,
        data: Frames,
        white: Frames | None,
        dark: Frames | None,
        start: int,
        stop: int,
        picked: Sequence[int] | None = None,
        bin: int = 1,
        rings: int = 0,
        treatment: Treatment | None = None,
    ) -> None:
        self.data, self.white, self.dark, self.start, self.stop = data, white, dark, start, stop
        self.picked = list(range(data.count())) if picked is None else list(picked)
        self.bin, self.rings, self.treatment = bin, rings, treatment or Treatment()
        self.width = data.width()
        self.cached = data.cache((start, stop), self.picked)
        self.fields = [None if f is None else f.cache((start, stop), range(f.count())) for f in (white, dark)]

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, rows: slice, /) -> Tensor:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"line integrals are read in slices of step 1, got {step}")
        stop = max(start, stop)
        if start == stop:
            return torch.empty(0, len(self.picked), self.width // self.bin)
        integrals = self.corrected(start, stop).line_integrals()
        return to_tensor(suppress_rings(integrals, self.rings) if self.rings else integrals)

    def corrected(self, start: int, stop: int) -> Corrected:
        """Items start..stop before the logarithm."""
        start, stop = self.start + start, self.start + stop
        white, dark = (None if f is None else f.read(start, stop) for f in self.fields)
        return self.correct(self.cached.read(start, stop), white, dark, start)

    @_LATER
    def field(self, frames: np.ndarray, scale: tuple[float, ...] | None = None) -> np.ndarray:
        """What repeated exposures (rows, frames, columns) show together, (rows, columns)."""
        values = doubles(frames)
        if scale is not None:
            values = values * np.asarray(scale)[:, None]
        if self.treatment.flats == "mean":
            return np.asarray(values.mean(1))
        return robust_mean(values, frames.dtype.kind in "iu")

    @_LATER
    def correct(
        self,
        counts: np.ndarray,
        white: np.ndarray | None,
        dark: np.ndarray | None,
        first: int | Sequence[int],
        picked: Sequence[int] | None = None,
        bin: int | None = None,
    ) -> Corrected:
        """Counts as they are stored -> above the dark field, mended and binned.

        Args:
            counts: (rows, angles, columns).
            white, dark: of the same rows, (rows, frames, columns).
            first: number of the first detector row, or of each, for messages.
            picked: the projections in `counts`; default those of this object.
            bin: default that of this object.

        Raises:
            UserError: a detector row in which no pixel sees the beam.
        """
        how, picked = self.treatment, self.picked if picked is None else picked
        numbers = [first + k for k in range(len(counts))] if isinstance(first, int) else list(first)
        signal = doubles(counts)
        dead = np.zeros((len(signal), signal.shape[2]), bool)
        open_ = np.ones(dead.shape)
        if white is not None and dark is not None:
            black = self.field(dark)
            bright = white if how.beam_flats is None else doubles(white) - black[:, None]
            open_ = self.field(bright, how.beam_flats) - (black if how.beam_flats is None else 0)
            signal -= black[:, None]
            if not np.isfinite(open_).all():
                bad = numbers[int(np.flatnonzero(~np.isfinite(open_).all(1))[0])]
                raise UserError(
                    f"{self.data.path}: flats or darks have NaN or infinite values in detector row {bad}; leave it out with "
                    "rows="
                )
            dead = ~(open_ > 0)
        if how.beam is not None:
            signal *= np.asarray(how.beam)[list(picked)][:, None]
        order = np.argsort(np.asarray(how.angles)[list(picked)] % 360, kind="stable") if how.angles else None
        moves, stuck_count, spike_count = how.moves(picked, signal.shape[2]), 0, 0
        for k, number in enumerate(numbers):
            where = f"{self.data.path}: detector row {number}"
            if how.dead_pixels and white is not None and not dead[k].all():
                dead[k] |= weak_pixels(open_[k])
            if dead[k].any():
                _fill(signal[k], open_[k], dead[k], where)
            if order is None or not np.isfinite(signal[k]).all():
                continue
            stuck = stuck_pixels(signal[k] / open_[k], order) if how.dead_pixels else None
            if stuck is not None and stuck.any():
                _fill(signal[k], open_[k], stuck, where)
                stuck_count += int(stuck.sum())
            if how.zingers:
                gain = None if how.gain is None else how.gain / open_[k]
                zingers = spikes(signal[k] / open_[k], order, moves, gain)
                for angle in np.flatnonzero(zingers.any(1)):
                    transmission = signal[k, angle] / open_[k]
                    _fill(transmission, transmission, zingers[angle], where)
                    signal[k, angle] = transmission * open_[k]
                spike_count += int(zingers.sum())
            if how.air:
                edges = np.r_[: how.air, signal.shape[2] - how.air : signal.shape[2]]
                level = (signal[k][:, edges] / open_[k, edges]).mean(1)
                if not (level > 0).all():
                    raise UserError(
                        f"{where}: the {how.air} columns at both edges see no beam in some projections; lower air="
                    )
                signal[k] /= level[:, None]
        width = self.bin if bin is None else bin
        signal, open_ = binned(signal, width), binned(open_, width)
        floor = FLOOR * open_[:, None]
        low = signal < floor
        return Corrected(np.where(low, floor, signal), open_, low, int(dead.sum()), stuck_count, spike_count, signal)


def _fill(signal: np.ndarray, open_: np.ndarray, dead: np.ndarray, where: str) -> None:
    """Replace dead pixels, in place, by linear interpolation between their living neighbours.

    Args:
        signal: (angles, detectors), or (detectors,).
        open_: (detectors,).
        dead: (detectors,).
        where: how a message begins.
    """
    living, gone = np.flatnonzero(~dead), np.flatnonzero(dead)
    if not len(living):
        raise UserError(f"{where}: no pixel of it is brighter in the flats than in the darks; leave it out with rows=")
    after = np.searchsorted(living, gone)
    right = living[np.minimum(after, len(living) - 1)]
    left = living[np.maximum(after - 1, 0)]
    share = np.where(right > left, (gone - left) / np.maximum(right - left, 1), 0.0)
    for values in (signal,) if signal is open_ else (signal, open_):
        values[..., gone] = (1 - share) * values[..., left] + share * values[..., right]


def binned(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` neighbours along the last axis; what does not fill a bin at the end is dropped."""
    count = values.shape[-1] // width
    return values[..., : count * width].reshape(*values.shape[:-1], count, width).mean(-1)


@dataclass(frozen=True)
class Scatter:
    """How counts scatter, by repeated flats and darks: variance gain * signal + dark.

    Attributes:
        gain: variance of a count a count.
        dark: variance without beam.
        flats, darks: how many frames were averaged.
    """

    gain: float
    dark: float
    flats: int
    darks: int


def scatter(white: np.ndarray, dark: np.ndarray) -> Scatter | None:
    """Medians over pixels of what repeated exposures show, so that dead and drifting pixels do not count.

    Args:
        white, dark: (rows, frames, columns), unbinned.

    Returns:
        None when the frames cannot tell.
    """
    white, dark = doubles(white), doubles(dark)
    flats, darks = white.shape[1], dark.shape[1]
    if flats < 3:
        return None
    # The lamp's drift from frame to frame is no pixel noise, and a few zingers are no drift.
    middle = np.median(white, 1, keepdims=True)
    drift = np.median(np.where(middle > 0, white / np.where(middle > 0, middle, 1.0), 1.0), (0, 2), keepdims=True)
    steady = white / np.where(drift > 0, drift, 1.0)
    open_ = white.mean(1) - dark.mean(1)
    dark_variance = _typical(dark.var(1, ddof=1), darks - 1) if darks >= 3 else 0.0
    alive = open_ > 0
    if not alive.any():
        return None
    gain = _typical((steady.var(1, ddof=1)[alive] - dark_variance) / open_[alive], flats - 1)
    return Scatter(gain, dark_variance, flats, darks) if gain > 0 else None


def noise_sigma(rows: Corrected, seen: Scatter, width: int) -> tuple[float, int]:
    """Root mean square, over rays, of the standard deviation of the line integrals.

    To first order var(-log(signal / open)) is var(signal) / signal^2 + var(mean open) / open^2 + var(mean dark)
    (1 / signal - 1 / open)^2. Where no more than its own scatter is left of the beam that says nothing: such rays do not count.

    Args:
        rows: binned counts of a representative choice of detector rows.
        seen: how single counts scatter.
        width: pixels a bin.

    Returns:
        The standard deviation, and how many rays were left out of it.
    """
    signal, bright = rows.signal, rows.open[:, None]
    variance = (seen.gain * signal + seen.dark) / signal**2
    variance += (seen.gain * bright + seen.dark) / seen.flats / bright**2
    variance += seen.dark / seen.darks * (1 / signal - 1 / bright) ** 2
    told = ~rows.low & (signal**2 * width > seen.gain * signal + seen.dark)
    if not told.any():
        told = np.ones_like(told)
    return float(np.sqrt(variance[told].mean() / width)), int((~told).sum())


def _typical(variances: np.ndarray, freedom: int) -> float:
    """Median of sample variances, corrected for the median of chi-square being below its mean (Wilson-Hilferty)."""
    return float(np.median(variances)) / (1 - 2 / (9 * freedom)) ** 3
