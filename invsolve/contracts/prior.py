"""The prior as one callable: a denoiser D(x, sigma) in variance-exploding coordinates, with its units and its origin."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.module import Module
from invsolve.errors import UserError
from invsolve.numerics.modes import Modes


class Prior(Module):
    """What is known about images before the measurement: D(x, sigma) = E[x0 | x], x = x0 + sigma n, n standard normal.

    Write `denoise`. Everything else has a default that you override as a class or instance attribute.

    Attributes:
        event_shape: (C, *spatial) of one image, None where the size is free.
        sigma_min, sigma_max: noise levels, in network units, for which `denoise` can be trusted.
        data_range: physical values of network -1 and +1; None when network units are the physical units.
        unit: physical unit of the images ("HU", "1/cm"), empty when they have none.
        differentiable: False when `denoise` cannot be differentiated (then strategies that need it are refused).
        source: where it came from, for the record.
        error_curve: mean squared error of `denoise` on held-out images, per pixel, network units, as
            {"sigma": [...], "mse": [...]} with rising sigmas; None where nobody measured it (`invsolve prior measure`).
        device: where the network is, if that is not where the images are.
        tileable: True when images of free size may be denoised in overlapping parts, as by a network that looks at a
            neighbourhood of each pixel.
        passes: how often an image goes through the network in one call, for the count of network calls.
        published: a regular expression of the file names, relative to a published model's folder, that this format reads;
            empty where such models are not of it. No such file may run code.
        trainable: True when `create(header)` makes an untrained one, which `invsolve train` then trains.
        advised_for: operators, by name, with which `invsolve inspect` suggests it; "*" is any that no other is made for.
        examples: keyword arguments of small instances, from which the conformance tests make theirs.
    """

    event_shape: tuple[int | None, ...] = (1, None, None)
    sigma_min: float = 0.01
    sigma_max: float = 40.0
    data_range: tuple[float, float] | None = None
    unit: str = ""
    differentiable: bool = True
    source: str = ""
    error_curve: Mapping[str, Sequence[float]] | None = None
    device: torch.device | None = None
    tileable: bool = False
    passes: int = 1
    name: str = ""
    parameters_given: dict[str, Any] | None = None
    published: ClassVar[str] = ""
    trainable: ClassVar[bool] = False
    advised_for: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x0 | x]: x (B, C, *spatial); sigma a scalar tensor or (B,), > 0; the result like x."""
        raise NotImplementedError(f"{type(self).__name__} must define denoise(x, sigma)")

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoise(x, sigma)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the gradient of log p_sigma at x, (D - x) / sigma^2 (Tweedie)."""
        return (self.denoise(x, sigma) - x) / per_row(sigma, x) ** 2

    def passes_at(self, image_shape: Sequence[int], sigma: float) -> int:
        """How often an image (C, *spatial) goes through the network in one call at this noise level: `passes`, or 0 where
        `denoise` is a closed form there.
        """
        return self.passes

    def error(self, sigma: float) -> float:
        """Mean squared error of a pixel of D(x, sigma), network units: what the prior leaves unknown at that noise level.

        Read off `error_curve`, log against log; without one, that of white pixels of standard deviation 0.5, half of a
        [-1, 1] range. Analytic priors override it by their closed form.
        """
        if self.error_curve is None:
            return sigma**2 * 0.25 / (sigma**2 + 0.25)
        levels, errors = (np.log(self.error_curve[name]) for name in ("sigma", "mse"))
        # Below the measured levels the noise itself is what is left.
        return float(min(np.exp(np.interp(np.log(sigma), levels, errors)), sigma**2))

    def modes(self, like: Tensor) -> Modes | None:
        """The covariance of its images, if it is known and diagonal in some basis; None where nobody measured it.

        Args:
            like: (B, C, *spatial), images of the shape, precision and device wanted.
        """
        return None

    def bounds(self) -> tuple[float, float] | None:
        """Values between which its images lie, network units; None where nobody knows.

        -1 and 1 where `data_range` says what they are; else, where the error of D is known, four standard deviations of a pixel
        about zero: at `sigma_max` nothing is left but to guess, and the error is the variance.
        """
        if self.data_range is not None:
            return -1.0, 1.0
        if self.error_curve is None and type(self).error is Prior.error:
            return None
        reach = 4 * math.sqrt(self.error(self.sigma_max))
        return -reach, reach

    def state_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of what diffuses for images of shape (C, *spatial): the same here; another where that is a latent."""
        return tuple(image_shape)

    def check_shape(self, image_shape: Sequence[int]) -> None:
        """Raise UserError unless images (C, *spatial) of this shape can be denoised."""
        wanted = self.event_shape
        fits = len(wanted) == len(image_shape) and all(w in (None, s) for w, s in zip(wanted, image_shape, strict=True))
        if not fits:
            shape = tuple("any" if w is None else w for w in wanted)
            raise UserError(
                f"prior {self.name or type(self).__name__!r} takes images (channels, *size) of {shape}, but the operator's "
                f"images are {tuple(image_shape)}; choose another prior or crop or resample the data"
            )

    def fingerprint(self) -> str:
        """SHA-256 of the class, parameters and weights, for the provenance of a result."""
        digest = hashlib.sha256(f"{type(self).__qualname__}{self.parameters_given}".encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def opens(cls, path: Path) -> bool:
        """Whether `load` reads this file. Looks at the name and the first bytes only; runs nothing from it."""
        return False

    @classmethod
    def load(cls, path: Path) -> Prior:
        """Read a prior from a file that `opens` accepted. Never runs code from the file."""
        raise NotImplementedError

    def save(self, path: Path, bits: int | None = None) -> None:
        """Write the prior, with all it knows about itself, to a file that `load` reads. Not every format can.

        Args:
            path: where.
            bits: of each weight, 8 or 4, rounded; None leaves them as they are.

        Raises:
            UserError: this format has no writer.
        """
        raise UserError(f"prior {self.name or type(self).__name__!r} cannot be written to a file by invsolve")


def per_row(sigma: Tensor, x: Tensor) -> Tensor:
    """Shape sigma, a scalar or (B,), to broadcast against x (B, ...)."""
    return sigma if sigma.ndim == 0 else sigma.view(-1, *[1] * (x.ndim - 1))


def is_error_curve(curve: Any) -> bool:
    """Whether this can stand as `Prior.error_curve`: rising noise levels, and a finite error for each."""
    try:
        sigma, mse = [float(v) for v in curve["sigma"]], [float(v) for v in curve["mse"]]
    except (TypeError, KeyError, ValueError):
        return False
    return len(sigma) == len(mse) > 0 and all(a < b for a, b in pairwise(sigma)) and all(map(math.isfinite, mse))
