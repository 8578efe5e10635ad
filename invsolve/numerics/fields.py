"""Stationary Gaussian fields on a periodic grid: their power spectrum, and what is diagonal in it."""

from __future__ import annotations

import torch
from torch import Tensor


def power_spectrum(size: int, std: float, length: float, decay: float) -> Tensor:
    """S(k) ~ (1 + (2 pi k length / N)^2)^-decay on the N x N grid, (N, N) float64, frequency zero first.

    Args:
        size: N.
        std: standard deviation of a pixel, whose square is the mean of S.
        length: correlation length in pixels.
        decay: 1.5 gives exponential correlations.
    """
    k = torch.fft.fftfreq(size, dtype=torch.float64) * 2 * torch.pi * length
    shape = (1 + k[:, None] ** 2 + k[None] ** 2) ** -decay
    return std**2 * shape / shape.mean()


def filtered(x: Tensor, response: Tensor) -> Tensor:
    """Images (B, C, N, N) through the circular filter of a real, even response, which broadcasts against them."""
    return torch.fft.ifft2(response * torch.fft.fft2(x)).real


def circulant(response: Tensor) -> Tensor:
    """The matrix (N^2, N^2) of `filtered` on one flattened image; for a power spectrum, the field's covariance."""
    size = len(response)
    identity = torch.eye(size * size, dtype=response.dtype).view(-1, size, size)
    return filtered(identity, response).reshape(size * size, size * size).T
