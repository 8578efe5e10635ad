"""Noise models: how a measurement scatters around A(x), as a sampler and as a log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class Noise:
    """How y scatters around A(x). Subclass as a frozen dataclass: its fields are its parameters.

    Numbers of y are independent of one another given A(x). Every method takes rows (B, *measurement), real or complex, in
    their precision and on their device, and keeps both.

    Class attributes:
        name: what it is registered as.
        examples: keyword arguments of small instances, from which the conformance tests make theirs.
    """

    name: ClassVar[str] = ""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        """Draw y given the noise-free measurement (B, *measurement); all randomness comes from `rng`."""
        raise NotImplementedError(f"{type(self).__name__} must define sample(clean, rng)")

    def log_likelihood(self, y: Tensor, predicted: Tensor) -> Tensor:
        """log p(y | A(x) = predicted) up to a constant in `predicted`, (B,); torch operations, so that it has a gradient."""
        raise NotImplementedError(f"{type(self).__name__} must define log_likelihood(y, predicted)")

    def std(self, predicted: Tensor) -> Tensor:
        """Standard deviation of each (real or imaginary) number of y given A(x), broadcastable to y, real."""
        raise NotImplementedError(f"{type(self).__name__} must define std(predicted)")

    def settings(self) -> dict[str, Any]:
        """The parameters, as the constructor takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Gaussian(Noise):
    """White noise of one standard deviation, or one per entry: `gaussian:SIGMA`.

    Additive white Gaussian noise.

    Args:
        sigma: standard deviation in units of y; of the real and of the imaginary part each where y is complex. A tensor
            (B, 1, ...) gives each item its own.
    """

    sigma: float | Tensor

    name: ClassVar[str] = "gaussian"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"sigma": 0.5}, {"sigma": [[0.2], [0.4], [0.8]]})

    def __post_init__(self) -> None:
        if not bool((torch.as_tensor(self.sigma) >= 0).all()):
            raise UserError(f"noise gaussian: sigma must be >= 0, got {self.sigma}")

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        return clean + torch.as_tensor(self.sigma).to(clean.real) * rng.normal(clean)

    def log_likelihood(self, y: Tensor, predicted: Tensor) -> Tensor:
        return -((y - predicted).abs() ** 2 / (2 * torch.as_tensor(self.sigma).to(y.real) ** 2)).flatten(1).sum(1)

    def std(self, predicted: Tensor) -> Tensor:
        return torch.as_tensor(self.sigma).to(predicted.real)


@dataclass(frozen=True)
class Poisson(Noise):
    """Counts: `poisson:GAIN`, with the gain in counts per unit of y.

    Counting noise: gain * y is Poisson with mean gain * A(x).

    Args:
        gain: counts per unit of y, > 0.
    """

    gain: float

    name: ClassVar[str] = "poisson"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"gain": 4.0}, {"gain": 100.0})

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
