"""Smooth random phases for magnitude images, so that a prior of complex images can be trained where only magnitudes exist."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

#: Powers (row, column) of the polynomials: shims, receive coils and echo times leave phases that are smooth over the body.
_POWERS = tuple((i, j) for i in range(4) for j in range(4) if 0 < i + j < 5)
#: Uniform numbers an image that its phase takes: one for the offset, two for each normal coefficient.
DRAWS = 1 + 2 * len(_POWERS)


def smooth_phase(uniform: Tensor, size: tuple[int, ...], strength: float) -> Tensor:
    """Random low polynomials and a random offset.

    Args:
        uniform: (B, DRAWS), in [0, 1).
        size: rows and columns.
        strength: standard deviation of the coefficients of first order, radians over half the image; higher ones have less.

    Returns:
        Phases (B, 1, rows, columns), radians.
    """
    device = uniform.device
    axes = [torch.linspace(-1, 1, n, device=device) for n in size]
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    basis = torch.stack([rows**i * columns**j * (strength * 2 / (1 + i + j)) for i, j in _POWERS])
    radius, angle = uniform[:, 1:].float().chunk(2, 1)
    normal = (-2 * (1 - radius).clamp(min=1e-12).log()).sqrt() * (2 * math.pi * angle).cos()
    offset = 2 * math.pi * uniform[:, :1, None].float()
    return (torch.einsum("bk,kij->bij", normal, basis) + offset)[:, None]


def turn(x: Tensor, phase: Tensor) -> Tensor:
    """Turn complex images: x (B, 2 C, rows, columns), real and imaginary parts alternating, by phases (B, 1, rows, columns)."""
    real, imaginary = x[:, 0::2], x[:, 1::2]
    cosine, sine = phase.cos(), phase.sin()
    turned = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], 2)
    return turned.flatten(1, 2)


def fixed_phases(count: int, size: tuple[int, ...], strength: float, seed: int) -> Tensor:
    """Phases of held-out images, always the same: (count, 1, rows, columns)."""
    numbers = np.random.default_rng((seed, 8)).random((count, DRAWS))
    return smooth_phase(torch.from_numpy(numbers), size, strength)
