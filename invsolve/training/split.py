"""Which images are trained on and which are held out: groups (patients) and volumes never cross."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from invsolve.errors import UserError
from invsolve.training.data import Images
from invsolve.training.settings import Settings

_TRAIN, _HELD_OUT = {"train", "training"}, {"val", "valid", "validation"}
_LISTED = 10_000


@dataclass(frozen=True)
class Split:
    """Indices of images, and how they were divided.

    Attributes:
        train, validation: indices, rising.
        kind: in words.
        held_out: groups of the validation images.
    """

    train: np.ndarray
    validation: np.ndarray
    kind: str
    held_out: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """For the header: counts, and which images were held out."""
        rows = self.validation.tolist()
        listed: dict[str, Any] = {"validation_rows": rows} if len(rows) <= _LISTED else {}
        return {
            "kind": self.kind,
            "train": len(self.train),
            "validation": len(rows),
            "held_out_groups": list(self.held_out),
            "validation_sha256": hashlib.sha256(self.validation.astype("<i8").tobytes()).hexdigest(),
            **listed,
        }


def divide(images: Images, rows: np.ndarray, settings: Settings) -> Split:
    """Divide the images that count.

    Raises:
        UserError: unknown labels, a group on both sides, or a side without images.
    """
    groups = images.labels(settings.groups)[rows] if settings.groups else None
    if settings.split:
        return _as_labelled(images, rows, groups, settings)
    if groups is None and images.cuts > 1 and images.volumes > 1:
        groups = np.array([f"volume {row // images.cuts}" for row in rows])
    wanted = max(1, round(settings.validation * len(rows)))
    rng = np.random.default_rng((settings.seed, 1))
    if groups is not None:
        return _by_groups(images, rows, groups, wanted, rng)
    if images.cuts > 1:
        # Neighbouring slices are nearly alike: a block in the middle shares only its two borders with the training.
        quarter = len(rows) // 4
        start = int(rng.integers(quarter, max(quarter + 1, len(rows) - quarter - wanted + 1)))
        held = np.zeros(len(rows), bool)
        held[start : start + wanted] = True
        return Split(rows[~held], rows[held], "a block of slices of the one volume")
    held = np.zeros(len(rows), bool)
    held[rng.permutation(len(rows))[:wanted]] = True
    return Split(rows[~held], rows[held], "images at random")


def _as_labelled(images: Images, rows: np.ndarray, groups: np.ndarray | None, settings: Settings) -> Split:
    labels = np.char.lower(images.labels(str(settings.split))[rows])
    train, held = np.isin(labels, sorted(_TRAIN)), np.isin(labels, sorted(_HELD_OUT))
    for side, name in ((train, "train"), (held, "val")):
        if not side.any():
            raise UserError(
                f"{images.path}: {settings.split!r} labels no image {name!r}; it has {', '.join(sorted({*labels})[:8])}"
            )
    both = [] if groups is None else sorted({*groups[train]} & {*groups[held]})
    if both:
        raise UserError(
            f"{images.path}: {settings.split!r} puts {settings.groups} {str(both[0])!r} on both sides"
            + (f" (and {len(both) - 1} more)" if len(both) > 1 else "")
            + "; mend the labels, or leave --split out"
        )
    names = () if groups is None else tuple(sorted(str(g) for g in {*groups[held]}))
    return Split(rows[train], rows[held], f"labels {settings.split!r}", names)


def _by_groups(images: Images, rows: np.ndarray, groups: np.ndarray, wanted: int, rng: np.random.Generator) -> Split:
    names = sorted({*groups})
    if len(names) < 2:
        raise UserError(f"{images.path}: all images are of the one group {str(names[0])!r}; leave --groups out")
    held_out: list[str] = []
    held = np.zeros(len(rows), bool)
    for k in rng.permutation(len(names)):
        mine = groups == names[k]
        if held.sum() + mine.sum() <= 1.5 * wanted:
            held |= mine
            held_out.append(str(names[k]))
        if held.sum() >= wanted:
            break
    if not held_out:
        held_out = [str(min(names, key=lambda name: int((groups == name).sum())))]
        held = groups == held_out[0]
    return Split(rows[~held], rows[held], "whole groups at random", tuple(sorted(held_out)))
