"""What each ray counts in filtered back-projection of fans and cones: rays that are measured twice share one weight."""

from __future__ import annotations

import math

import numpy as np

from invsolve.operators.ct.edges import half_acquisition, is_full_turn, parts_of_circle
from invsolve.operators.ct.geometry import Geometry

# Degrees by which a scan may fall short of half a turn and the fan, from rounding.
_SHORT = 1e-6


def fan_angles(geometry: Geometry) -> np.ndarray:
    """Angle between each detector column and the ray through the axis, radians; (detectors,)."""
    along = geometry.positions() / (geometry.source_distance + geometry.detector_distance)
    return along if geometry.curved else np.arctan(along)


def view_weights(geometry: Geometry) -> np.ndarray:
    """The angle that each view stands for, radians; (views,). A scan of less than a turn has two ends."""
    degrees = np.asarray(geometry.angles)
    if is_full_turn(degrees):
        return parts_of_circle(degrees, 360)
    order = np.argsort(degrees, kind="stable")
    gaps = np.diff(degrees[order])
    if not len(gaps):
        return np.array([math.pi])
    weights = np.empty(len(degrees))
    weights[order] = np.convolve(np.pad(gaps, 1, mode="edge"), [0.5, 0.5], mode="valid")
    return np.deg2rad(weights)


def redundancy(geometry: Geometry) -> np.ndarray:
    """What each ray counts so that each line counts one in all, (views or 1, detectors).

    A full turn measures every line twice: one half each, and with the axis off the detector's middle (half acquisition) more
    where the other side does not reach (Wang 2002). At least half a turn and the fan: Parker's weights (1982), for any
    overscan (Silver 2000). Less: all that there is, a half where it is there twice.
    """
    gamma, degrees = fan_angles(geometry), np.asarray(geometry.angles)
    if is_full_turn(degrees):
        both = half_acquisition(geometry)
        return (np.ones_like(gamma) if both is None else both)[None] / 2
    beta = np.deg2rad(degrees - degrees.min())[:, None]
    span = float(beta.max())
    excess = (span - math.pi) / 2
    if excess < np.abs(gamma).max() - math.radians(_SHORT):
        # The same line from the other side: angle a + 180 - 2 gamma or a - 180 - 2 gamma, at -gamma.
        there = [
            (other >= 0) & (other <= span) & (np.abs(gamma) <= min(-gamma.min(), gamma.max()))
            for other in (beta + math.pi - 2 * gamma, beta - math.pi - 2 * gamma)
        ]
        return np.where(there[0] | there[1], 0.5, 1.0)
    # Parker's fan angle grows the other way.
    gamma = np.broadcast_to(-gamma, (len(beta), len(gamma)))
    with np.errstate(divide="ignore", invalid="ignore"):
        begin = np.sin(np.pi / 4 * beta / (excess - gamma)) ** 2
        end = np.sin(np.pi / 4 * (span - beta) / (excess + gamma)) ** 2
    rising, falling = beta < 2 * (excess - gamma), beta > math.pi - 2 * gamma
    return np.where(rising, np.where(falling, np.minimum(begin, end), begin), np.where(falling, end, 1.0))
