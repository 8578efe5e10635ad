"""Where a file of k-space keeps what, and its slices as they are handed on: masked, cut along the readout, and white."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.measurement import Rows
from invsolve.datasets.hdf5 import to_tensor
from invsolve.datasets.mri.noise import AS_THEY_ARE, CoilNoise, Whitening


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
        volumes: a label per item, of the volume that it is a slice of. None where they are of one.
        places: a number per item; items of one number show one place at different times. None where all do.
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
    volumes: Sequence[int] | None = None
    places: Sequence[int] | None = None
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Slices:
    """k-space of the items (slices, coils, rows, columns), read when sliced; masked, cut along the readout, and white."""

    acquisition: Acquired
    masks: Callable[[int], np.ndarray]
    rows: int
    start: int
    stop: int
    white: Whitening = AS_THEY_ARE

    def __len__(self) -> int:
        return self.stop - self.start

    # What is not finite is looked for in the outcome.
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

    def frames(self, item: int) -> list[int]:
        """These items that show the place of one of them, it included, in their order."""
        places = self.acquisition.places
        if places is None:
            return list(range(len(self)))
        return [k for k in range(len(self)) if places[self.start + k] == places[self.start + item]]

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


class Part:
    """Rows start..stop of others."""

    def __init__(self, rows: Rows, start: int, stop: int) -> None:
        self.rows, self.start, self.stop = rows, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, rows: slice, /) -> Tensor:
        first, last, step = rows.indices(len(self))
        return self.rows[self.start + first : self.start + max(first, last) : step]
