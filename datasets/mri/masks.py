"""What of k-space is measured: read off the data, by whole columns, or thinned to try sparser scans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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


def columns_of(mask: np.ndarray) -> np.ndarray:
    """The columns of which anything is measured, (phase,)."""
    return np.asarray(np.atleast_2d(mask).any(0))


def sparser(columns: np.ndarray, acceleration: float, centre_fraction: float, seed: int) -> np.ndarray:
    """Which of the measured columns (phase,) to keep: 1 in `acceleration`, at random, and all around the centre."""
    count = len(columns)
    half = max(round(count * centre_fraction) // 2, 2)
    keep = np.zeros(count, bool)
    keep[count // 2 - half : count // 2 + half] = True
    keep &= columns
    others = np.flatnonzero(columns & ~keep)
    number = max(round(columns.sum() / acceleration) - int(keep.sum()), 0)
    keep[np.random.default_rng(seed).permutation(others)[:number]] = True
    return keep
