"""What the mean leaves of the measured data: y - A(mean), where the scan can be opened."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from invsolve.contracts.problem import real_view
from invsolve.jobs.origin import Measured

_LARGEST = 128


@dataclass(frozen=True)
class Residual:
    """A residual as a picture.

    Attributes:
        picture: (rows, columns), at most 128 each; NaN where nothing was measured.
        signed: False for root mean squares.
        relative: whether it is in units of the noise's standard deviation; else in those of y.
    """

    picture: np.ndarray
    signed: bool
    relative: bool

    @property
    def step(self) -> float:
        """What it is rounded to."""
        return 0.25 if self.relative else self.reach / 64

    @property
    def reach(self) -> float:
        """What is shown in the brightest colour."""
        known = np.abs(self.picture[np.isfinite(self.picture)])
        return 4.0 if self.relative else float(known.max(initial=0.0)) or 1.0


def standardised(measured: Measured, mean: torch.Tensor, item: int) -> Residual:
    """The residual y - A(mean) over the noise's standard deviation, where that is known and nowhere zero.

    Args:
        measured: with a measurement.
        mean: (C, *spatial), physical units.
        item: of the scan.

    Of large ones blocks are added up, so that white noise stays white and of standard deviation 1. Complex numbers, and axes
    before the last two, are brought to their root mean square.

    Raises:
        UserError: the operator does not take the image.
    """
    measurement = measured.measurement
    assert measurement is not None
    operator = measurement.operator_for(item)
    if operator.complex_image:
        operator = real_view(operator, mean.shape[0])
    y = measurement.y[item : item + 1]
    with torch.no_grad():
        predicted, noise = operator(mean[None].to(y.real.dtype)), measured.noise
        noise = None if noise is None else noise.rows([item], y.ndim)
        rest = y - (predicted if noise is None else noise.mean(predicted))
        std = torch.zeros(()) if noise is None else noise.std_from(y)
        relative = bool((std > 0).all())
        if relative:
            rest = rest / std
        mask = operator.measured()
        if mask is not None:
            rest = torch.where(mask.expand(rest.shape), rest, torch.nan)
    rest = rest[0]
    real = not rest.is_complex()
    flat = rest.reshape(-1, *(rest.shape[-2:] if rest.ndim > 1 else (1, *rest.shape)))
    factor = -(-max(flat.shape[1:]) // _LARGEST)
    if real and len(flat) == 1:
        total, count = _blocks(flat[0].numpy(), factor)
        # So that white noise keeps its standard deviation.
        return Residual(total / np.sqrt(count), True, relative)
    total, count = _blocks((flat.abs().square() / (1 if real else 2)).nanmean(0).numpy(), factor)
    return Residual(np.sqrt(total / count), False, relative)


def _blocks(picture: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums over blocks of factor x factor pixels, and how many of each are known; NaN where none is."""
    rows, columns = (-(-size // factor) for size in picture.shape)
    pad = [(0, rows * factor - picture.shape[0]), (0, columns * factor - picture.shape[1])]
    whole = np.pad(picture, pad, constant_values=np.nan).reshape(rows, factor, columns, factor)
    count = np.isfinite(whole).sum((1, 3)).astype(np.float32)
    count[count == 0] = np.nan
    return np.nansum(whole, (1, 3)), count
