"""The Gaussian of a prior's training images, and from which noise level on the network is no better than it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from invsolve.networks.gaussian_start import GaussianStart, level_of_choice
from invsolve.training.batches import Batches, held_out
from invsolve.training.data import spread
from invsolve.training.error_curve import mean_squared_error

#: Training images that it is measured on, at most, and how many numbers they may be.
_IMAGES, _NUMBERS = 2048, 2**26
#: Windows of images that are larger than what is trained on, at least.
_WINDOWS = 1024
#: Slow modes kept along each axis of a signal, an image, a volume: at the levels where it stands, the others are lost in noise.
_MODES = {1: 64, 2: 24, 3: 8}


def early_phase(
    batches: Batches,
    prepare: Callable[[Tensor], Tensor],
    seen: Tensor,
    curve: Mapping[str, Sequence[float]],
    should_stop: Callable[[], bool] | None = None,
) -> GaussianStart:
    """Measure the Gaussian on training images, and choose from which noise level on a prior is to use it.

    Args:
        batches: of the training, which know its images, how often each is drawn, and how they are mirrored.
        prepare: from physical to network units.
        seen: (N, C, *size), held-out images, network units.
        curve: error curve of the network on them.
        should_stop: asked between batches.

    Returns:
        It; its `above` is the lowest level of the curve from which on the network is nowhere better on the held-out images.

    Raises:
        Interrupted: when `should_stop` says so.
    """
    rows, weights = batches.rows, batches.weights
    count = max(2, min(_IMAGES, _NUMBERS // seen[0].numel()))
    chosen = spread(np.arange(len(rows)), count)
    # Of larger images several windows each, where images are few.
    windows = -(-_WINDOWS // len(chosen)) if tuple(batches.size) != tuple(batches.images.spatial) else 1
    parts = [held_out(batches.images, rows[chosen].tolist(), batches.size, prepare, seed) for seed in range(windows)]
    images = torch.cat(parts)
    share = None if weights is None else torch.from_numpy(weights[chosen]).repeat(windows)
    gaussian = GaussianStart.measure(images, share, _MODES[images.ndim - 2], mirrored=batches.flips)
    errors = mean_squared_error(gaussian, seen, curve["sigma"], should_stop=should_stop)
    gaussian.above = level_of_choice(curve, errors)
    return gaussian
