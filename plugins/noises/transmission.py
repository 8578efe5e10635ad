"""Transmission noise: counts behind an object that absorbs, as tomography measures them before any logarithm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.numerics.counts import deviance, highest
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.noises._elementwise import Elementwise, at, check_number, total

#: Line integrals between which the exponential is taken: outside, e^30 times the open beam, or nothing at all.
_LOW, _HIGH = -30.0, 80.0


@dataclass(frozen=True)
class Transmission(Elementwise, Noise):
    """Counts behind an absorber: `transmission:I0`, y = counts, A(x) = line integrals.

    gain * y is Poisson with mean gain * (i0 exp(-A(x)) + background) (Lange & Carson 1984). Dark rays and rays without counts
    are kept as they are, where their logarithm would be noise or nothing.

    Args:
        i0: mean of y without the object (flat field above the dark field), in units of y, > 0. A number, or a map that
            broadcasts against y: (detectors,) of a sinogram, (items, 1, detectors) each detector row its own.
        background: mean of y without beam (dark field, scatter), in units of y, >= 0; a number or a map.
        gain: photons per unit of y, > 0; 1 for a counting detector. An integrating one whose counts scatter by a variance of v
            per count has 1 / v. A number or a map.
    """

    i0: float | Tensor
    background: float | Tensor = 0.0
    gain: float | Tensor = 1.0

    name: ClassVar[str] = "transmission"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"i0": 200.0},
        {"i0": [[50.0], [80.0], [40.0]], "background": 3.0, "gain": 0.5},
    )
    support: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        check_number(self, "i0", 0)
        check_number(self, "background", 0, attained=True)
        check_number(self, "gain", 0)

    @property
    def lattice(self) -> float | Tensor:
        return 1 / self.gain

    def mean(self, predicted: Tensor) -> Tensor:
        passed = (-predicted.clamp(_LOW, _HIGH)).exp()
        return at(self.i0, predicted) * passed + at(self.background, predicted)

    def sample(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        self.check_real(clean)
        gain = at(self.gain, clean)
        return rng.poisson(gain * self.mean(clean)) / gain

    def terms(self, y: Tensor, predicted: Tensor) -> Tensor:
        gain = at(self.gain, y)
        return deviance(gain * y, gain * self.mean(predicted))

    def std(self, predicted: Tensor) -> Tensor:
        return (self.mean(predicted) / at(self.gain, predicted)).sqrt()

    def predicted_from(self, y: Tensor) -> Tensor:
        # Half a photon above the background where nothing is, or less.
        beam, gain = at(self.i0, y), at(self.gain, y)
        above = (y - at(self.background, y)).maximum(0.5 / gain)
        return -(above / beam).log()

    def std_from(self, y: Tensor) -> Tensor:
        return (y.clamp_min(0) / at(self.gain, y)).sqrt()

    def constant(self, y: Tensor) -> Tensor:
        return total(highest((at(self.gain, y) * y).double()), y)
