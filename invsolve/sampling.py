"""Drawing images from a prior alone: DPM-Solver++ 2M on the EDM schedule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from invsolve.contracts import schedules
from invsolve.contracts.prior import Prior
from invsolve.contracts.random import ChainRandom

SIZE = 128


def draw(
    prior: Prior,
    seed: int,
    steps: int = 24,
    count: int = 1,
    shape: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw images from a prior, network units: DPM-Solver++ 2M (Lu 2022) on the EDM schedule.

    Args:
        prior: on `device`.
        seed: image i depends on (seed, i) alone.
        steps: calls of the network.
        count: how many images, drawn in one batch.
        shape: (C, *spatial); default the prior's own, free sizes filled with 128.
        device: where to compute.

    Returns:
        (count, C, *spatial), float32.
    """
    wanted = tuple(shape or (s or SIZE for s in prior.event_shape))
    levels = schedules.edm(steps, prior.sigma_min, prior.sigma_max).tolist()
    chains = [(item, 0) for item in range(count)]
    x = levels[0] * ChainRandom(seed, chains).normal(torch.zeros(count, *wanted, device=device))
    before: Tensor | None = None
    for k, (sigma, sigma_next) in enumerate(pairwise(levels)):
        with torch.no_grad():
            estimate = prior.denoise(x, torch.tensor(sigma, device=device))
        forecast = estimate
        if before is not None and sigma_next > 0:
            ratio = torch.tensor(levels[k - 1] / sigma).log() / torch.tensor(sigma / sigma_next).log()
            forecast = estimate + (estimate - before) / (2 * ratio)
        x = sigma_next / sigma * x + (1 - sigma_next / sigma) * forecast
        before = estimate
    return x
