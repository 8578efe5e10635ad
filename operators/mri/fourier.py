"""The centred Fourier transform as a plain one between two phase factors: nothing is shifted in memory."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def before(size: Sequence[int]) -> Tensor:
    """Q of FFTc = P F Q: what an image of this size is multiplied with; complex128, exactly +-1 along even axes.

    F is `torch.fft.fftn`, FFTc the centred transform, whose middle of image and k-space is element c = N // 2 of each axis.
    Q_n = exp(2 pi i c n / N).
    """
    factor = torch.ones((), dtype=torch.complex128)
    for count in size:
        factor = factor[..., None] * _turn(count)
    return factor


def after(size: Sequence[int]) -> Tensor:
    """P of FFTc = P F Q: what k-space is multiplied with; P_k = Q_k exp(-2 pi i c^2 / N) along each axis."""
    factor = before(size)
    for count in size:
        rest = (count // 2) ** 2 % count
        # Even N have no turn left, or half a one.
        factor = factor * ((-1.0 if rest else 1.0) if count % 2 == 0 else cmath.exp(-2j * math.pi * rest / count))
    return factor


def _turn(count: int) -> Tensor:
    steps = (count // 2 * torch.arange(count)) % count
    if count % 2 == 0:
        return (1.0 - 2.0 * (steps > 0)).to(torch.complex128)
    return torch.polar(torch.ones(count, dtype=torch.float64), 2 * math.pi / count * steps.double())
