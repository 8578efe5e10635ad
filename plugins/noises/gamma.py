"""Gamma noise: the speckle of coherent imaging (radar, ultrasound, laser light), which multiplies the intensity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.noises._elementwise import Elementwise, at, check_number, total


@dataclass(frozen=True)
class Gamma(Elementwise, Noise):
    """Speckle: `gamma:LOOKS`, intensities times a gamma number of mean 1 and variance 1 / looks.

    Multiplicative noise of multilook intensities (Goodman 1976): log p(y | A(x)) = -looks (log A(x) + y / A(x)) + constant.

    Args:
        looks: number of independent looks that were averaged, > 0 and perhaps fractional (the equivalent number of looks).
            1 is fully developed speckle. A number, or a map that broadcasts against y.
    """

    looks: float | Tensor

    name: ClassVar[str] = "gamma"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"looks": 4.0}, {"looks": 30.0})
    support: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        check_number(self, "looks", 0)

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        self.check_real(clean)
        if bool((clean < 0).any()):
            raise UserError("noise gamma: A(x) must be >= 0 everywhere, an intensity; shift or scale the image")
        looks = at(self.looks, clean)
        return clean * rng.gamma(looks.expand(clean.shape)) / looks

    def terms(self, y: Tensor, predicted: Tensor) -> Tensor:
        # Intensities a thousand times too small are as good as impossible: from there a straight line leads back.
        seen = y > 0
        safe = torch.where(seen, y, torch.ones_like(y))
        low = 1e-3
        ratio = predicted / safe
        held = ratio.clamp_min(low)
        slope = (1 / low - 1) / low
        inside = -(held.log() + 1 / held - 1) + (ratio - low).clamp(max=0) * slope
        dark = -predicted.clamp_min(1e-30).log()
        return at(self.looks, y) * torch.where(seen, inside, dark)

    def std(self, predicted: Tensor) -> Tensor:
        return predicted.clamp_min(0) / at(self.looks, predicted).sqrt()

    def std_from(self, y: Tensor) -> Tensor:
        # The mean of y^2 is A(x)^2 (looks + 1) / looks.
        return y.clamp_min(0) / (at(self.looks, y) + 1).sqrt()

    def deviation(self, y: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The variance is told from y, so it rises and falls with the square: what is left scatters less than that alone. By the
        # first four moments of a gamma number of mean 1; wild A(x) do not explain themselves, as they would by their own std.
        looks = at(self.looks, y)
        second = (looks + 1) / looks
        third = second * (looks + 2) / looks
        fourth, part = third * (looks + 3) / looks, 1 / second
        scatter = part.square() * (fourth - second.square()) + 4 / looks - 4 * part * (third - second)
        return (y - predicted).square(), self.std_from(y).square(), scatter * y.square().square() / fourth

    def constant(self, y: Tensor) -> Tensor:
        looks = at(self.looks, y)
        each = looks * looks.log() - looks.lgamma() - looks
        return total(
            torch.where(y > 0, each - y.clamp_min(1e-300 if y.dtype == torch.float64 else 1e-38).log(), each), y
        )
