"""Rounding: numbers that were stored in steps, with the noise they had before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.noises._elementwise import Elementwise, at, check_number


@dataclass(frozen=True)
class Rounding(Elementwise, Noise):
    """Numbers in steps: `rounding:STEP,SIGMA`, Gaussian noise, then rounded to a multiple of the step.

    log p(y | A(x)) = log(Phi((y + step / 2 - A(x)) / sigma) - Phi((y - step / 2 - A(x)) / sigma)): everything that is rounded to
    y counts. As a function of A(x) it has the mean y and the variance sigma^2 + step^2 / 12 (Widrow 1961).

    Args:
        step: distance of the values that y can take, in units of y, > 0: 1/255 of the range for 8-bit images.
        sigma: standard deviation of the noise before rounding, in units of y, >= 0. Without it the likelihood is flat within
            half a step of y and zero outside, which no strategy that goes by its slope can use.
    """

    step: float
    sigma: float = 0.0

    name: ClassVar[str] = "rounding"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"step": 0.1, "sigma": 0.1}, {"step": 0.3, "sigma": 0.1})

    def __post_init__(self) -> None:
        check_number(self, "step", 0)
        check_number(self, "sigma", 0, attained=True)

    @property
    def has_slope(self) -> bool:
        return self.sigma > 0

    @property
    def lattice(self) -> float:
        return self.step

    @property
    def cell(self) -> float:
        return self.step

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        self.check_real(clean)
        return self.step * ((clean + self.sigma * rng.normal(clean)) / self.step).round()

    def terms(self, y: Tensor, predicted: Tensor) -> Tensor:
        away = (y - predicted).abs()
        if self.sigma == 0:
            # A slope of nothing, where there is none.
            flat = 0 * predicted
            return flat.masked_fill(away > self.step / 2 * (1 + 1e-6), -math.inf)
        # Phi(b) - Phi(a) as upper tails from the near edge: neither rounds to 1 where both are far out.
        near, far = ((away + side * self.step / 2) / self.sigma for side in (-1, 1))
        outer = torch.special.log_ndtr(-near)
        return outer + (-(torch.special.log_ndtr(-far) - outer).expm1()).log()

    def std(self, predicted: Tensor) -> Tensor:
        return at(math.hypot(self.sigma, self.step / math.sqrt(12)), predicted)

    def kurtosis(self, y: Tensor) -> float:
        flat = self.step**2 / 12
        # Fourth cumulant of a uniform number: -1.2 of its squared variance.
        return 3 - 1.2 * (flat / (flat + self.sigma**2)) ** 2

    def constant(self, y: Tensor) -> Tensor:
        return y.new_zeros(len(y))
