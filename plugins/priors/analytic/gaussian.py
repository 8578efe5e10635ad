"""Gaussian random field: an analytic prior, exact at every noise level, against which strategies are proved."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.contracts.arguments import rows_and_columns
from invsolve.contracts.operator import matching
from invsolve.contracts.prior import Prior, per_row
from invsolve.errors import UserError
from invsolve.numerics.fields import circulant, filtered, power_spectrum
from invsolve.numerics.modes import Modes
from invsolve.numerics.random import ChainRandom
from invsolve.numerics.spectrum import hartley


class GaussianField(Prior):
    """A stationary Gaussian field; analytic, for tests and for proof.

    A stationary Gaussian field on a periodic grid, with D(x, sigma) = mean + F^-1 [S / (S + sigma^2) F (x - mean)].

    Args:
        size: N for N x N pixels, or [rows, columns].
        std: standard deviation of a pixel.
        length: correlation length in pixels, of the power spectrum S(k) ~ (1 + (2 pi k length)^2)^(-decay); k per pixel.
        decay: exponent of that spectrum; 1.5 gives exponential correlations.
        mean: of every pixel.
        spectrum: instead of std and length, any power spectrum (rows, columns), frequency zero first (as torch.fft.fft2 orders
            them), >= 0, whose mean is the pixel variance.

    Raises:
        UserError: a spectrum of the wrong shape or with negative values.
    """

    name = "gaussian-field"

    spectrum: Tensor
    examples = ({"size": 12, "std": 0.4}, {"size": [9, 14], "mean": 0.3, "length": 1.0})

    def __init__(
        self,
        size: int | list[int] = 64,
        std: float = 0.3,
        length: float = 3.0,
        decay: float = 1.5,
        mean: float = 0.0,
        spectrum: Tensor | None = None,
    ) -> None:
        super().__init__()
        if spectrum is None:
            sides = rows_and_columns(size, "prior 'gaussian-field'", "size")
            assert sides is not None
            spectrum = power_spectrum(sides, std, length, decay)
        if spectrum.ndim != 2 or bool((spectrum < 0).any()):
            raise UserError(
                f"prior 'gaussian-field': spectrum must be (rows, columns) and >= 0, got {tuple(spectrum.shape)}"
            )
        self.spectrum = spectrum.double()
        self.sigma_min = min(self.sigma_min, float(self.spectrum.mean().sqrt()) / 50)
        self.mean = mean
        self.event_shape = (1, *spectrum.shape)
        self.source = "analytic Gaussian field"

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        spectrum = matching(self.spectrum, x)
        gain = spectrum / (spectrum + per_row(sigma, x) ** 2)
        return self.mean + filtered(x - self.mean, gain)

    def error(self, sigma: float) -> float:
        return float((self.spectrum * sigma**2 / (self.spectrum + sigma**2)).mean())

    def modes(self, like: Tensor) -> Modes:
        return Modes(self.spectrum.to(like), hartley, hartley)

    def bounds(self) -> tuple[float, float]:
        reach = 4 * math.sqrt(float(self.spectrum.mean()))
        return self.mean - reach, self.mean + reach

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log density, up to a constant, of x = x0 + sigma n, (B,)."""
        power = torch.fft.fft2(x - self.mean, norm="ortho").abs() ** 2
        variance = matching(self.spectrum, x) + per_row(sigma, x) ** 2
        return -(power / variance).flatten(1).sum(1) / 2

    def sample(self, rng: ChainRandom, like: Tensor) -> Tensor:
        """Draw images (B, 1, rows, columns) of the dtype and device of `like`."""
        white = rng.normal(like.new_zeros(len(rng.chains), 1, *self.spectrum.shape))
        root = matching(self.spectrum, white).sqrt()
        return self.mean + filtered(white, root)

    def covariance(self) -> Tensor:
        """Dense covariance (pixels, pixels), float64."""
        return circulant(self.spectrum.cpu())
