"""Whole frames that are not what they are said to be: flats without beam, projections without beam, a beam that changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from invsolve.errors import UserError

# Of the typical frame: below it a flat or projection was taken without the beam, above it a dark with some.
_HALF = 0.5
_NO_BEAM = 0.05
_BRIGHT = 1.5
# Part of the values that are the very same, of so many counts at least, where the detector saturates.
_AT_ONCE, _SMALL = 0.005, 200
# Standard deviations at which a single value is no scatter.
_FAR = 8.0


def robust_mean(frames: np.ndarray, counts: bool = False) -> np.ndarray:
    """Mean over frames without the values that lie far from the median; (rows, frames, columns) -> (rows, columns).

    Equal to the mean where nothing is wrong; a median alone would be a quarter noisier. Each row is judged by itself.

    Args:
        frames: repeated exposures; a steady factor between frames is no outlier.
        counts: whether the values are whole counts, whose scatter may be zero by chance.
    """
    if frames.shape[1] < 3:
        return frames.mean(1)
    middle = np.median(frames, 1, keepdims=True)
    level = _ratio(frames, middle)
    level = np.where((level > _HALF) & (level < 1 / _HALF), level, 1.0)
    away = np.abs(frames - middle * level)
    # The median of few deviations is low; ten standard deviations of it are still seven true ones.
    spread = (1.4826 * np.median(away, 1, keepdims=True)) ** 2
    typical = np.median(spread, 2, keepdims=True)
    variance = np.maximum(typical, _ratio(spread, middle) * np.clip(middle, 0, None))
    far = _FAR if frames.shape[1] > 5 else 1.25 * _FAR
    good = away <= np.maximum(far * np.sqrt(variance), 5.0 if counts else 0.0) + 1e-6 * np.abs(middle)
    number = good.sum(1)
    return np.where(number > 0, (frames * good).sum(1) / np.maximum(number, 1), middle[:, 0])


def _ratio(values: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Median over the columns of values / to where that is positive; 0 for rows where it never is."""
    positive = to > 0
    ratios = values / np.where(positive, to, 1.0)
    if positive.all():
        return np.asarray(np.median(ratios, 2, keepdims=True))
    out = np.zeros((*ratios.shape[:2], 1))
    for row in np.flatnonzero(positive.any((1, 2))):
        out[row, :, 0] = np.median(ratios[row][:, positive[row, 0]], 1)
    return out


def odd_flats(white: np.ndarray, where: str) -> np.ndarray:
    """Which flats have no full beam, as indices.

    Args:
        white: (rows, frames, columns), dark field subtracted or small.
        where: how a message begins.

    Raises:
        UserError: half of them or more differ, or the brighter ones nearly: they do not tell which are right.
    """
    level = np.median(white, (0, 2)) if white.shape[1] > 1 else np.ones(1)
    typical = np.median(level) if len(level) > 2 else level.max()
    odd = np.flatnonzero(~((level > _HALF * typical) & (level < typical / _HALF)))
    # Two that agree and a third without beam are clear; that most had no beam and few had would look the same turned round.
    bright = bool((level[odd] > typical).any())
    if len(odd) and 2 * len(odd) >= len(level) - (bright and len(level) > 2):
        listed = ", ".join(f"{v:.4g}" for v in level[:6])
        raise UserError(
            f"{where}: the {len(level)} flats disagree (median counts {listed}{', ...' if len(level) > 6 else ''}), so that "
            "it cannot be told which had the full beam; keep the good ones, or say bad_frames=false"
        )
    return odd


def odd_darks(dark: np.ndarray, white: np.ndarray, where: str) -> np.ndarray:
    """Which darks were taken with the beam on, as indices.

    Raises:
        UserError: half of them or more are.
    """
    level, bright = np.median(dark, (0, 2)), float(np.median(white))
    base = float(level.min())
    odd = np.flatnonzero(level > base + 0.2 * max(bright - base, 0.0)) if bright > base else np.array([], int)
    if 2 * len(odd) > len(level):
        raise UserError(
            f"{where}: {len(odd)} of {len(level)} darks are as bright as flats; keep the good ones, or say bad_frames=false"
        )
    return odd


def beam_gain(transmission: np.ndarray) -> float:
    """How much brighter than the flats the air is at the edges of the detector, as a part; below zero where it is darker.

    That of the brighter edge, less four standard errors: an object may reach over one of them, or both, and makes it darker.

    Args:
        transmission: (rows, frames, columns).
    """
    edge = max(1, transmission.shape[2] // 50)
    ends = (transmission[..., :edge], transmission[..., -edge:])
    return max(float(part.mean() - 4 * part.std() / part.size**0.5) for part in ends) - 1


def saturated(frames: np.ndarray, *repeated: np.ndarray) -> tuple[float, float]:
    """Which part of the values is the largest of all, and that value; (0, 0) where scatter explains as many.

    Args:
        frames: (rows, frames, columns), as stored.
        repeated: exposures of the same, which show whether values scatter at all: without noise many are alike.
    """
    top = frames.max()
    share = float((frames == top).mean())
    scatters = any(bool((np.ptp(values, 1) > 0).mean() > 0.5) for values in repeated)
    return (share, float(top)) if share > _AT_ONCE and top > _SMALL and scatters else (0.0, 0.0)


def beam_levels(transmission: np.ndarray) -> np.ndarray:
    """How bright each frame's brightest part is: the 95 % quantile of (rows, frames, columns), one number per frame."""
    return np.quantile(transmission, 0.95, (0, 2))


def odd_projections(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projections without beam, and those with far too much, as indices: by their `beam_levels`."""
    typical = float(np.median(levels))
    without = np.flatnonzero(levels < _NO_BEAM * typical)
    over = np.flatnonzero((levels > _BRIGHT * max(typical, 1.0)) & (levels > _BRIGHT * typical))
    return without, over


@dataclass(frozen=True)
class Monitor:
    """What the beam was, frame by frame.

    Args:
        name: dataset that says so.
        projections: one number per projection.
        flats: one number a flat.
    """

    name: str
    projections: np.ndarray
    flats: np.ndarray


def monitor_factors(monitor: Monitor, where: str) -> tuple[np.ndarray, np.ndarray]:
    """What projections and flats are multiplied by to be as if the beam had stayed the same; 0 where it was off.

    Raises:
        UserError: not finite or negative, or zero for a flat.
    """
    for values in (monitor.projections, monitor.flats):
        if not np.isfinite(values).all() or (values < 0).any():
            raise UserError(
                f"{where}: the beam monitor {monitor.name} has negative, NaN or infinite values; mend them, or say "
                "monitor=off"
            )
    typical = float(np.median(monitor.flats))
    if not typical > 0:
        raise UserError(f"{where}: the beam monitor {monitor.name} is zero for the flats; mend it, or say monitor=off")
    on = monitor.flats > 0
    flats = np.where(on, typical / np.where(on, monitor.flats, 1.0), 0.0)
    on = monitor.projections > 1e-3 * typical
    return np.where(on, typical / np.where(on, monitor.projections, 1.0), 0.0), flats


def changes(levels: np.ndarray) -> float:
    """Standard deviation of the logarithm of beam levels; what the beam does, and the object where it fills the view."""
    positive = levels[levels > 0]
    return float(np.std(np.log(positive))) if len(positive) else 0.0
