"""What of the pictures goes into a page of a given size: how many samples, how fine, how many pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from invsolve.report.encode import encode, shrink
from invsolve.report.frames import Frame

#: Pictures are not shrunk below so many pixels along their longer side while slices can be left out instead.
SMALLEST = 96


@dataclass(frozen=True)
class Plan:
    """How pictures are reduced.

    Attributes:
        step: to which values are rounded, in their unit; the standard deviation to half of it.
        samples: how many of an item's samples are kept.
        every: samples are kept in every so many-th frame.
        pixels: so many pixels each way of the mean are averaged into one.
        pixels_known: the same for truth and linear baseline.
        pixels_rest: the same for standard deviation and samples.
        stride: every so many-th frame is kept.
    """

    step: float
    samples: int
    every: int = 1
    pixels: int = 1
    pixels_known: int = 1
    pixels_rest: int = 1
    stride: int = 1

    def kept(self, frames: int) -> range:
        """The numbers of the frames that are kept."""
        return range(0, frames, self.stride)

    def samples_at(self, position: int) -> range:
        """Which samples are kept at a position of the slider."""
        return range(self.samples if position % self.every == 0 else 0)

    def reduction(self, name: str) -> tuple[int, float]:
        """Pixels averaged into one, and step, of the picture of this name."""
        factors = {"mean": self.pixels, "truth": self.pixels_known, "linear": self.pixels_known}
        return factors.get(name, self.pixels_rest), self.step / 2 if name == "std" else self.step


def ladder(samples: int, size: tuple[int, int], frames: int, steps: tuple[float, float, float]) -> Iterator[Plan]:
    """Plans from the best to the smallest: samples go first, then fineness, then pixels, then slices.

    Args:
        samples: S; 0 where none are shown.
        size: rows and columns.
        frames: how many.
        steps: a fine, a middle and a coarse one.
    """
    fine, middle, coarse = steps
    few, two = min(samples, 4), min(samples, 2)
    yield Plan(fine, samples)
    yield Plan(middle, samples)
    yield Plan(middle, few)
    yield Plan(middle, few, every=2, pixels_rest=2)
    yield Plan(middle, few, every=4, pixels_rest=2)
    yield Plan(coarse, few, every=4, pixels_rest=2)
    pixels = 2
    while max(size) // pixels >= SMALLEST:
        half = pixels // 2
        yield Plan(middle, few, 4, half, pixels, pixels)
        yield Plan(middle, two, 8, half, pixels, pixels)
        yield Plan(coarse, two, 8, half, pixels, pixels)
        yield Plan(middle, few, 4, pixels, pixels, pixels)
        yield Plan(coarse, two, 8, pixels, pixels, pixels)
        pixels *= 2
    pixels //= 2
    stride = 2
    while stride < frames:
        yield Plan(coarse, two, 4, pixels, pixels, pixels, stride)
        stride *= 2


class Sizes:
    """Bytes that plans would take, from a few frames.

    Args:
        probes: frames spread over the result.
        rest: pictures (rows, columns) beside those of the frames, which are not reduced but in step.
    """

    def __init__(self, probes: list[Frame], rest: int) -> None:
        self.probes = [frame.pictures([0]) for frame in probes]
        self.rest = rest
        self._known: dict[tuple[str, int, float], float] = {}

    def frame(self, plan: Plan) -> float:
        """Mean size of a frame in the page, in bytes of text."""
        total = 0.0
        for name in self.probes[0]:
            kept = plan.samples / plan.every if name == "sample-0" else 1.0
            total += kept * self._picture(name, *plan.reduction(name))
        return (total + self.rest) * 4 / 3 + 1500

    def _picture(self, name: str, factor: int, step: float) -> float:
        key = (name, factor, step)
        if key not in self._known:
            sizes = [len(encode(shrink(p[name], factor), step)[2]) for p in self.probes]
            self._known[key] = float(np.mean(sizes))
        return self._known[key]


def describe(plan: Plan, samples: int, frames: int, size: tuple[int, int], unit: str, megabytes: float) -> list[str]:
    """What was reduced, as sentences; the first is on the rounding, which is always done."""
    known = f" {unit}" if unit else ""
    lines = [
        f"Values in the pictures are rounded to {plan.step:.2g}{known} (the standard deviation to half of that); metrics, "
        "coverage and discrepancy are those of the file's own numbers."
    ]
    limit = f"to keep the page below {megabytes:g} MB"
    if 0 < plan.samples < samples:
        lines.append(f"{plan.samples} of {samples} samples are kept {limit}.")
    if samples and plan.every > 1:
        lines.append(f"Samples are kept at every {_th(plan.every)} slice {limit}.")
    kinds = {"mean": plan.pixels, "truth, error and linear baseline": plan.pixels_known}
    kinds |= {"standard deviation and samples": plan.pixels_rest} if samples else {}
    for factor in sorted(set(kinds.values()) - {1}):
        names = [name for name, own in kinds.items() if own == factor]
        which = "all pictures" if len(names) == len(kinds) else ", ".join(names)
        rows, columns = (-(-s // factor) if s > 1 else 1 for s in size)
        lines.append(
            f"{which[0].upper()}{which[1:]} are reduced from {size[0]} x {size[1]} to {rows} x {columns} pixels, means of "
            f"{factor} x {factor}, {limit}."
        )
    if plan.stride > 1:
        lines.append(f"Every {_th(plan.stride)} of {frames} slices is kept {limit}.")
    return lines


def _th(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
