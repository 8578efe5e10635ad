"""Log-likelihoods of Poisson counts, as differences from where they are highest: sums of large counts lose nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def deviance(counts: Tensor, rate: Tensor) -> Tensor:
    """log Poisson(counts; rate) - log Poisson(counts; counts), at most 0, of each number; counts need not be whole.

    Far below the counts it goes on as a straight line, which leads back from rates that no mean can have.
    """
    seen = counts > 0
    safe = torch.where(seen, counts, torch.ones_like(counts))
    low = 1e-3 * safe
    ratio = torch.maximum(rate, low) / safe
    inside = safe * (ratio.log() - ratio + 1) + (rate - low).clamp(max=0) * (1 / 1e-3 - 1)
    return torch.where(seen, inside, -rate.clamp_min(0))


def highest(counts: Tensor) -> Tensor:
    """log Poisson(counts; counts) of each number: small, where its parts are as large as the counts."""
    return torch.xlogy(counts, counts) - counts - torch.lgamma(counts + 1)
