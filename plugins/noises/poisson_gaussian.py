"""Poisson-Gaussian noise: a camera's photons, its read noise and its offset."""

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

#: Numbers of photons on each side of the likeliest that are summed over, at least and at most, the stride between them in
#: widths of the sum, and how many widths they reach out.
_FEW, _MANY, _STRIDE, _REACH = 12, 24, 0.6, 7.2
#: Terms of the sums that are in memory at once.
_ROOM = 2**20


@dataclass(frozen=True)
class PoissonGaussian(Elementwise, Noise):
    """A camera: `poisson-gaussian:GAIN,READ,OFFSET`, photons counted, then amplified with read noise.

    gain * (y - offset) = Poisson(gain * A(x)) + read * n. The likelihood is the sum over the number of photons, taken whole
    (Chouzenoux et al. 2015): no variance is put in its place.

    Args:
        gain: photons (electrons) per unit of y, > 0. A number, or a map that broadcasts against y.
        read: standard deviation of the read noise, in electrons, > 0; a number or a map.
        offset: what y is without light (bias level), in units of y; a number or a map.
    """

    gain: float | Tensor
    read: float | Tensor
    offset: float | Tensor = 0.0

    name: ClassVar[str] = "poisson-gaussian"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"gain": 4.0, "read": 1.0},
        {"gain": 20.0, "read": [[3.0], [1.0], [8.0]], "offset": 10.0},
    )

    def __post_init__(self) -> None:
        check_number(self, "gain", 0)
        check_number(self, "read", 0)
        check_number(self, "offset", -math.inf)

    def mean(self, predicted: Tensor) -> Tensor:
        return predicted + at(self.offset, predicted)

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        self.check_real(clean)
        if bool((clean < 0).any()):
            raise UserError("noise poisson-gaussian: A(x) must be >= 0 everywhere; shift or scale the image")
        gain = at(self.gain, clean)
        electrons = rng.poisson(gain * clean) + at(self.read, clean) * rng.normal(clean)
        return electrons / gain + at(self.offset, clean)

    def terms(self, y: Tensor, predicted: Tensor) -> Tensor:
        gain, read = at(self.gain, y), at(self.read, y)
        data, rate = gain * (y - at(self.offset, y)), gain * predicted
        value, slope = _mixture(data.detach(), rate.detach().clamp_min(0), read)
        # Below zero, where no mean can be, it goes on as a straight line where that leads back, else it stays.
        slope = torch.where(rate > 0, slope, slope.clamp_min(0))
        value = value + slope * (rate - rate.detach().clamp_min(0))
        return value + (data.clamp_min(0) + read.square()).log() / 2

    def std(self, predicted: Tensor) -> Tensor:
        gain = at(self.gain, predicted)
        return ((gain * predicted).clamp_min(0) + at(self.read, predicted).square()).sqrt() / gain

    def predicted_from(self, y: Tensor) -> Tensor:
        return y - at(self.offset, y)

    def std_from(self, y: Tensor) -> Tensor:
        gain = at(self.gain, y)
        electrons = gain * (y - at(self.offset, y))
        return (electrons + at(self.read, y).square()).clamp_min(0).sqrt() / gain

    def constant(self, y: Tensor) -> Tensor:
        gain, read = at(self.gain, y), at(self.read, y)
        data = gain * (y - at(self.offset, y))
        each = gain.log() - (2 * math.pi * read.square()).log() / 2 - (data.clamp_min(0) + read.square()).log() / 2
        return total(each, y)


def _mixture(data: Tensor, rate: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """log sum_k Poisson(k; rate) exp(-(data - k)^2 / (2 read^2)), and its slope in the rate; float64.

    The sum runs over the whole numbers around its largest term, all of them where they are few, else every few of them: a
    smooth sum does not tell. Aliasing, exp(-rate (1 - cos(2 pi / stride))), is below 1e-9.
    """
    precision = 1 / read.square()
    # The largest term k solves log(rate / k) + (data - k) / read^2 = 0: with k = read^2 e^u, e^u + u = c.
    c = (rate.clamp_min(1e-300) * precision).log() + data * precision
    u = torch.where(c > 1, c.clamp_min(1).log(), c)
    for _ in range(8):
        u = u - (u.exp() + u - c) / (u.exp() + 1)
    top = read.square() * u.exp()
    width = (1 / (1 / top.clamp_min(1e-300) + precision)).sqrt()
    stride = (_STRIDE * width).floor().clamp_min(1)
    centre = top.round()

    def log_term(k: Tensor) -> Tensor:
        return torch.xlogy(k, rate) - rate - torch.lgamma(k + 1) - (data - k).square() * precision / 2

    largest = log_term(centre)
    mass, moved = torch.zeros_like(rate), torch.zeros_like(rate)
    side = int((_REACH * width / stride).amax().clamp(_FEW, _MANY).ceil())
    steps = torch.arange(-side, side + 1, dtype=rate.dtype, device=rate.device)
    for some in steps.split(max(_ROOM // max(rate.numel(), 1), 1)):
        part = some.view(-1, *[1] * rate.ndim) * stride
        k = centre + part
        share = torch.where(k >= 0, (log_term(k.clamp_min(0)) - largest).exp(), 0.0)
        mass = mass + share.sum(0)
        moved = moved + (share * part).sum(0)
    # d/drate of rate^k e^-rate is (k / rate - 1) of it; at rate 0 the term of one photon alone is left.
    empty = ((data - 0.5) * precision).clamp(max=200).exp() - 1
    slope = torch.where(rate > 0, (centre - rate + moved / mass) / rate.clamp_min(1e-300), empty)
    return largest + (stride * mass).log(), slope
