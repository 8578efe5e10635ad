"""Laplace noise: errors of which a few are large, judged by their size, not its square."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.noises._elementwise import Elementwise, at, check_number, total


@dataclass(frozen=True)
class Laplace(Elementwise, Noise):
    """Outliers now and then: `laplace:SCALE`, with the mean absolute error in units of y.

    Additive Laplace noise: log p(y | A(x)) = -|y - A(x)| / scale - log(2 scale), of the real and the imaginary part each.

    Args:
        scale: mean absolute error, in units of y, > 0; the standard deviation is sqrt(2) times as large. A number, or a map that
            broadcasts against y, as sigma of `gaussian`.
    """

    scale: float | Tensor

    name: ClassVar[str] = "laplace"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"scale": 0.3}, {"scale": [[0.2], [0.4], [0.8]]})
    gaussian_like: ClassVar[bool] = False
    complex_too: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number(self, "scale", 0)

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        # Half of two squared normal numbers is exponential, and the difference of two of those is Laplace.
        squares = [rng.normal(clean) for _ in range(4)]
        signed = zip(squares, (0.5, 0.5, -0.5, -0.5), strict=True)
        if clean.is_complex():
            drawn = sum(s * (n.real.square() + 1j * n.imag.square()) for n, s in signed)
        else:
            drawn = sum(s * n.square() for n, s in signed)
        return clean + at(self.scale, clean) * drawn

    def terms(self, y: Tensor, predicted: Tensor) -> Tensor:
        return -(y - predicted).abs() / at(self.scale, y)

    def std(self, predicted: Tensor) -> Tensor:
        return math.sqrt(2) * at(self.scale, predicted)

    def kurtosis(self, y: Tensor) -> float:
        return 6.0

    def constant(self, y: Tensor) -> Tensor:
        return total(-(2 if y.is_complex() else 1) * (2 * at(self.scale, y)).log(), y)
