"""How far the figures of exact draws may be off by chance: standard errors that follow from the number of draws, times `Z`."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats
from torch import Tensor

#: Standard errors that a figure may be off: of normal numbers one in 16,000 is further out, to either side.
Z = 4.0


def dimensions(covariance: Tensor) -> float:
    """How many independent numbers of equal variance scatter as one draw (tr C)^2 / tr C^2 of this covariance (d, d) does."""
    return float(covariance.trace() ** 2 / covariance.square().sum())


def mean_error(draws: float, std: float = 1.0) -> float:
    """Of the mean of so many independent numbers of standard deviation `std`."""
    return Z * std / math.sqrt(draws)


def rms_error(draws: float, dims: float, bias: float = 0.0) -> float:
    """Of the means of so many draws in `dims` dimensions, rms over them, in standard deviations of one draw.

    The sum of squares over the variance of a mean is noncentral chi-squared; its noncentrality is that of `bias`, which is
    what the mean of endless draws may be off, rms, in standard deviations.
    """
    tail, shift = stats.norm.sf(Z), draws * dims * bias**2
    square = stats.ncx2.isf(tail, dims, shift) if shift else stats.chi2.isf(tail, dims)
    return math.sqrt(float(square) / (dims * draws))


def width_error(draws: float, dims: float = 1.0, kurtosis: float = 3.0) -> float:
    """Of the standard deviation of so many draws in `dims` dimensions together, relative.

    A variance of n numbers has the relative variance (kurtosis - 1) / (n - 1), a width half the standard error.
    """
    return Z * math.sqrt((kurtosis - 1) / (4 * (draws - 1) * dims))


def share_error(draws: float, share: float) -> float:
    """Of the share of so many independent draws that an event of probability `share` takes."""
    return Z * math.sqrt(share * (1 - share) / draws)


def between(width: float, claim: tuple[float, float], error: float) -> bool:
    """Whether a relative width lies in a claimed range, give or take a relative error."""
    return claim[0] * (1 - error) <= width <= claim[1] * (1 + error)


def kurtosis(law: np.ndarray) -> float:
    """Fourth moment over squared variance of draws or of a grid of equally likely values, any shape."""
    centred = np.asarray(law, dtype=float) - np.mean(law)
    return float(np.mean(centred**4) / np.mean(centred**2) ** 2)
