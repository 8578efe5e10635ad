"""Bounds on what goes on inside a network without norms: measured on images, so that nothing far from them can blow up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from invsolve.contracts.prior import Prior, per_row
from invsolve.numerics.random import ChainRandom
from invsolve.training.error_curve import log_spaced

#: Over the largest that was seen on images.
MARGIN = 1.2
#: While a network is trained from random weights: above what images cause, far below what would spoil a step.
_WHILE_TRAINING = 100.0
_LEVELS, _NOISE = 12, 9


def begin_limits(prior: Prior, other: Prior | None) -> None:
    """Bounds for the training: those of the prior that it begins with where its network is the same, else wide ones."""
    network: Any = getattr(prior, "network", None)
    if not hasattr(network, "blocks"):
        return
    count = len(list(network.blocks()))
    theirs = getattr(other, "header", {}).get("architecture", {}).get("config", {}).get("limits") or ()
    _set(prior, theirs if len(theirs) == count else [_WHILE_TRAINING] * count)


@torch.no_grad()
def measure_limits(
    prior: Prior, images: Tensor, batch_size: int = 16, device: torch.device | str = "cpu"
) -> list[float] | None:
    """Bound a fast network's features and estimate by the largest that images with noise of any level cause, with a margin.

    Args:
        prior: on `device`; its network and its header are changed. Other networks are left alone.
        images: (N, C, *spatial), network units, on the CPU.
        batch_size: images at once.
        device: where to compute.

    Returns:
        The limits, or None for a network that has none.
    """
    network: Any = getattr(prior, "network", None)
    if not hasattr(network, "blocks"):
        return None
    blocks = list(network.blocks())
    largest = [0.0] * len(blocks)

    def watch(place: int) -> Any:
        def look(block: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            peak = inputs[0].float().square().mean(1).max().sqrt()
            largest[place] = max(largest[place], float(peak))

        return look

    outside = [0.0]

    def look_at_estimate(net: torch.nn.Module, inputs: Any, made: tuple[Tensor]) -> None:
        outside[0] = max(outside[0], float(made[0].abs().max()))

    hooks = [network.register_forward_hook(look_at_estimate)]
    hooks += [block.register_forward_pre_hook(watch(k)) for k, block in enumerate(blocks)]
    try:
        for first in range(0, len(images), batch_size):
            clean = images[first : first + batch_size]
            noise = ChainRandom(_NOISE, [(first + i, 0) for i in range(len(clean))]).normal(clean).to(device)
            for sigma in log_spaced(prior.sigma_min, prior.sigma_max, _LEVELS):
                level = torch.full((len(clean),), sigma, device=device)
                prior.denoise(clean.to(device) + per_row(level, noise) * noise, level)
    finally:
        for hook in hooks:
            hook.remove()
    limits = [round(MARGIN * value, 4) for value in largest]
    _set(prior, limits)
    network.largest = round(MARGIN * outside[0], 4)
    prior.header["architecture"]["config"]["largest"] = network.largest  # type: ignore[index]
    return limits


def _set(prior: Prior, limits: Sequence[float]) -> None:
    network: Any = prior.network
    network.limit(limits)
    header: Any = prior.header
    header["architecture"]["config"]["limits"] = [float(value) for value in limits]
