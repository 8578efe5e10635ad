"""Noise models: how a measurement scatters around A(x), as a sampler and as a log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.errors import UserError, suggestion
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class Noise:
    """Base of the noise models: what is random in y given A(x)."""

    name: ClassVar[str] = ""

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        """Draw y given the noise-free measurement (B, *measurement)."""
        raise NotImplementedError

    def log_likelihood(self, y: Tensor, predicted: Tensor) -> Tensor:
        """log p(y | A(x) = predicted) up to a constant in `predicted`, (B,)."""
        raise NotImplementedError

    def std(self, predicted: Tensor) -> Tensor:
        """Standard deviation of each (real or imaginary) number of y, broadcastable to y."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gaussian(Noise):
    """Additive white Gaussian noise.

    Args:
        sigma: standard deviation in units of y; of the real and of the imaginary part each where y is complex. A tensor
            (B, 1, ...) gives each item its own.
    """

    sigma: float | Tensor
    name: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        if not bool((torch.as_tensor(self.sigma) >= 0).all()):
            raise UserError(f"noise gaussian: sigma must be >= 0, got {self.sigma}")

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        return clean + self.sigma * rng.normal(clean)

    def log_likelihood(self, y: Tensor, predicted: Tensor) -> Tensor:
        return -((y - predicted).abs() ** 2 / (2 * torch.as_tensor(self.sigma).to(y.real) ** 2)).flatten(1).sum(1)

    def std(self, predicted: Tensor) -> Tensor:
        return torch.as_tensor(self.sigma).to(predicted.real)


@dataclass(frozen=True)
class Poisson(Noise):
    """Counting noise: gain * y is Poisson with mean gain * A(x).

    Args:
        gain: counts per unit of y, > 0.
    """

    gain: float
    name: ClassVar[str] = "poisson"

    def __post_init__(self) -> None:
        if not self.gain > 0:
            raise UserError(f"noise poisson: gain must be > 0, got {self.gain}")

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        if clean.is_complex() or bool((clean < 0).any()):
            raise UserError("noise poisson: A(x) must be real and >= 0 everywhere; shift or scale the image")
        return rng.poisson(self.gain * clean) / self.gain

    def log_likelihood(self, y: Tensor, predicted: Tensor) -> Tensor:
        rate = (self.gain * predicted).clamp_min(1e-6)
        return (self.gain * y * rate.log() - rate).flatten(1).sum(1)

    def std(self, predicted: Tensor) -> Tensor:
        return (predicted.clamp_min(0) / self.gain + 1e-12).sqrt()


MODELS: dict[str, type[Noise]] = {"gaussian": Gaussian, "poisson": Poisson}


def noise_from_text(text: str) -> Noise:
    """Read `gaussian:0.01` or `poisson:1000`, as written on the command line.

    Raises:
        UserError: unknown name or a value that is no number.
    """
    name, _, value = text.partition(":")
    if name not in MODELS:
        raise UserError(f"unknown noise {name!r}.{suggestion(name, MODELS)} Write NAME:VALUE, such as gaussian:0.01")
    try:
        return MODELS[name](float(value))  # type: ignore[call-arg]
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"noise {text!r}: write NAME:VALUE, such as gaussian:0.01") from None
