"""Rician noise: magnitudes of complex numbers with Gaussian noise, as MR scanners store their images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.noises._elementwise import Elementwise, at, check_number, total

#: Above this ratio of signal and noise the variance is taken from its series, where the difference of squares would cancel.
_HIGH = 50.0


@dataclass(frozen=True)
class Rician(Elementwise, Noise):
    """Magnitudes: `rician:SIGMA`, y = |A(x) + complex Gaussian noise|, as of MR magnitude images.

    log p(y | A(x)) = log(y / sigma^2) - (y^2 + A(x)^2) / (2 sigma^2) + log I0(y A(x) / sigma^2) (Rice 1944; Gudbjartsson & Patz
    1995). The mean of y is above A(x), at A(x) = 0 by sqrt(pi / 2) sigma. The sign of A(x) is not seen.

    Args:
        sigma: standard deviation of the real and of the imaginary part before the magnitude was taken, in units of y, > 0. A
            number, or a map that broadcasts against y.
    """

    sigma: float | Tensor

    name: ClassVar[str] = "rician"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"sigma": 0.2}, {"sigma": [[0.1], [0.2], [0.3]]})
    support: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        check_number(self, "sigma", 0)

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        self.check_real(clean)
        sigma = at(self.sigma, clean)
        return torch.hypot(clean + sigma * rng.normal(clean), sigma * rng.normal(clean))

    def terms(self, y: Tensor, predicted: Tensor) -> Tensor:
        sigma = at(self.sigma, y)
        y, signal = y / sigma, predicted / sigma
        product = y * signal
        # log I0(z) = log i0e(z) + |z|; beside it sqrt(2 pi z) is nearly all that is left, and goes with the constant.
        scaled = torch.special.i0e(product).log() + (1 + 2 * math.pi * y.square()).log() / 4
        return scaled - (y.abs() - signal.abs()).square() / 2

    def mean(self, predicted: Tensor) -> Tensor:
        sigma = at(self.sigma, predicted).double()
        quarter = (predicted.double() / sigma).square() / 4
        # Laguerre's polynomial L_1/2(-2 q), with Bessel functions scaled by exp(-q).
        bessel = (1 + 2 * quarter) * torch.special.i0e(quarter) + 2 * quarter * torch.special.i1e(quarter)
        return (sigma * math.sqrt(math.pi / 2) * bessel).to(predicted.dtype)

    def std(self, predicted: Tensor) -> Tensor:
        sigma = at(self.sigma, predicted).double()
        signal = (predicted.double() / sigma).square()
        below = signal.clamp(max=_HIGH**2)
        moments = 2 + below - (self.mean(below.sqrt() * sigma) / sigma).square()
        series = 1 - 1 / (2 * signal.clamp_min(1)) - 1 / (2 * signal.clamp_min(1).square())
        variance = torch.where(signal > _HIGH**2, series, moments)
        return (sigma * variance.sqrt()).to(predicted.dtype)

    def std_from(self, y: Tensor) -> Tensor:
        # The mean of exp(-a y^2 / sigma^2) is in closed form; with these two numbers the variance is right to 10 % everywhere.
        sigma = at(self.sigma, y)
        return sigma * (1 - 0.981 * (-0.428 * (y / sigma).square()).exp()).sqrt()

    def deviation(self, y: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The variance lies between 0.43 and 1 times sigma^2 whatever A(x) is, so that no wild A(x) explains itself.
        variance = self.std(predicted).square()
        return (y - self.mean(predicted)).square(), variance, 2 * variance.square()

    def predicted_from(self, y: Tensor) -> Tensor:
        # The mean of y^2 is A(x)^2 + 2 sigma^2.
        return (y.square() - 2 * at(self.sigma, y).square()).clamp_min(0).sqrt()

    def constant(self, y: Tensor) -> Tensor:
        sigma, ratio = at(self.sigma, y), y / at(self.sigma, y)
        return total(ratio.log() - sigma.log() - (1 + 2 * math.pi * ratio.square()).log() / 4, y)
