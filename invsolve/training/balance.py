"""How often each training image is drawn: all alike, groups alike, or by weights in the file."""

from __future__ import annotations

import numpy as np

from invsolve.errors import UserError
from invsolve.training.data import Images
from invsolve.training.settings import Settings


def draw_weights(images: Images, rows: np.ndarray, settings: Settings) -> np.ndarray | None:
    """Relative frequency of each of the rows, sum 1; None where all count alike.

    Raises:
        UserError: the weights are no numbers, negative, or all zero.
    """
    if settings.weight:
        try:
            weights = images.labels(settings.weight)[rows].astype(float)
        except ValueError:
            raise UserError(f"{images.path}: weight {settings.weight!r} must hold one number an image") from None
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
            raise UserError(
                f"{images.path}: weight {settings.weight!r} must hold numbers of at least 0, and not only zeros"
            )
        return weights / weights.sum()
    if not (settings.balance and settings.groups):
        return None
    _, group, count = np.unique(images.labels(settings.groups)[rows], return_inverse=True, return_counts=True)
    weights = count[group] ** -float(settings.balance)
    return np.asarray(weights / weights.sum())


def epoch_order(rows: int, weights: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """One epoch: as many positions as there are rows, in random order, each row as often as its weight says.

    By systematic resampling, so that an image comes its expected number of times, rounded up or down; without weights once.
    """
    if weights is None:
        return rng.permutation(rows)
    ticks = (rng.random() + np.arange(rows)) / rows
    drawn = np.searchsorted(np.cumsum(weights), ticks)
    return rng.permutation(np.minimum(drawn, rows - 1))
