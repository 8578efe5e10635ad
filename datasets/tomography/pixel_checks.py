"""Single values and single detector pixels that do not fit: zingers, dropped counts, stuck and flickering pixels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, binary_opening, maximum_filter1d, median_filter, minimum_filter1d

# A spike is at most this wide, detector pixels; wider ones are features.
_WIDE = 3
# Pixels that a feature may move from one angle to the next: beyond, neighbouring projections say too little.
MOVES = 12
_SIGMAS = 6.0
_FEW = 8


def spikes(transmission: np.ndarray, order: np.ndarray, moves: int, gain: np.ndarray | None) -> np.ndarray:
    """Values far above all that the neighbouring projections show nearby, or of no light at all; (angles, detectors).

    Args:
        transmission: (angles, detectors).
        order: indices that sort the angles.
        moves: detector pixels that a feature moves at most between neighbouring angles.
        gain: variance of the transmission a transmission, per detector pixel; None estimates it from the scatter
            between neighbouring angles, which is above the noise where the object changes.
    """
    count, width = transmission.shape
    none = np.zeros(transmission.shape, bool)
    if count < _FEW or width < 4 * _WIDE or moves > MOVES:
        return none
    values = transmission[order]
    if gain is None:
        scatter = (np.median(np.abs(np.diff(values, axis=0)), 0) / 0.954) ** 2
        gain = np.full(width, np.median(scatter / np.maximum(values.mean(0), 1e-6)))
    above, below = [], []
    for step in (-2, -1, 1, 2):
        # At the ends those on the other side count twice.
        index = np.arange(count) + step
        index = np.where((index < 0) | (index >= count), np.arange(count) - step, index)
        size = 2 * (abs(step) * moves + 1) + 1
        above.append(maximum_filter1d(values, size, axis=1, mode="nearest")[index])
        below.append(minimum_filter1d(values, size, axis=1, mode="nearest")[index])
    # A feature shows in all four; a spike of one of them must not hide that of another.
    above, below = np.sort(above, 0)[2], np.clip(np.sort(below, 0)[1], 0, None)
    outliers = none.copy()
    # 2 * gain: counts near zero scatter more than the root of what is seen.
    for odd in (
        values > 1.2 * above + _SIGMAS * np.sqrt(gain * (np.clip(above, 0, None) + 2 * gain)),
        # Next to nothing: two features that cross for one angle darken more than either.
        (values < 0.01 * below) & (values < below - _SIGMAS * np.sqrt(gain * (below + 2 * gain))),
    ):
        outliers |= odd & ~binary_opening(odd, np.ones((1, _WIDE + 1)))
    # What leaks into the pixels beside it is weaker, and as wrong.
    outliers = binary_dilation(outliers, np.ones((1, 3))) if outliers.any() else outliers
    back = np.empty_like(none)
    back[order] = outliers
    return back


def weak_pixels(open_: np.ndarray) -> np.ndarray:
    """Detector pixels that see less than a tenth of what their neighbourhood sees of the open beam; (detectors,)."""
    return ~(open_ > 0) | (open_ < 0.1 * median_filter(open_, 21, mode="nearest"))


def stuck_pixels(transmission: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Detector pixels that do not follow their neighbours from angle to angle: stuck, flickering or off; (detectors,).

    Args:
        transmission: (angles, detectors).
        order: indices that sort the angles.
    """
    count, width = transmission.shape
    if count < _FEW or width < 4 * _WIDE:
        return np.zeros(width, bool)
    values = transmission[order]
    scatter = np.median(np.abs(np.diff(values, axis=0)), 0)
    usual = median_filter(scatter, 2 * _WIDE + 1, mode="nearest")
    still = (usual > 0) & (scatter < 0.1 * usual)
    # A sharp feature that dwells at a place changes much there too, but never in a single pixel alone.
    around, means = (np.pad(line, 1, mode="edge") for line in (scatter, np.median(values, 0)))
    beside = np.maximum(around[:-2], around[2:])
    single = (beside > 0) & (scatter > 8 * beside)
    before, mean, after = means[:-2], means[1:-1], means[2:]
    smooth = (before + after) / 2
    single |= (np.abs(before - after) < 0.2 * np.abs(smooth)) & (np.abs(mean - smooth) > 0.5 * np.abs(smooth))
    single[[0, -1]] = False
    return (still & ~binary_opening(still, np.ones(_WIDE + 1))) | single
