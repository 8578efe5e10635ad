"""Whether ranks are uniform: chi-square of their histogram, and the largest departure of their empirical distribution."""

from __future__ import annotations

import numpy as np
from scipy import stats


def histogram(ranks: np.ndarray, samples: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of ranks (T,) in 0 .. samples by bin, and the share of a uniform rank that falls into each bin."""
    bins = min(bins, samples + 1)
    place = np.arange(samples + 1) * bins // (samples + 1)
    counts = np.bincount(place[ranks], minlength=bins)
    return counts, np.bincount(place, minlength=bins) / (samples + 1)


def bin_count(trials: int, samples: int) -> int:
    """As many bins as leave about five trials each, 2 to 20."""
    return int(np.clip(trials // 5, 2, min(20, samples + 1)))


def chi_square(ranks: np.ndarray, samples: int) -> float:
    """P-value of Pearson's test on the rank histogram."""
    counts, shares = histogram(ranks, samples, bin_count(len(ranks), samples))
    return float(stats.chisquare(counts, shares * len(ranks)).pvalue)


def ecdf_band(ranks: np.ndarray, samples: int, simulations: int = 2000, seed: int = 0) -> float:
    """P-value of the empirical distribution of the ranks against a simultaneous band (Sailynoja, Burkner, Vehtari 2022).

    At each rank z the number of ranks <= z is binomial; the statistic is the smallest two-sided tail probability over z, its
    distribution simulated, so that the band holds for all z at once.
    """
    trials = len(ranks)
    shares = np.arange(1, samples + 1)[:, None] / (samples + 1)
    counts = np.arange(trials + 1)[None]
    low, high = stats.binom.cdf(counts, trials, shares), stats.binom.sf(counts - 1, trials, shares)
    tails = np.minimum(1.0, 2 * np.minimum(low, high))

    def statistic(rows: np.ndarray) -> np.ndarray:
        below = np.stack([np.bincount(row, minlength=samples + 1).cumsum()[:-1] for row in rows])
        return tails[np.arange(samples), below].min(1)

    uniform = np.random.default_rng(seed).integers(0, samples + 1, (simulations, trials))
    smallest_tail = statistic(ranks[None])[0]
    return float((1 + np.count_nonzero(statistic(uniform) <= smallest_tail)) / (1 + simulations))


def verdict(ranks: np.ndarray, samples: int, p_value: float, level: float) -> str:
    """In words: "uniform", or how the samples lie to the truth, by whichever of the ranks' mean and spread is further off."""
    if p_value >= level:
        return "uniform"
    trials = len(ranks)
    unit = (ranks + 0.5) / (samples + 1) - 0.5
    shift = unit.mean() * np.sqrt(12 * trials)
    # The variance of unit^2 for uniform ranks is 1/180.
    spread = (unit.var() - 1 / 12) * np.sqrt(180 * trials)
    if abs(shift) > abs(spread):
        return "samples too low" if shift > 0 else "samples too high"
    return "samples too narrow" if spread > 0 else "samples too wide"


def bars(ranks: np.ndarray, samples: int, bins: int = 16) -> str:
    """The rank histogram as text, one character a bin; a full bar is twice the uniform height."""
    counts, shares = histogram(ranks, samples, bins)
    levels = np.clip(np.rint(counts / (shares * len(ranks)) * 4), 0, 8).astype(int)
    return "".join(" ▁▂▃▄▅▆▇█"[level] for level in levels)
