"""Which weights of a run are kept: those that denoise whole held-out images best, level by level, not those of least loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.contracts.prior import Prior, per_row
from invsolve.numerics.random import ChainRandom

#: Noise levels over the range of the images. The training loss is ruled by far larger ones, at which all networks are alike.
LEVELS = (0.05, 0.1, 0.2, 0.5)
_NOISE = 7


@torch.no_grad()
def denoising_psnr(
    prior: Prior,
    images: Tensor,
    levels: Sequence[float] = LEVELS,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> list[float]:
    """Mean PSNR over images of D(x + sigma n, sigma) at sigma = level * range, for each level.

    Args:
        prior: on `device`.
        images: (N, C, *spatial), network units (range 2), on the CPU.
        levels: sigma over the range; an image meets the same noise at each.
        batch_size: images at once.
        device: where to compute.

    Returns:
        dB, one number a level.
    """
    scores_by_level: list[list[float]] = [[] for _ in levels]
    for first in range(0, len(images), batch_size):
        clean = images[first : first + batch_size]
        noise = ChainRandom(_NOISE, [(first + i, 0) for i in range(len(clean))]).normal(clean).to(device)
        clean = clean.to(device)
        for scores, level in zip(scores_by_level, levels, strict=True):
            sigma = torch.full((len(clean),), 2 * level, device=device)
            error = prior.denoise(clean + per_row(sigma, clean) * noise, sigma) - clean
            scores += (10 * torch.log10(4 / error.square().flatten(1).mean(1).clamp(min=1e-12))).tolist()
    return [sum(scores) / len(scores) for scores in scores_by_level]
