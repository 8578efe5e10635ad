"""Figures of a result for a page: metrics and coverage of each frame, discrepancy and residual by step of each item."""

from __future__ import annotations

from typing import Any

import numpy as np

from invsolve.api import metrics
from invsolve.contracts.measurement import Rows
from invsolve.report.encode import short
from invsolve.report.frames import Frame

#: Nominal probabilities at which coverage is drawn.
LEVELS = (*(round(0.05 * k, 2) for k in range(1, 20)), 0.99)
_CURVE = 100


class Scores:
    """Metrics of frames against the truth, gathered frame by frame; the same numbers as `invsolve evaluate`.

    Args:
        reference: truth, row by row as in the result; None leaves everything empty.
        uncertain: whether the samples' spread is an uncertainty, whose coverage is of interest.
    """

    def __init__(self, reference: Rows | None, uncertain: bool) -> None:
        self.uncertain = uncertain
        self.span = metrics.data_range(reference) if reference is not None else 1.0
        self.rows: list[dict[str, float]] = []
        self.linear: list[dict[str, float]] = []
        self.covered: list[list[float]] = []
        #: Root mean square of each frame's standard deviation.
        self.deviations: list[float] = []

    def add(self, frame: Frame) -> None:
        """Take in a frame."""
        self.deviations.append(float(frame.std.double().square().mean().sqrt()))
        truth = frame.truth
        if truth is None:
            return
        count = len(frame.samples)
        self.rows.append(metrics.score(frame.mean, truth, self.span))
        shares = metrics.coverage(frame.mean, frame.std, truth, count, LEVELS) if self.uncertain else {}
        if shares:
            self.covered.append(list(shares.values()))
            self.rows[-1] |= {f"coverage_{p}": shares[f"coverage_{p}"] for p in (50, 90)}
        if frame.linear is not None:
            self.linear.append(metrics.score(frame.linear, truth, self.span))

    def coverage(self) -> list[float]:
        """Share of all pixels at each of LEVELS; frames have as many pixels each, so it is their mean."""
        return np.mean(self.covered, 0).tolist() if self.covered else []


def residual_by_step(result: Any, row: int) -> dict[str, Any] | None:
    """An item's residual over its expected value, by step: over the samples mean, smallest, largest.

    Only the steps at which the strategy computed it; of more than a hundred a hundred, evenly spread.
    """
    stored = result.diagnostics.get("residual")
    if stored is None or stored.ndim < 2:
        return None
    curves = np.asarray(stored[row], dtype=float).reshape(-1, stored.shape[-1])
    steps = np.flatnonzero(np.isfinite(curves).all(0))
    if not len(steps):
        return None
    steps = np.unique(steps[np.linspace(0, len(steps) - 1, min(len(steps), _CURVE)).round().astype(int)])
    curves = curves[:, steps]
    return {
        "step": (steps + 1).tolist(),
        "mean": short(curves.mean(0)),
        "low": short(curves.min(0)),
        "high": short(curves.max(0)),
    }
