"""What noises share whose numbers are judged one by one in double precision, and how their parameters are checked."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.errors import UserError


class Elementwise(Noise):
    """A noise stated by the log-likelihood of a single real number; complex numbers are taken part by part, or refused.

    Class attributes:
        complex_too: whether y may be complex, with noise of both its parts.
    """

    complex_too: ClassVar[bool] = False

    def terms(self, y: Tensor, predicted: Tensor) -> Tensor:
        """Log-likelihood of each number, float64 like y; near zero where it is highest, as sums are rounded to y's precision."""
        raise NotImplementedError

    def log_likelihood(self, y: Tensor, predicted: Tensor) -> Tensor:
        self.check_real(y)
        if y.is_complex():
            value = self.terms(y.real.double(), predicted.real.double())
            value = value + self.terms(y.imag.double(), predicted.imag.double())
        else:
            value = self.terms(y.double(), predicted.double())
        return value.flatten(1).sum(1).to(y.real.dtype)

    def check_real(self, y: Tensor) -> None:
        """Refuse complex numbers where they have no meaning.

        Raises:
            UserError: y is complex.
        """
        if y.is_complex() and not self.complex_too:
            raise UserError(f"noise {self.name}: A(x) must be real, got {str(y.dtype).removeprefix('torch.')}")


def at(value: float | Tensor, like: Tensor) -> Tensor:
    """A parameter in the real precision and on the device of `like`; a map keeps its axes."""
    return torch.as_tensor(value, dtype=like.real.dtype, device=like.device)


def total(each: Tensor, y: Tensor) -> Tensor:
    """The sum over the numbers of a measurement of what broadcasts against y, (B,), in y's precision."""
    return each.expand(y.shape).flatten(1).sum(1).to(y.real.dtype)


def check_number(noise: Noise, key: str, least: float, attained: bool = False) -> None:
    """Check a parameter, a number or a map of them, and make a tensor of arrays and lists.

    Args:
        noise: a frozen dataclass that is being set up.
        key: the parameter.
        least: what it must be above.
        attained: it may be `least` itself.

    Raises:
        UserError: no real numbers, not finite, or too small.
    """
    value = getattr(noise, key)
    given = torch.as_tensor(value)
    if given.is_complex() or given.dtype == torch.bool:
        raise UserError(
            f"noise {noise.name}: {key} must be real numbers, got {str(given.dtype).removeprefix('torch.')}"
        )
    wrong = given[~((given >= least if attained else given > least) & given.isfinite())]
    if len(wrong):
        bound = "finite" if least == -math.inf else f"{'>=' if attained else '>'} {least:g} and finite"
        raise UserError(f"noise {noise.name}: {key} must be {bound}, got {float(wrong[0]):g}")
    if not isinstance(value, int | float | Tensor):
        object.__setattr__(noise, key, given)
