"""Whether points fall into groups: how far apart the two kinds of their pairwise distances lie, near and far."""

from __future__ import annotations

import torch
from torch import Tensor

#: Points that are looked at, at most; more tell nothing new. And the least of which anything can be told.
MOST, LEAST = 256, 6


def grouping(points: Tensor) -> float:
    """Bimodality of the pairwise distances of points (S, ...): gap between near and far ones over the spread within both.

    The distances, sorted, are cut in two where the variance within both parts is least (Otsu 1979). Distances of points of
    one Gaussian give 3.2 at most for many points, more for few (`limit`); of two groups, six of their standard deviations
    apart along a line, 4, of images with tens of details in which groups differ, tens. NaN for fewer than 6 points.
    """
    if len(points) < LEAST:
        return float("nan")
    points = points[:MOST]
    flat = torch.view_as_real(points) if points.is_complex() else points
    distances = torch.pdist(flat.flatten(1).double()).sort().values
    count = len(distances)
    near = torch.arange(1, count, dtype=torch.float64)
    far = count - near
    total, square = distances.cumsum(0), distances.square().cumsum(0)
    near_mean, far_mean = total[:-1] / near, (total[-1] - total[:-1]) / far
    # All the variance but that between the two means.
    within = (square[-1] - near * near_mean**2 - far * far_mean**2).clamp_min(0) / count
    cut = int(within.argmin())
    gap = float(far_mean[cut] - near_mean[cut])
    return gap / max(float(within[cut]) ** 0.5, 1e-6 * gap) if gap > 0 else 0.0


def limit(count: int) -> float:
    """What `grouping` of so many points of one Gaussian hardly ever exceeds: along a line once in some thousands of times."""
    return 3.1 + 75 / min(count, MOST)
