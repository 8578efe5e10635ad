"""Noise models: how a measurement scatters around A(x), as a sampler and as a log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from invsolve.errors import UserError
from invsolve.numerics.counts import deviance, highest
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class Noise:
    """How y scatters around A(x). Subclass as a frozen dataclass: its fields are its parameters.

    Numbers of y are independent of one another given A(x). Every method takes rows (B, *measurement), real or complex, in
    their precision and on their device, and keeps both. Write `sample`, `log_likelihood` and `std`; what follows them has
    defaults, which are right where y is A(x) plus noise without mean whose size A(x) does not decide.

    Attributes:
        name: what it is registered as.
        examples: keyword arguments of small instances, from which the conformance tests make theirs.
        gaussian_like: Gaussian noise of the same mean and variance tells nearly as much of A(x), so that strategies may put it
            in this one's place. False for heavy tails, where it would lose what the tails are there for.
        has_slope: whether the log-likelihood has a gradient that leads to where it is high.
        lattice: distance of the values that y can take, where they are counted, not measured; None where y may be any number.
        support: between which numbers y lies.
        cell: `mean` and `std` hold on average over intervals of A(x) as long as this; 0 where they hold for each A(x).
    """

    name: ClassVar[str] = ""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    gaussian_like: ClassVar[bool] = True
    support: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        """Draw y given the noise-free measurement (B, *measurement); all randomness comes from `rng`."""
        raise NotImplementedError(f"{type(self).__name__} must define sample(clean, rng)")

    def log_likelihood(self, y: Tensor, predicted: Tensor) -> Tensor:
        """log p(y | A(x) = predicted) up to a constant in `predicted`, (B,); torch operations, so that it has a gradient."""
        raise NotImplementedError(f"{type(self).__name__} must define log_likelihood(y, predicted)")

    def std(self, predicted: Tensor) -> Tensor:
        """Standard deviation of each (real or imaginary) number of y given A(x), broadcastable to y, real."""
        raise NotImplementedError(f"{type(self).__name__} must define std(predicted)")

    @property
    def has_slope(self) -> bool:
        return True

    @property
    def lattice(self) -> float | Tensor | None:
        return None

    @property
    def cell(self) -> float | Tensor:
        return 0.0

    def mean(self, predicted: Tensor) -> Tensor:
        """Mean of y given A(x) = predicted, torch operations; `predicted` itself where the noise has no mean."""
        return predicted

    @property
    def shifts(self) -> bool:
        """Whether the mean of y is another than A(x)."""
        return type(self).mean is not Noise.mean

    def slope(self, predicted: Tensor) -> Tensor | float:
        """How much the mean of each number of y grows with its number of A(x), like `predicted`; 1.0 where it is A(x)."""
        if not self.shifts:
            return 1.0
        with torch.enable_grad():
            at = predicted.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.mean(at).sum(), at)
        return slope

    def predicted_from(self, y: Tensor) -> Tensor:
        """A(x) as y alone suggests it, the inverse of `mean`; finite for every y."""
        return y

    def std_from(self, y: Tensor) -> Tensor:
        """Standard deviation of each number of y as y alone suggests it: its square is right on average, broadcastable to y."""
        return self.std(self.predicted_from(y))

    def kurtosis(self, y: Tensor) -> Tensor | float:
        """How much squared residuals scatter about `std_from`, squared: one more than their variance over its square.

        That is the kurtosis where A(x) does not decide the size of the noise: 3 for a Gaussian. It is 3 for counts, too, whose
        variance is told from the counts themselves.
        """
        return 3.0

    def deviation(self, y: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How far each number of y is from A(x) = predicted, squared; what that is on average; how the difference scatters.

        Returns:
            The square, its mean over draws of y given A(x) (estimated from y where a wild A(x) would explain itself), and the
            variance of the difference of the two. Tensors that broadcast to y, real; a complex number counts both its parts.
        """
        parts = 2.0 if y.is_complex() else 1.0
        variance = self.std_from(y).to(y.real.dtype) ** 2
        away = (y - self.mean(predicted)).abs() ** 2
        return away, parts * variance, parts * (self.kurtosis(y) - 1.0) * variance.square()

    def constant(self, y: Tensor) -> Tensor | None:
        """What `log_likelihood` leaves out of log p(y | A(x)), (B,); None where it is not stated, and nobody holds it to that."""
        return None

    def settings(self) -> dict[str, Any]:
        """The parameters, as the constructor takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def rows(self, items: Sequence[int], axes: int) -> Self:
        """The noise of these items of y, one a row.

        A parameter that is a tensor broadcasts against y (items, *measurement): with as many axes it has an entry per item, or
        one for all; with fewer it is the same for every item.

        Args:
            items: their numbers.
            axes: of y, that of the items included.

        Raises:
            UserError: an item beyond those that a parameter has entries for.
        """
        picked: dict[str, Tensor] = {}
        for key, value in self.settings().items():
            if isinstance(value, Tensor) and value.ndim == axes and len(value) > 1:
                if max(items) >= len(value):
                    raise UserError(
                        f"noise {self.name}: {key} is of {len(value)} items; there is an item {max(items)}, counted from 0"
                    )
                picked[key] = value[list(items)]
        return replace(self, **picked) if picked else self

    def differs_within(self, axes: int) -> bool:
        """Whether a parameter has an entry for each number of y and other ones for each item: items then go one by one."""
        tensors = [value for value in self.settings().values() if isinstance(value, Tensor) and value.ndim == axes]
        return any(len(value) > 1 and value[0].numel() > 1 for value in tensors)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse parameters that do not fit a y of this shape (items, *measurement).

        Raises:
            UserError: says which, and what would fit.
        """
        for key, value in self.settings().items():
            if isinstance(value, Tensor):
                try:
                    fits = torch.broadcast_shapes(value.shape, tuple(shape)) == tuple(shape)
                except RuntimeError:
                    fits = False
                if not fits:
                    each = (shape[0], *[1] * (len(shape) - 1))
                    raise UserError(
                        f"noise {self.name}: {key} {tuple(value.shape)} does not broadcast against y {tuple(shape)}: give one "
                        f"number, one per item {each}, or one per entry of a measurement {tuple(shape[1:])}"
                    )


@dataclass(frozen=True)
class Gaussian(Noise):
    """Gaussian noise, of one level or one per item, coil or entry: `gaussian:SIGMA`, `gaussian:FILE.npy`.

    Additive Gaussian noise, independent from entry to entry.

    Args:
        sigma: standard deviation in units of y; of the real and of the imaginary part each where y is complex. A number, or an
            array that broadcasts against y (items, *measurement): (items, 1, ...) gives each item its own, (coils, 1, 1) each
            coil of a k-space, a map of the shape of one measurement each entry. What is not measured may have any.
    """

    sigma: float | Tensor

    name: ClassVar[str] = "gaussian"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"sigma": 0.5}, {"sigma": [[0.2], [0.4], [0.8]]})

    def __post_init__(self) -> None:
        given = torch.as_tensor(self.sigma)
        if given.is_complex() or given.dtype == torch.bool:
            raise UserError(
                f"noise gaussian: sigma must be real numbers, got {str(given.dtype).removeprefix('torch.')}"
            )
        wrong = given[~((given >= 0) & given.isfinite())]
        if len(wrong):
            raise UserError(f"noise gaussian: sigma must be >= 0 and finite, got {float(wrong[0]):g}")
        if not isinstance(self.sigma, int | float | Tensor):
            # A frozen dataclass is set up like this; an array or a list becomes the tensor that the rest expects.
            object.__setattr__(self, "sigma", given)

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        return clean + self.std(clean) * rng.normal(clean)

    def log_likelihood(self, y: Tensor, predicted: Tensor) -> Tensor:
        return -((y - predicted).abs() ** 2 / (2 * self.std(y) ** 2)).flatten(1).sum(1)

    def std(self, predicted: Tensor) -> Tensor:
        return torch.as_tensor(self.sigma, dtype=predicted.real.dtype, device=predicted.device)

    def constant(self, y: Tensor) -> Tensor:
        parts = 2 if y.is_complex() else 1
        each = -parts * (self.std(y) * math.sqrt(2 * math.pi)).log()
        return each.expand(y.shape).flatten(1).sum(1)


@dataclass(frozen=True)
class Poisson(Noise):
    """Counts, of one gain or one per item or entry: `poisson:GAIN`, `poisson:FILE.npy`, in counts per unit of y.

    Counting noise: gain * y is Poisson with mean gain * A(x).

    Args:
        gain: counts per unit of y, > 0. A number, or an array that broadcasts against y (items, *measurement): (items, 1, ...)
            gives each item its own, such as an exposure, (detectors,) each detector pixel of a sinogram, the shape of one
            measurement each entry.
    """

    gain: float | Tensor

    name: ClassVar[str] = "poisson"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"gain": 4.0}, {"gain": 100.0}, {"gain": [[2.0], [8.0], [50.0]]})
    support: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        given = torch.as_tensor(self.gain)
        if given.is_complex() or given.dtype == torch.bool:
            raise UserError(f"noise poisson: gain must be real numbers, got {str(given.dtype).removeprefix('torch.')}")
        wrong = given[~((given > 0) & given.isfinite())]
        if len(wrong):
            raise UserError(f"noise poisson: gain must be > 0 and finite, got {float(wrong[0]):g}")
        if not isinstance(self.gain, int | float | Tensor):
            object.__setattr__(self, "gain", given)

    @property
    def lattice(self) -> float | Tensor:
        return 1 / self.gain

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        if clean.is_complex() or bool((clean < 0).any()):
            raise UserError("noise poisson: A(x) must be real and >= 0 everywhere; shift or scale the image")
        gain = self._gain(clean)
        return rng.poisson(gain * clean) / gain

    def log_likelihood(self, y: Tensor, predicted: Tensor) -> Tensor:
        # Of many counts y log p - p is as large as they are, and single precision of a sum of them tells no images apart.
        gain = self._gain(y.double())
        return deviance(gain * y.double(), gain * predicted.double()).flatten(1).sum(1).to(y.real.dtype)

    def std(self, predicted: Tensor) -> Tensor:
        return (predicted.clamp_min(0) / self._gain(predicted) + 1e-12).sqrt()

    def constant(self, y: Tensor) -> Tensor:
        gain = self._gain(y.double())
        return highest(gain * y.double()).flatten(1).sum(1).to(y.real.dtype)

    def _gain(self, like: Tensor) -> float | Tensor:
        gain = self.gain
        return gain.to(like.device, like.real.dtype) if isinstance(gain, Tensor) else gain
