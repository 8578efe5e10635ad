"""Detector counts to line integrals: flat and dark field, binning, logarithm, and how much noise the counts carry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from invsolve.datasets.hdf5 import dataset, open_readonly, read, to_tensor
from invsolve.datasets.tomography.rings import suppress_rings
from invsolve.errors import UserError

#: Transmissions below this are set to it: their logarithm would be noise alone, or not a number.
FLOOR = 1e-4


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

    def read(self, start: int, stop: int, every: int = 1) -> np.ndarray:
        """Detector rows start..stop of the frames that `kept` picks: (rows, frames, columns), float64."""
        frame, row, _ = self.order
        with open_readonly(self.path) as file:
            found = dataset(file, self.name)
            selection = [slice(None)] * found.ndim
            selection[row] = slice(start, stop)
            wanted: tuple[int, ...] | None = None
            if frame >= 0 and self.frames is None:
                selection[frame] = kept(found.shape[frame], every)
            elif self.frames is not None:
                # One stretch of frames and a choice in memory: HDF5 is slow at scattered selections.
                wanted = self.frames[kept(len(self.frames), every)]
                selection[frame] = slice(wanted[0], wanted[-1] + 1)
            values = read(found, tuple(selection))
        if wanted is not None:
            values = values.take([w - wanted[0] for w in wanted], frame)
        values = values.astype(np.float64)
        if frame < 0:
            return (values if row == 0 else values.T)[:, None]
        return values.transpose(row, frame, self.order[2])


def kept(count: int, thin: int) -> slice:
    """The first of each complete group of `thin` angles: 181 thinned by 4 are 45, without the repeated half turn."""
    return slice(0, max(count // thin, 1) * thin, thin)


@dataclass
class Corrected:
    """Counts of some detector rows above the dark field, binned.

    Attributes:
        signal: (rows, angles, detectors), floored.
        open: (rows, detectors), without the object.
        floored: how many values of `signal` were raised.
        dead: detector pixels that were filled from their neighbours, unbinned.
    """

    signal: np.ndarray
    open: np.ndarray
    floored: int
    dead: int

    def line_integrals(self) -> np.ndarray:
        """-log of the transmission, (rows, angles, detectors)."""
        return -np.log(self.signal / self.open[:, None])


@dataclass(frozen=True)
class LineIntegrals:
    """Rows (detector rows as items) of sinograms (angles, detectors), computed when sliced.

    Args:
        data: projections.
        white, dark: flats and darks; None when the data are transmissions already.
        start, stop: detector rows.
        thin: one angle of each group of so many, see `kept`.
        bin: detector pixels whose counts are averaged, as a wider pixel would.
        rings: width of the ring filter, see `suppress_rings`; 0 for none.
    """

    data: Frames
    white: Frames | None
    dark: Frames | None
    start: int
    stop: int
    thin: int = 1
    bin: int = 1
    rings: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, rows: slice, /) -> Tensor:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"line integrals are read in slices of step 1, got {step}")
        stop = max(start, stop)
        integrals = self.corrected(self.start + start, self.start + stop).line_integrals()
        return to_tensor(suppress_rings(integrals, self.rings) if self.rings else integrals)

    def corrected(self, start: int, stop: int) -> Corrected:
        """Counts of detector rows start..stop of the file.

        Raises:
            UserError: a detector row in which no pixel sees the beam.
        """
        signal = self.data.read(start, stop, self.thin)
        dead = np.zeros((len(signal), signal.shape[2]), bool)
        open_ = np.ones(dead.shape)
        if self.white is not None and self.dark is not None:
            black = self.dark.read(start, stop).mean(1)
            open_ = self.white.read(start, stop).mean(1) - black
            signal = signal - black[:, None]
            if not np.isfinite(open_).all():
                bad = start + int(np.flatnonzero(~np.isfinite(open_).all(1))[0])
                raise UserError(
                    f"{self.data.path}: flats or darks have NaN or infinite values in detector row {bad}; leave it out with "
                    "rows="
                )
            dead = ~(open_ > 0)
            for row in np.flatnonzero(dead.any(1)):
                _fill(signal[row], open_[row], dead[row], f"{self.data.path}: detector row {start + row}")
        signal, open_ = binned(signal, self.bin), binned(open_, self.bin)
        low = FLOOR * open_[:, None]
        floored = int((signal < low).sum())
        return Corrected(np.where(signal < low, low, signal), open_, floored, int(dead.sum()))


def _fill(signal: np.ndarray, open_: np.ndarray, dead: np.ndarray, where: str) -> None:
    """Replace dead pixels, in place, by linear interpolation between their living neighbours."""
    living, gone = np.flatnonzero(~dead), np.flatnonzero(dead)
    if not len(living):
        raise UserError(f"{where}: no pixel of it is brighter in the flats than in the darks; leave it out with rows=")
    after = np.searchsorted(living, gone)
    right = living[np.minimum(after, len(living) - 1)]
    left = living[np.maximum(after - 1, 0)]
    share = np.where(right > left, (gone - left) / np.maximum(right - left, 1), 0.0)
    for values in (signal, open_):
        values[..., gone] = (1 - share) * values[..., left] + share * values[..., right]


def binned(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` neighbours along the last axis; what does not fill a bin at the end is dropped."""
    count = values.shape[-1] // width
    return values[..., : count * width].reshape(*values.shape[:-1], count, width).mean(-1)


def noise_sigma(rows: Corrected, white: np.ndarray, dark: np.ndarray, width: int) -> float | None:
    """Root mean square, over rays, of the standard deviation of the line integrals; None when the frames cannot tell.

    A count scatters with variance gain * signal + dark variance. Both are medians over pixels of what repeated
    flats and darks show, so that dead and drifting pixels do not count. To first order var(-log(signal / open)) is
    var(signal) / signal^2 + var(mean open) / open^2 + var(mean dark) (1 / signal - 1 / open)^2.

    Args:
        rows: binned counts of a representative choice of detector rows.
        white, dark: (rows, frames, columns) of the same rows, unbinned.
        width: pixels a bin.
    """
    flats, darks = white.shape[1], dark.shape[1]
    if flats < 3:
        return None
    # The lamp's drift from frame to frame is no pixel noise.
    steady = white * (white.mean() / white.mean((0, 2), keepdims=True))
    open_ = white.mean(1) - dark.mean(1)
    dark_variance = _typical(dark.var(1, ddof=1), darks - 1) if darks >= 3 else 0.0
    alive = open_ > 0
    gain = _typical((steady.var(1, ddof=1)[alive] - dark_variance) / open_[alive], flats - 1)
    if not gain > 0:
        return None
    signal, bright = rows.signal, rows.open[:, None]
    variance = (gain * signal + dark_variance) / signal**2
    variance += (gain * bright + dark_variance) / flats / bright**2
    variance += dark_variance / darks * (1 / signal - 1 / bright) ** 2
    return float(np.sqrt(variance.mean() / width))


def _typical(variances: np.ndarray, freedom: int) -> float:
    """Median of sample variances, corrected for the median of chi-square being below its mean (Wilson-Hilferty)."""
    return float(np.median(variances)) / (1 - 2 / (9 * freedom)) ** 3
