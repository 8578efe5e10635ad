"""A look at some detector rows of a scan, before all of it is read: which frames count, how much noise, what is odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from invsolve.datasets.tomography.counts import (
    FLOOR,
    Frames,
    LineIntegrals,
    Scatter,
    Treatment,
    kept,
    noise_sigma,
    scatter,
)
from invsolve.datasets.tomography.frame_checks import (
    Monitor,
    beam_gain,
    beam_levels,
    changes,
    monitor_factors,
    odd_darks,
    odd_flats,
    odd_projections,
    saturated,
)
from invsolve.datasets.tomography.pixel_checks import MOVES
from invsolve.errors import UserError

# Rows that are looked at, whatever the size of the volume.
_LOOKED_AT = 16
# Of the strongest line integral: what the outermost detector pixels see of an object that goes beyond them.
_CUT_OFF = 0.1
_DRIFT = 0.03


class Looked:
    """Up to 16 detector rows spread over the selection, read once.

    Args:
        data: projections.
        white, dark: flats and darks; None when the data are transmissions already.
        rows: [start, stop).
        degrees: of each projection.
        monitor: the beam, frame by frame, where the file says.
        forced: whether the monitor was asked for by name: then it is used whatever the data say.
        bad_frames: whether frames without beam are looked for.
        treatment: what is done to the counts; angles, gain and beam are put in here.

    Attributes:
        good: positions of the projections that count.
        white, dark, treatment: with what was found.
        notes: one line each.
    """

    def __init__(
        self,
        data: Frames,
        white: Frames | None,
        dark: Frames | None,
        rows: tuple[int, int],
        degrees: np.ndarray,
        treatment: Treatment,
        monitor: Monitor | None = None,
        forced: bool = False,
        bad_frames: bool = True,
    ) -> None:
        self.data, self.white, self.dark, self.path = data, white, dark, data.path
        self.start, self.stop = rows
        self.rows = np.unique(np.linspace(rows[0], rows[1] - 1, min(rows[1] - rows[0], _LOOKED_AT)).round().astype(int))
        self.degrees, self.notes = degrees, []
        self.treatment = replace(treatment, angles=tuple(degrees.tolist()))
        self.counts = data.load(self.rows.tolist())
        self.good = np.arange(self.counts.shape[1])
        self.whites, self.darks = (None if f is None else f.load(self.rows.tolist()) for f in (white, dark))
        self.scatter: Scatter | None = None
        if self.whites is None or self.darks is None:
            self.notes.append("the data are taken as transmissions, without flat and dark field")
        else:
            self._fields(monitor, bad_frames)
        self._frames(monitor, forced, bad_frames)

    def _fields(self, monitor: Monitor | None, bad_frames: bool) -> None:
        assert self.whites is not None
        assert self.darks is not None
        self.flats_kept = np.arange(self.whites.shape[1])
        finite = np.isfinite(self.whites).all() and np.isfinite(self.darks).all()
        if bad_frames and finite and self.white is not None and self.dark is not None:
            odd = odd_darks(self.darks, self.whites, f"{self.path}: {self.dark.name}")
            if len(odd):
                self.notes.append(
                    f"{len(odd)} of {self.darks.shape[1]} darks have the beam on and are left out: {_listed(odd)}"
                )
                self.dark, self.darks, _ = _without(self.dark, self.darks, odd)
            odd = odd_flats(self.whites - np.median(self.darks, 1, keepdims=True), f"{self.path}: {self.white.name}")
            if len(odd):
                self.notes.append(
                    f"{len(odd)} of {self.whites.shape[1]} flats do not have the usual beam and are left out: {_listed(odd)}"
                )
                self.white, self.whites, self.flats_kept = _without(self.white, self.whites, odd)
        flats, darks = self.whites.shape[1], self.darks.shape[1]
        self._full(bool(finite))
        how = " (outliers left out)" if self.treatment.flats == "robust" and max(flats, darks) > 2 else ""
        self.notes.append(f"flat field: mean of {flats} flats and {darks} darks{how}")
        if finite:
            self.scatter = scatter(self.whites, self.darks)
            self.treatment = replace(self.treatment, gain=None if self.scatter is None else self.scatter.gain)

    def _full(self, finite: bool) -> None:
        """Say where the detector had no more room for counts."""
        assert self.whites is not None
        assert self.darks is not None
        if not finite or not np.isfinite(self.counts).all():
            return
        for values, what in ((self.whites, "flats"), (self.counts, "projections")):
            share, top = saturated(values, self.whites, self.darks)
            if share:
                self.notes.append(
                    f"{share:.1%} of the values of the {what} are the largest there is, {top:.6g}: the detector saturates, and "
                    "neither attenuation nor noise is right there; expose for less time"
                )

    def _frames(self, monitor: Monitor | None, forced: bool, bad_frames: bool) -> None:
        """Find the projections that count, and what the beam was."""
        quick = replace(self.treatment, zingers=False, dead_pixels=False, air=0)
        plain = self._levels(quick)
        levels, off = plain, np.zeros(len(plain), bool)
        if monitor is not None and self.whites is not None:
            projections, flats = monitor_factors(monitor, str(self.path))
            off = projections == 0
            flats = flats[self.flats_kept]
            beam = {"beam": tuple(np.where(off, 1.0, projections).tolist()), "beam_flats": tuple(flats.tolist())}
            levels = self._levels(replace(quick, **beam))  # type: ignore[arg-type]
            seen = (levels > 0.2 * np.median(levels)) & (plain > 0.2 * np.median(plain)) & ~off
            ratio = projections[~off].max() / projections[~off].min() - 1 if (~off).any() else 0.0
            if forced or changes(levels[seen]) <= 1.2 * changes(plain[seen]) + 0.003:
                self.treatment = replace(self.treatment, **beam)  # type: ignore[arg-type]
                self.notes.append(
                    f"beam monitor {monitor.name} (changes by {ratio:.1%}): projections and flats normalised to it; "
                    "monitor=off leaves them"
                )
            else:
                levels = plain
                off[:] = False
                self.notes.append(
                    f"beam monitor {monitor.name} (changes by {ratio:.1%}) disagrees with the projections' brightness and is "
                    f"not used; monitor={monitor.name} does"
                )
        if not bad_frames or not np.isfinite(levels).all():
            return
        without, over = odd_projections(levels)
        without = np.union1d(without, np.flatnonzero(off))
        if 2 * len(without) >= len(levels):
            raise UserError(
                f"{self.path}: {len(without)} of {len(levels)} projections of {self.data.name} have no beam"
            )
        for which, what in ((without, "without beam"), (over, "far brighter than the others")):
            if len(which):
                self.notes.append(
                    f"{len(which)} of {len(levels)} projections are {what} and are left out, with their angles: "
                    f"{_listed(which)}; bad_frames=false keeps them"
                )
        self.good = np.setdiff1d(self.good, np.union1d(without, over))
        self._drift(levels[self.good])

    def _drift(self, levels: np.ndarray) -> None:
        """Say that the beam changed, where there is air to tell it by."""
        if self.whites is None or self.treatment.air:
            return
        smooth = np.convolve(levels, np.ones(5) / 5, "valid") if len(levels) > 9 else levels
        # As bright as the flats at some time: what is seen is air. An object that fills the view changes with the angle.
        if smooth.max() > 0.93 and (change := float(np.ptp(smooth) / smooth.max())) > _DRIFT:
            self.notes.append(
                f"the open beam changes by {change:.1%} over the projections; air=N normalises each to the N columns at both "
                "edges of the detector, where those see no object"
            )

    def _levels(self, how: Treatment) -> np.ndarray:
        every = range(self.counts.shape[1])
        small = LineIntegrals(self.data, self.white, self.dark, self.start, self.stop, every, treatment=how)
        parts = [small.correct(*self._row(k), [int(self.rows[k])], every) for k in range(len(self.rows))]
        return beam_levels(np.concatenate([p.signal / p.open[:, None] for p in parts]))

    def _row(self, k: int, frames: Sequence[int] | None = None) -> tuple[Any, Any, Any]:
        counts = self.counts[k : k + 1]
        return (
            counts if frames is None else counts[:, list(frames)],
            None if self.whites is None else self.whites[k : k + 1],
            None if self.darks is None else self.darks[k : k + 1],
        )

    def rows_of(self, y: LineIntegrals) -> None:
        """Take in how the scan is read: what is said from here on is about the picked and binned data.

        Raises:
            UserError: NaN or infinity in a detector row.
        """
        self.y = y
        picked = y.picked
        self.parts = []
        for k, row in enumerate(self.rows.tolist()):
            part = y.correct(*self._row(k, picked), [row])
            if not np.isfinite(part.signal).all():
                raise UserError(
                    f"{self.path}: {self.data.name} has NaN or infinite values in detector row {row}; leave it out with rows="
                )
            self.parts.append(part)
        # Looking at a file shows its first row: no second pass for that.
        y.cached.keep(y.start, self.counts[:1][:, picked])
        self._say()

    def _say(self) -> None:
        seen = f"in the {len(self.rows)} detector rows looked at"
        notes, y = self.notes, self.y
        if dead := sum(part.dead for part in self.parts):
            notes.append(f"{dead} dead detector pixels {seen}, filled from their neighbours")
        if stuck := sum(part.stuck for part in self.parts):
            notes.append(
                f"{stuck} detector pixels {seen} do not follow the data (stuck or flickering), filled from their neighbours; "
                "dead_pixels=false leaves them"
            )
        if many := sum(part.spikes for part in self.parts):
            notes.append(
                f"{many} single values {seen} stand out from the neighbouring projections (zingers, dropped counts), filled "
                "from the pixels beside them; zingers=false leaves them"
            )
        if y.treatment.zingers and (moves := y.treatment.moves(y.picked, y.width)) > MOVES:
            notes.append(
                f"zingers are not looked for: features move by up to {moves} pixels from one angle to the next"
            )
        gain = beam_gain(np.concatenate([part.signal / part.open[:, None] for part in self.parts]))
        if self.whites is not None and not y.treatment.air and gain > _DRIFT:
            notes.append(
                f"air at the edges of the detector is {gain:.1%} brighter than in the flats, which nothing in the beam makes it: "
                "attenuation is too low by as much; air=N normalises each projection to the N columns at both edges"
            )
        if y.treatment.air:
            notes.append(f"each projection normalised to the {y.treatment.air} columns at both edges of the detector")
        total = sum(part.signal.size for part in self.parts)
        if floored := sum(int(part.low.sum()) for part in self.parts):
            notes.append(f"{floored} of {total} transmissions {seen} were below {FLOOR:g} and set to it")
        if y.rings:
            notes.append(f"rings suppressed: sorted projections, median over {y.rings} detector pixels")

    def sigma(self) -> float | None:
        """Noise of the line integrals; None when the file does not tell."""
        if self.scatter is None:
            return None
        together = self.parts[0]
        for name in ("signal", "open", "low"):
            setattr(together, name, np.concatenate([getattr(part, name) for part in self.parts]))
        sigma, left_out = noise_sigma(together, self.scatter, self.y.bin)
        if left_out:
            self.notes.append(
                f"{left_out} of {together.signal.size} rays let through no more than the noise; the noise's level is that of "
                "the others"
            )
        return sigma

    def sinogram(self) -> np.ndarray:
        """Mean over the rows, all good angles and detector pixels."""
        good = self.good.tolist()
        return np.mean(
            [
                self.y.correct(*self._row(k, good), [int(row)], good, 1).line_integrals()[0]
                for k, row in enumerate(self.rows)
            ],
            axis=0,
        )


def cut_off(sinogram: np.ndarray) -> float:
    """How much of the strongest line integral the outermost detector pixels still see, averaged over the angles."""
    edge = max(1, sinogram.shape[1] // 100)
    strongest = float(np.quantile(sinogram, 0.99))
    left, right = float(sinogram[:, :edge].mean()), float(sinogram[:, -edge:].mean())
    share = max(left, right) / strongest if strongest > 0 else 0.0
    return share if share > _CUT_OFF else 0.0


def picked_frames(count: int, thin: int, good: np.ndarray) -> list[int]:
    """The first of each complete group of `thin` projections, without those that do not count."""
    return np.intersect1d(np.arange(count)[kept(count, thin)], good).tolist()


def _without(frames: Frames, values: np.ndarray, odd: np.ndarray) -> tuple[Frames, np.ndarray, np.ndarray]:
    rest = np.setdiff1d(np.arange(values.shape[1]), odd)
    index = rest if frames.frames is None else np.asarray(frames.frames)[rest]
    return replace(frames, frames=tuple(index.tolist())), values[:, rest], rest


def _listed(index: np.ndarray) -> str:
    shown = ", ".join(str(k) for k in index[:6])
    return f"number {shown}{' and more' if len(index) > 6 else ''} (from 0)"
