"""The Gaussian field of the conformance kit: a prior that is exact at every noise level, owned by the kit itself."""

from __future__ import annotations

from torch import Tensor

from invsolve.contracts.operator import matching
from invsolve.contracts.prior import Prior, per_row
from invsolve.numerics.fields import circulant, filtered, power_spectrum
from invsolve.numerics.modes import Modes
from invsolve.numerics.random import ChainRandom
from invsolve.numerics.spectrum import hartley


class Field(Prior):
    """A stationary Gaussian field of mean zero on the periodic N x N grid, with exponential correlations.

    Args:
        size: N, rows and columns.
        std: standard deviation of a pixel.
        length: correlation length in pixels.
    """

    name = "field"

    spectrum: Tensor

    def __init__(self, size: int = 16, std: float = 0.15, length: float = 3.0) -> None:
        super().__init__()
        self.spectrum = power_spectrum(size, std, length, 1.5)
        self.sigma_min = min(self.sigma_min, std / 50)
        self.event_shape = (1, size, size)
        self.source = "analytic Gaussian field"

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        spectrum = matching(self.spectrum, x)
        return filtered(x, spectrum / (spectrum + per_row(sigma, x) ** 2))

    def error(self, sigma: float) -> float:
        return float((self.spectrum * sigma**2 / (self.spectrum + sigma**2)).mean())

    def modes(self, like: Tensor) -> Modes | None:
        return Modes(self.spectrum.to(like), hartley, hartley)

    def sample(self, rng: ChainRandom, like: Tensor) -> Tensor:
        """Draw images (B, 1, N, N) of the dtype and device of `like`, one a chain."""
        white = rng.normal(like.new_zeros(len(rng.chains), 1, *self.spectrum.shape))
        return filtered(white, matching(self.spectrum, white).sqrt())

    def covariance(self) -> Tensor:
        """Of a flattened image, (N^2, N^2), float64, on the CPU."""
        return circulant(self.spectrum.cpu())
