"""Counts as they were measured, for noise that knows the beam: no logarithm, no floor."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from invsolve.datasets.hdf5 import to_tensor
from invsolve.datasets.tomography.counts import LineIntegrals, Scatter

#: Detector rows whose flats are read at once.
_ROWS = 64


class RawCounts:
    """Rows (detector rows as items) of counts (angles, detectors) above the dark field, computed when sliced.

    The scatter of the dark field is kept as that of a small background of the same variance, which is added to the counts
    (shifted Poisson, Yavuz & Fessler 1998): gain * y is then nearly Poisson with mean gain * (i0 exp(-A(x)) + background).
    Pixels that were filled from their neighbours have the neighbours' transmission of their own beam.

    Args:
        rows: the same rows as line integrals, of which everything but the logarithm is done.
        seen: how counts scatter; None where the frames do not tell, and a count is taken for a photon.
    """

    def __init__(self, rows: LineIntegrals, seen: Scatter | None) -> None:
        self.rows, self.i0 = rows, _open_beam(rows)
        self.gain = rows.bin / (1.0 if seen is None else seen.gain)
        self.background = 0.0 if seen is None else seen.dark / seen.gain

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice, /) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        if start >= stop:
            return self.rows[rows]
        corrected = self.rows.corrected(start, stop)
        transmission = corrected.above / corrected.open[:, None]
        return to_tensor(transmission * self.i0[start:stop, None] + self.background)

    def parameters(self) -> dict[str, Tensor | float]:
        """Of the noise "transmission": i0 (rows, 1, detectors), background and gain."""
        i0 = torch.from_numpy(self.i0.astype(np.float32))[:, None]
        return {"i0": i0, "background": self.background, "gain": self.gain}


def _open_beam(rows: LineIntegrals) -> np.ndarray:
    """What each binned detector pixel counts above the dark field without the object, (rows, detectors)."""
    flats_only = copy.copy(rows)
    flats_only.treatment = replace(rows.treatment, zingers=False, air=0, angles=(), beam=None)
    white, dark = rows.fields
    assert white is not None
    assert dark is not None
    parts = []
    for first in range(rows.start, rows.stop, _ROWS):
        last = min(first + _ROWS, rows.stop)
        bright, black = white.read(first, last), dark.read(first, last)
        parts.append(flats_only.correct(bright, bright, black, first, range(bright.shape[1])).open)
    return np.concatenate(parts)
