"""What filtered back-projection does at the detector's edges: rays measured once and twice, and projections cut off."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.ct.geometry import Geometry

# Part of the strongest mean line integral from which on an edge counts as cutting the object off: below it may be noise, or
# the last pixel of an object that just fits.
_CUT = 0.05
# Of the detector's half width: as far as an object is thought to go on.
_FARTHEST = 3.0
# Part of the detector over which the slope at its edge is measured.
_SLOPE = 0.1
# Where the overlap of a half acquisition is narrower, all of it goes from one weight to the other.
_FEATHER = 0.1


def is_full_turn(degrees: np.ndarray) -> bool:
    """Whether the angles go all around, so that every ray far off the axis is measured from one side or the other."""
    ordered = np.unique(np.mod(degrees, 360).round(6))
    if len(ordered) < 4:
        return False
    gaps = np.diff(np.concatenate([ordered, ordered[:1] + 360]))
    # Random and golden angles have gaps of several steps.
    return bool(gaps.max() < min(max(5 * np.median(gaps), 4.0), 30.0))


def angle_weights(geometry: Geometry) -> np.ndarray:
    """Part of the half circle, in radians, that each angle stands for; on a full turn half of its part of the circle."""
    degrees = np.asarray(geometry.angles)
    if is_full_turn(degrees):
        return parts_of_circle(degrees, 360) / 2
    return parts_of_circle(degrees, 180)


def parts_of_circle(degrees: np.ndarray, turn: float) -> np.ndarray:
    """What each angle stands for of a turn of so many degrees, in radians: half the gaps to both neighbours."""
    turned = np.mod(degrees, turn)
    order = np.argsort(turned, kind="stable")
    gaps = np.diff(np.concatenate([turned[order], turned[order][:1] + turn]))
    weights = np.empty(len(turned))
    weights[order] = (gaps + np.roll(gaps, 1)) / 2
    return np.deg2rad(weights)


def half_acquisition(geometry: Geometry) -> np.ndarray | None:
    """What a ray counts on a full turn, (detectors,); None where all count one.

    A ray at s is measured again from the other side, at -s, if the detector reaches that far. Both weights add up to two:
    one each, two and none where only one is there, with a smooth step between (Wang 2002), because the ramp filter makes
    streaks of an edge.
    """
    if not is_full_turn(np.asarray(geometry.angles)):
        return None
    s = geometry.positions()
    # To the outer edges of the outermost pixels.
    low, high = -s[0] + geometry.detector_spacing / 2, s[-1] + geometry.detector_spacing / 2
    overlap, reach = min(low, high), max(low, high)
    if not 0 < overlap < reach - 1e-6 * geometry.detector_spacing:
        return None
    side = s if high > low else -s
    feather = min(overlap, max(_FEATHER * (low + high), 8 * geometry.detector_spacing))

    def step(t: np.ndarray) -> np.ndarray:
        """From 0 to 1 while t goes from 0 to the feather's width."""
        return np.sin(np.pi / 2 * np.clip(t / feather, 0, 1)) ** 2

    return step(side + overlap) + 1 - step(overlap - side)


def overlap(geometry: Geometry) -> float:
    """How far from the axis the detector reaches on both sides, length units."""
    s = geometry.positions()
    return float(min(-s[0], s[-1])) + geometry.detector_spacing / 2


def cut_off(y: Tensor) -> Tensor:
    """Which sinograms (B, angles, detectors) see a good part of the object at an edge of the detector; (B, 2), left and right."""
    mean = y.detach().mean(1)
    few = max(1, y.shape[2] // 50)
    edges = torch.stack([mean[:, :few].mean(1), mean[:, -few:].mean(1)], 1)
    return edges > _CUT * mean.amax(1, keepdim=True)


def extended(y: Tensor, geometry: Geometry, pad: int) -> Tensor:
    """Projections with `pad` more detector pixels at both sides: zero, or where an edge cuts the object off going on.

    Cut off, the filter takes the missing rest for a wall, which brightens all that is left. What is missing is thought to
    be as of a disc around the axis (Hsieh 2004): its radius follows from value and slope of the mean projection at that
    edge, its height from each projection's own value there.

    Args:
        y: (B, angles, detectors).
        geometry: of y.
        pad: detector pixels.
    """
    out = torch.nn.functional.pad(y, (pad, pad))
    mean = y.detach().double().mean(1)
    strongest = mean.amax(1)
    count, spacing = geometry.detectors, geometry.detector_spacing
    width = max(3, math.ceil(_SLOPE * count))
    s = torch.from_numpy(geometry.positions()).to(mean) / spacing
    if count < 2 * width:
        return out
    for right in (False, True):
        part = mean[:, -width:] if right else mean[:, :width].flip(1)
        at = s[-1] if right else -s[0]  # distance of the edge from the axis
        if at <= width:
            continue
        t = torch.arange(width, dtype=mean.dtype, device=mean.device) - (width - 1) / 2
        slope = (part * t).sum(1) / (t * t).sum()
        value = part.mean(1) + slope * (width - 1) / 2
        edge = cut_off(y)[:, int(right)] & (value > 0)
        # p = 2 mu sqrt(R^2 - s^2) has p p' = -4 mu^2 s.
        squared = -value * slope / (4 * at)
        rest = value**2 / (4 * squared.clamp(min=1e-12 * float(strongest.abs().max()) ** 2 + 1e-300))
        half = (s[-1] - s[0]) / 2
        farthest = ((_FARTHEST * torch.maximum(half, at)) ** 2 - at**2).clamp(min=1.0)
        rest = torch.where(squared > 0, rest.minimum(farthest), farthest)
        beyond = at + torch.arange(1, pad + 1, dtype=mean.dtype, device=mean.device)
        shape = ((rest[:, None] + at**2 - beyond**2).clamp(min=0) / rest[:, None]).sqrt() * edge[:, None]
        few = max(1, count // 50)
        own = (y[..., -few:] if right else y[..., :few]).mean(2, keepdim=True)
        tail = own * shape[:, None].to(y)
        if right:
            out[..., pad + count :] = tail
        else:
            out[..., :pad] = tail.flip(2)
    return out
