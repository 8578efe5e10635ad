"""Finding where the rotation axis projects: by opposite projections, then by the least negative picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.errors import UserError

_SIZE = 220
_VIEWS = 200


def find_centre(
    sinogram: np.ndarray, degrees: np.ndarray, make_ct: Callable[[dict[str, Any]], Operator], where: str
) -> tuple[float, str]:
    """Search the rotation centre.

    First the mirror point of the projections closest to half a turn apart, by correlation; without such a pair
    every position within an eighth of the detector's middle is tried. Then the centre for which a coarse filtered
    back-projection has the smallest sum of absolute values: attenuation is positive, a wrong centre makes dark
    streaks (Donath et al. 2006).

    Args:
        sinogram: (angles, detectors), line integrals, best summed over many rows.
        degrees: of each angle.
        make_ct: makes operator "ct" from its parameters.
        where: the file, for messages.

    Returns:
        The detector index (0-based, fractional), and how it was found.

    Raises:
        UserError: fewer than 150 degrees are covered, or no position is better than its neighbours.
    """
    remedy = "give it: centre=INDEX, the detector pixel (0-based) onto which the axis projects"
    if np.ptp(degrees) < 150:
        raise UserError(
            f"{where}: theta spans {np.ptp(degrees):.4g} degrees, too few to find the rotation centre; {remedy}"
        )
    count = sinogram.shape[1]
    pair = opposite_pair(degrees)
    if pair is not None:
        guess, reach = mirror_point(sinogram[pair[0]], sinogram[pair[1]]), max(4.0, count / 80)
        how = f"projections {degrees[pair[0]]:.4g} and {degrees[pair[1]]:.4g} degrees mirrored"
    else:
        guess, reach = (count - 1) / 2, count / 8
        how = "all positions tried"
    score = _Score(sinogram, degrees, guess, reach, make_ct)
    step = max(score.width / 2, 0.25)
    for step_ in (step, step / 4):
        candidates = guess + np.arange(-math.ceil(reach / step_), math.ceil(reach / step_) + 1) * step_
        values = score(candidates)
        best = int(values.argmin())
        if best in (0, len(values) - 1):
            raise UserError(
                f"{where}: the rotation centre was not found within {reach:.3g} pixels of {guess:.5g}; {remedy}"
            )
        guess, reach = float(candidates[best]), 2 * step_
    below, at, above = values[best - 1 : best + 2]
    curve = below - 2 * at + above
    guess += float(step_ * (below - above) / (2 * curve)) if curve > 0 else 0.0
    return guess, f"{how}, then least negative back-projection"


def opposite_pair(degrees: np.ndarray) -> tuple[int, int] | None:
    """The two angles closest to half a turn apart; None when none is within 1.5 steps, or 3 degrees."""
    turned = np.mod(degrees, 360)
    order = np.argsort(turned, kind="stable")
    opposite = np.mod(turned + 180, 360)
    after = np.searchsorted(turned[order], opposite)
    near = order[np.stack([after - 1, after]) % len(degrees)]
    apart = np.abs(np.mod(turned[near] - opposite + 180, 360) - 180)
    which, first = np.unravel_index(apart.argmin(), apart.shape)
    step = float(np.median(np.diff(np.sort(degrees))))
    if apart[which, first] > min(1.5 * step, 3.0) + 1e-6:
        return None
    return int(first), int(near[which, first])


def mirror_point(projection: np.ndarray, opposite: np.ndarray) -> float:
    """The index c with projection[c + t] = opposite[c - t], by correlation, to a fraction of a pixel."""
    count = len(projection)
    a, b = projection - projection.mean(), opposite[::-1] - opposite.mean()
    points = 2 ** math.ceil(math.log2(2 * count))
    match = np.fft.irfft(np.fft.rfft(a, points) * np.conj(np.fft.rfft(b, points)), points)
    k = int(match.argmax())
    below, at, above = match[k - 1], match[k], match[(k + 1) % points]
    curve = below - 2 * at + above
    shift = (k if k < points // 2 else k - points) + (0.5 * (below - above) / curve if curve < 0 else 0.0)
    return float((count - 1 + shift) / 2)


class _Score:
    """Mean absolute value of a coarse back-projection, for many centres at once: one operator, shifted sinograms."""

    def __init__(
        self,
        sinogram: np.ndarray,
        degrees: np.ndarray,
        guess: float,
        reach: float,
        make_ct: Callable[[dict[str, Any]], Operator],
    ) -> None:
        count = sinogram.shape[1]
        wide = 2 * (max(guess, count - 1 - guess) + min(reach, count / 8)) + 1
        self.width = max(wide / _SIZE, 1.0)
        self.size = math.ceil(wide / self.width)
        # Over a full turn a wrong centre blurs, but makes nothing negative: half of it tells more.
        half = np.flatnonzero(np.mod(degrees - degrees.min(), 360) < 180)
        views = half[np.unique(np.linspace(0, len(half) - 1, min(len(half), _VIEWS)).round().astype(int))]
        self.rays = gaussian_filter1d(sinogram[views], 0.4 * self.width, axis=1) if self.width > 1 else sinogram[views]
        operator = make_ct({"image_size": self.size, "angles": degrees[views].tolist(), "detectors": self.size})
        if not isinstance(operator, LinearOperator):
            raise RuntimeError(f"operator 'ct' must be linear, got {type(operator).__name__}")
        self.operator = operator
        offsets = np.arange(self.size) - (self.size - 1) / 2
        self.offsets = offsets * self.width
        self.inside = torch.from_numpy(np.hypot(offsets, offsets[:, None]) < 0.47 * self.size)

    def __call__(self, centres: np.ndarray) -> np.ndarray:
        index = np.arange(self.rays.shape[1])
        scores = []
        for centre in centres:
            shifted = np.stack([np.interp(centre + self.offsets, index, row) for row in self.rays])
            with torch.no_grad():
                picture = self.operator.baseline(torch.from_numpy(shifted.astype(np.float32))[None])
            scores.append(float(picture[0, 0].abs()[self.inside].double().mean()))
        return np.array(scores)
