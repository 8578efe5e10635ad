"""From the frames of a DICOM series to one regular stack: sorted, turned as radiologists see it, and what is odd said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from invsolve.datasets.dicom.frames import APART, Place
from invsolve.errors import UserError

#: Direction cosines, and distances in mm, that differ by less are the same.
_SAME = 1e-3
#: Part of the distance between slices within which they count as equally spaced.
_REGULAR = 0.02
#: By the patient's axis across the slices: name, and where columns and rows are to grow. x is to the left, y to the back.
_VIEWS = {
    0: ("sagittal", np.array([0.0, 1, 0]), np.array([0.0, 0, -1])),
    1: ("coronal", np.array([1.0, 0, 0]), np.array([0.0, 0, -1])),
    2: ("axial", np.array([1.0, 0, 0]), np.array([0.0, 1, 0])),
}


@dataclass(frozen=True)
class Turn:
    """How stored pixels become the picture that radiologists see: transposed first, then rows and columns reversed."""

    transpose: bool = False
    rows: int = 1
    columns: int = 1

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Turn an image (rows, columns)."""
        return (image.T if self.transpose else image)[:: self.rows, :: self.columns]


@dataclass
class Stack:
    """Slices of one size, orientation and spacing, each position once.

    Attributes:
        places: the frames, in order.
        turn: what makes pictures of them.
        notes: one line each on what was found and done.
        volumes: one label per slice; another one after a gap. None without gaps.
    """

    places: list[Place]
    turn: Turn
    notes: list[str]
    volumes: list[int] | None

    def part(self, start: int, stop: int) -> Stack:
        labels = None if self.volumes is None else self.volumes[start:stop]
        return Stack(self.places[start:stop], self.turn, self.notes, labels)


def regular(places: list[Place], number: int | None, path: Path) -> Stack:
    """The one stack that the frames of a series make, or the wanted one of several.

    Args:
        places: frames of one series.
        number: number of the stack, where there are several.
        path: for messages.

    Raises:
        UserError: there are several and none was chosen, or frames share a position and nothing tells them apart.
    """
    stacks, why = _stacks(places, path)
    if number is None and len(stacks) > 1:
        listed = "; ".join(f"stack={k} ({_described(frames, mark)})" for k, (frames, mark) in enumerate(stacks[:12]))
        more = f"; and {len(stacks) - 12} more" if len(stacks) > 12 else ""
        raise UserError(f"{path}: its slices have {why}; choose the stack: {listed}{more}")
    if not 0 <= (number or 0) < len(stacks):
        raise UserError(f"{path}: stack={number} must be 0 to {len(stacks) - 1}")
    return _in_order(stacks[number or 0][0])


def _stacks(places: list[Place], path: Path) -> tuple[list[tuple[list[Place], str]], str]:
    """Groups of frames that fit together, each with what is its own; and in what way they differ."""
    places = list({p.uid: p for p in places}.values())
    groups: list[list[Place]] = []
    for place in places:
        fitting = [g for g in groups if _fit(g[0], place)]
        if fitting:
            fitting[0].append(place)
        else:
            groups.append([place])
    why = []
    if len(sizes := sorted({p.size for p in places})) > 1:
        why.append(f"{len(sizes)} sizes {sizes}")
    for name, values in (
        ("orientations", [g[0].across for g in groups]),
        ("pixel spacings", [g[0].spacing for g in groups]),
        ("kinds of values", [g[0].kind for g in groups]),
    ):
        different = sorted({str(v if isinstance(v, str) else _rounded(v)) for v in values})
        if len(different) > 1:
            why.append(f"{len(different)} {name} {', '.join(different)}")
    if len(groups) > 1 and not why:
        why.append("positions in some files only")
    stacks: list[tuple[list[Place], str]] = []
    for group in groups:
        parts = _phases(group, path)
        stacks += parts
        if len(parts) > 1:
            why.append(f"{len(parts)} phases at the same positions ({parts[0][1].split('=')[0]})")
    return stacks, " and ".join(why)


def _fit(a: Place, b: Place) -> bool:
    return (
        a.size == b.size
        and a.kind == b.kind
        and _same(a.across, b.across)
        and _same(a.spacing, b.spacing)
        and (a.position is None) == (b.position is None)
    )


def _same(a: Iterable[float] | None, b: Iterable[float] | None) -> bool:
    if a is None or b is None:
        return a is None and b is None
    return bool(np.allclose(np.asarray(a), np.asarray(b), atol=_SAME, rtol=0))


def _rounded(values: Iterable[float] | None) -> str:
    return "not said" if values is None else "(" + " ".join(f"{v + 0.0:.4g}" for v in values) + ")"


def _along(places: list[Place]) -> np.ndarray | None:
    """Where each frame is across the slices, mm, growing as the turned stack does; None without positions."""
    first = places[0]
    if first.across is None or first.position is None:
        return None
    normal = np.cross(first.across[:3], first.across[3:])
    _, columns, rows = _VIEWS[int(np.abs(normal).argmax())]
    normal = normal * (1 if normal @ np.cross(columns, rows) >= 0 else -1)
    return np.array([normal @ p.position for p in places])


def _phases(group: list[Place], path: Path) -> list[tuple[list[Place], str]]:
    """The group itself, or its parts by what tells frames at one position apart."""
    along = _along(group)
    if along is None or len(group) < 2:
        return [(group, "")]
    apart = _SAME if group[0].spacing is None else _REGULAR * min(group[0].spacing)
    levels = np.cumsum(np.diff(np.sort(along), prepend=along.min()) > apart)
    most = int(np.bincount(levels).max())
    if most == 1:
        return [(group, "")]
    level = np.empty(len(group), int)
    level[np.argsort(along, kind="stable")] = levels
    varying = [n for n in APART if len({p.apart.get(n) for p in group}) > 1]
    for names in [*combinations(varying, 1), *combinations(varying, 2)]:
        parts: dict[tuple[str | None, ...], list[int]] = {}
        for k, place in enumerate(group):
            parts.setdefault(tuple(place.apart.get(n) for n in names), []).append(k)
        # A value of its own for every slice, such as a time, tells slices apart and no phases.
        if len(parts) == most and all(len({level[k] for k in part}) == len(part) for part in parts.values()):
            return [
                ([group[k] for k in part], ", ".join(f"{n}={v}" for n, v in zip(names, value, strict=True)))
                for value, part in sorted(parts.items(), key=lambda item: [_by_number(v) for v in item[0]])
            ]
    shared = int((np.bincount(levels) > 1).sum())
    raise UserError(
        f"{path}: {shared} of {levels[-1] + 1} positions hold more than one slice, and nothing in the headers tells them "
        "apart; put the files of one phase into a folder of its own"
    )


def _by_number(value: str | None) -> tuple[float, str]:
    try:
        return float(value or 0), str(value)
    except ValueError:
        return float("inf"), str(value)


def _in_order(places: list[Place]) -> Stack:
    along = _along(places)
    if along is None:
        order = sorted(places, key=lambda p: (p.number, str(p.file), p.frame))
        notes = ["slices have no positions; sorted by instance number"] if len(places) > 1 else []
        return Stack(order, _turn(places[0], notes), notes, None)
    order = [places[k] for k in np.argsort(along, kind="stable")]
    notes = []
    turn = _turn(order[0], notes)
    volumes = _gaps(order, np.sort(along), notes)
    return Stack(order, turn, notes, volumes)


def _turn(place: Place, notes: list[str]) -> Turn:
    """What makes rows run from front to back or top to bottom, and columns from the patient's right to left."""
    if place.across is None:
        return Turn()
    columns, rows = place.across[:3], place.across[3:]
    normal = np.cross(columns, rows)
    name, to_columns, to_rows = _VIEWS[int(np.abs(normal).argmax())]
    transpose = bool(abs(columns @ to_columns) < abs(rows @ to_columns))
    if transpose:
        columns, rows = rows, columns
    turn = Turn(transpose, 1 if rows @ to_rows >= 0 else -1, 1 if columns @ to_columns >= 0 else -1)
    size = np.linalg.norm(normal)
    away = np.degrees(np.arccos(min(float(np.abs(normal).max() / size), 1.0))) if size else 0.0
    notes.append(f"{name} slices" + (f", {away:.0f} degrees oblique" if away > 1 else ""))
    if turn != Turn():
        notes.append(
            "slices are turned as radiologists see them: rows to the back or down, columns to the patient's left"
        )
    return turn


def _gaps(places: list[Place], along: np.ndarray, notes: list[str]) -> list[int] | None:
    """Say how slices follow one another; labels of the parts that are without a gap, or None for one part."""
    if len(places) < 2:
        return None
    steps = np.diff(along)
    step = float(np.median(steps))
    tolerance = max(_REGULAR * step, 2 * _SAME)
    _tilt(places, along, notes)
    if np.all(np.abs(steps - step) <= tolerance):
        notes.append(f"slices {step:.4g} mm apart")
        return None
    missing = np.rint(steps / step).astype(int) - 1
    if np.all(np.abs(steps - (missing + 1) * step) <= tolerance * (missing + 1)) and missing.min() >= 0:
        where = ", ".join(f"{along[k]:.4g} and {along[k + 1]:.4g} mm" for k in np.flatnonzero(missing)[:4])
        notes.append(
            f"{missing.sum()} slices are missing from a stack {step:.4g} mm apart (between {where}); the parts count as "
            "volumes of their own"
        )
        return np.concatenate([[0], np.cumsum(missing > 0)]).tolist()
    notes.append(f"slices are not equally spaced: {steps.min():.4g} to {steps.max():.4g} mm apart")
    return None


def _tilt(places: list[Place], along: np.ndarray, notes: list[str]) -> None:
    """Say when slices are shifted within their plane, as those of a tilted gantry are."""
    first = places[0].across
    assert first is not None
    normal = np.cross(first[:3], first[3:])
    positions = np.array([p.position for p in places])
    inside = positions - np.outer(positions @ normal, normal)
    shift = float(np.linalg.norm(inside - inside[0], axis=1).max())
    if shift > 0.1 * min(places[0].spacing or (1.0, 1.0)):
        angle = np.degrees(np.arctan2(shift, np.ptp(along)))
        notes.append(
            f"slices are shifted against one another within their plane by up to {shift:.4g} mm (gantry tilted by "
            f"{angle:.0f} degrees?); they are not moved back"
        )


def _described(places: list[Place], mark: str) -> str:
    first = places[0]
    parts = [f"{len(places)} slices of {first.size[0]} x {first.size[1]}"]
    if first.across is not None:
        parts.append(_VIEWS[int(np.abs(np.cross(first.across[:3], first.across[3:])).argmax())][0])
    if first.spacing is not None:
        parts.append(f"pixel {first.spacing[0]:.4g} x {first.spacing[1]:.4g} mm")
    return ", ".join([*parts, *([mark] if mark else [])])
