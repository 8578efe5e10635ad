"""Stationary Gaussian fields on a periodic grid: their power spectrum, and what is diagonal in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def power_spectrum(size: int | Sequence[int], std: float, length: float, decay: float) -> Tensor:
    """S(k) ~ (1 + (2 pi k length)^2)^-decay, k in cycles per pixel, on a grid of pixels; float64, frequency zero first.

    Args:
        size: N for N x N pixels, or rows and columns.
        std: standard deviation of a pixel, whose square is the mean of S.
        length: correlation length in pixels.
        decay: 1.5 gives exponential correlations.
    """
    sides = (size, size) if isinstance(size, int) else size
    down, right = (torch.fft.fftfreq(n, dtype=torch.float64) * 2 * torch.pi * length for n in sides)
    shape = (1 + down[:, None] ** 2 + right[None] ** 2) ** -decay
    return std**2 * shape / shape.mean()


def filtered(x: Tensor, response: Tensor) -> Tensor:
    """Images (B, C, rows, columns) through the circular filter of a real, even response, which broadcasts against them."""
    return torch.fft.ifft2(response * torch.fft.fft2(x)).real


def circulant(response: Tensor) -> Tensor:
    """The matrix (pixels, pixels) of `filtered` on one flattened image; for a power spectrum, the field's covariance."""
    pixels = response.numel()
    identity = torch.eye(pixels, dtype=response.dtype).view(-1, *response.shape)
    return filtered(identity, response).reshape(pixels, pixels).T
