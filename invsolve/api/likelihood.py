"""The log-likelihood of images under a prior, by the change of density along its probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invsolve import api
from invsolve.api.inputs import as_rows, prior_of, whole
from invsolve.api.sampling import physical
from invsolve.contracts.latent import LatentPrior
from invsolve.contracts.module import placed
from invsolve.contracts.prior import Prior
from invsolve.contracts.returned import called, check_images
from invsolve.errors import UserError
from invsolve.numerics.linalg import inner
from invsolve.numerics.random import ChainRandom

#: Exponent of the grid in sigma (Karras 2022).
RHO = 7.0
#: Rows of a batch of directions, at least one direction an image.
ROWS = 64


@dataclass(frozen=True)
class Likelihood:
    """How likely images are under a prior.

    Attributes:
        nats: (N,), natural logarithm of the density at each image, physical units, float64.
        dimensions: numbers an image has.
    """

    nats: Tensor
    dimensions: int

    def bits_per_dimension(self, bin_width: float = 1.0) -> Tensor:
        """-log2 of the probability of a cell around the image, a dimension, (N,).

        Args:
            bin_width: side of the cell, physical units; 1/255 of the range for 8-bit images. 1 gives the density's own.
        """
        return -self.nats / (self.dimensions * math.log(2)) - math.log2(bin_width)


def log_likelihood(
    prior: Prior | str | Path,
    x: Tensor | np.ndarray,
    steps: int = 40,
    exact: bool = False,
    probes: int = 1,
    level: float | None = None,
    seed: int = 0,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
) -> Likelihood:
    """Log-density of images under a prior: log p(x) = log N(x_T) + integral of div (x - D) / sigma along the flow.

    Song et al., ICLR 2021, section 4.3 and appendix D.2. The density is that at the noise level `level`, which smooths the
    prior's; images are taken as they are, without noise added. Integrated by the classical Runge-Kutta method on a grid that is
    uniform in sigma^(1/7), the same for every image. At the largest level the prior is taken for a normal distribution
    around D(0).

    Args:
        prior: a Prior, a registered name or a checkpoint file; differentiable.
        x: (N, C, *spatial), real, the prior's physical units; float64 is kept.
        steps: of the integration; four network calls, each with one vector-Jacobian product a probe.
        exact: the exact divergence, with as many products as an image has numbers: for small images.
        probes: Rademacher vectors of Hutchinson's estimator of the divergence, the same along the whole flow; unbiased.
        level: noise level of the density, network units; default the prior's smallest.
        seed: of the probes; those of image i depend on (seed, i) alone.
        batch_size: images that go through the network at once.
        device: "cpu", "cuda", ...

    Raises:
        UserError: images the prior does not take, a prior without gradients, or parameters out of range.
    """
    with torch.inference_mode(False):
        place = api.resolve_device(device)
        loaded = placed(prior_of(prior), place, frozen=True)
        images = as_rows(x, "x")
        seed = whole(seed, "log_likelihood: seed")
        if images.is_complex() or images.ndim < 3:
            raise UserError(
                f"log_likelihood: x must be real, (items, channels, *size), got {images.dtype} {tuple(images.shape)}"
            )
        loaded.check_shape(images.shape[1:])
        if not bool(torch.isfinite(images).all()):
            raise UserError("log_likelihood: x holds NaN or infinity, which have no density; leave these images out")
        if isinstance(loaded, LatentPrior):
            raise UserError(
                f"log_likelihood: {loaded.name!r} is a prior of latents, which have a density; their images have none"
            )
        low = loaded.sigma_min if level is None else level
        if not loaded.differentiable:
            raise UserError(f"log_likelihood needs a prior that can be differentiated; {loaded.name!r} cannot")
        steps, probes = whole(steps, "log_likelihood: steps", 1), whole(probes, "log_likelihood: probes", 1)
        batch_size = whole(batch_size, "log_likelihood: batch_size", 1)
        if not 0 < low < loaded.sigma_max:
            raise UserError(f"log_likelihood: level must be above 0 and below {loaded.sigma_max:g}, got {low:g}")
        scale = physical(loaded)
        size = math.prod(images.shape[1:])
        images = scale.to_network(images if images.dtype == torch.float64 else images.float())
        parts = []
        for first in range(0, len(images), batch_size):
            part = images[first : first + batch_size].to(place)
            rng = ChainRandom(seed, [(first + i, 0) for i in range(len(part))])
            directions = _units(part) if exact else torch.stack([_rademacher(rng.at(k), part) for k in range(probes)])
            parts.append(_integrate(loaded, part, directions, 1 if exact else probes, low, steps).cpu())
        return Likelihood(torch.cat(parts) - size * math.log(scale.factor), size)


def _integrate(prior: Prior, x: Tensor, directions: Tensor, share: int, low: float, steps: int) -> Tensor:
    """log density in network units, (B,), float64; the divergence is the sum over directions over `share`."""
    grow = _velocity(prior, directions, share)
    start, end = low ** (1 / RHO), prior.sigma_max ** (1 / RHO)
    step = (end - start) / steps
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for k in range(steps):
        u = start + k * step
        v1, d1 = grow(x, u)
        v2, d2 = grow(x + step / 2 * v1, u + step / 2)
        v3, d3 = grow(x + step / 2 * v2, u + step / 2)
        v4, d4 = grow(x + step * v3, u + step)
        x = x + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        total = total + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    top = prior.sigma_max
    with torch.no_grad():
        centre = prior.denoise(torch.zeros_like(x[:1]), torch.full((), top, dtype=x.dtype, device=x.device))
    far = ((x - centre).double() / top).square().flatten(1).sum(1)
    return total - far / 2 - math.prod(x.shape[1:]) / 2 * math.log(2 * math.pi * top**2)


def _velocity(prior: Prior, directions: Tensor, share: int) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    """dx/du and its divergence, with u = sigma^(1/7); directions (K, B, C, *spatial)."""

    def at(x: Tensor, u: float) -> tuple[Tensor, Tensor]:
        sigma = u**RHO
        factor = RHO * u ** (RHO - 1) / sigma
        level = torch.full((), sigma, dtype=x.dtype, device=x.device)
        divergence = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        # Several directions at once, as rows of one batch, where images are small.
        for some in directions.split(max(ROWS // len(x), 1)):
            with torch.enable_grad():
                z = x.detach().repeat(len(some), *[1] * (x.ndim - 1)).requires_grad_()
                move = z - check_images(prior.denoise(z, level), z, called("prior", prior), "denoise")
                (product,) = torch.autograd.grad(move, z, some.flatten(0, 1))
            divergence = divergence + inner(product, some.flatten(0, 1)).double().view(len(some), -1).sum(0)
        return factor * move.detach()[: len(x)], factor / share * divergence

    return at


def _rademacher(rng: ChainRandom, like: Tensor) -> Tensor:
    return torch.where(rng.normal(like) < 0, -1.0, 1.0).to(like)


def _units(like: Tensor) -> Tensor:
    """The unit vectors of an image, each for every row, (N, B, C, *spatial)."""
    size = like[0].numel()
    units = torch.eye(size, dtype=like.dtype, device=like.device).view(size, 1, *like.shape[1:])
    return units.expand(size, *like.shape)
