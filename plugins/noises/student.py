"""Student's t noise: gross errors that hardly count, however large they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.noises._elementwise import Elementwise, at, check_number, total


@dataclass(frozen=True)
class Student(Elementwise, Noise):
    """Gross errors: `student:SCALE,DOF`, Student's t, whose tails fall like a power.

    log p(y | A(x)) = -(dof + 1) / 2 log(1 + t^2 / dof) + constant, t = (y - A(x)) / scale, of the real and the imaginary part
    each (Lange, Little & Taylor 1989). Residuals are judged by log(1 + t^2 / dof), whose mean and variance are known: their
    square has no variance up to four degrees of freedom.

    Args:
        scale: in units of y, > 0; the standard deviation is sqrt(dof / (dof - 2)) times as large. A number, or a map that
            broadcasts against y, as sigma of `gaussian`.
        dof: degrees of freedom, > 2, so that there is a standard deviation; the fewer the heavier the tails.
    """

    scale: float | Tensor
    dof: float = 4.0

    name: ClassVar[str] = "student"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"scale": 0.3, "dof": 8.0}, {"scale": 0.3, "dof": 5.0})
    gaussian_like: ClassVar[bool] = False
    complex_too: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number(self, "scale", 0)
        check_number(self, "dof", 2)

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        half = self.dof / 2

        def spread(like: Tensor) -> Tensor:
            return (half / rng.gamma(torch.full_like(like, half))).sqrt()

        drawn = rng.normal(clean)
        if clean.is_complex():
            drawn = torch.complex(drawn.real * spread(clean.real), drawn.imag * spread(clean.real))
        else:
            drawn = drawn * spread(clean)
        return clean + at(self.scale, clean) * drawn

    def terms(self, y: Tensor, predicted: Tensor) -> Tensor:
        return -(self.dof + 1) / 2 * ((y - predicted) / at(self.scale, y)).square().div(self.dof).log1p()

    def std(self, predicted: Tensor) -> Tensor:
        return math.sqrt(self.dof / (self.dof - 2)) * at(self.scale, predicted)

    def deviation(self, y: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # t^2 / dof is a ratio of gamma numbers, of shapes 1/2 and dof/2: its log1p is -log of a beta number.
        parts = 2 if y.is_complex() else 1
        whole, half = (torch.tensor(v / 2, dtype=torch.float64) for v in (self.dof + 1, self.dof))
        mean = parts * float(torch.digamma(whole) - torch.digamma(half))
        variance = parts * float(torch.polygamma(1, half) - torch.polygamma(1, whole))
        rest = torch.view_as_real(y - predicted).movedim(-1, 0) if y.is_complex() else (y - predicted)[None]
        away = (rest / at(self.scale, y)).square().div(self.dof).log1p().sum(0)
        return away, torch.full_like(away, mean), torch.full_like(away, variance)

    def constant(self, y: Tensor) -> Tensor:
        each = math.lgamma((self.dof + 1) / 2) - math.lgamma(self.dof / 2) - math.log(self.dof * math.pi) / 2
        return total((2 if y.is_complex() else 1) * (each - at(self.scale, y).log()), y)
