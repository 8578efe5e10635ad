"""Off-resonance by time segments: the phase that a field map adds during a readout, as a short sum of products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor


def error_bound(phase: float, count: int) -> float:
    """Bound on |exp(i phase s) - its interpolation at `count` Chebyshev nodes|, for s from -1 to 1.

    The Chebyshev coefficients are 2 J_m(phase) in modulus, and interpolation errs by at most twice the sum of those left out
    (Trefethen, Approximation Theory and Approximation Practice, theorem 4.2).
    """
    order = np.arange(count, count + 60 + int(2 * phase))
    return float(4 * np.abs(special.jv(order, phase)).sum())


def segments_for(phase: float, tolerance: float) -> int:
    """The least number of segments whose error bound is below the tolerance."""
    count = 1
    while error_bound(phase, count) > tolerance:
        count += 1
    return count


@dataclass(frozen=True)
class Segments:
    """exp(-2 pi i f t) = sum over l of weights[l](t) exp(-2 pi i (f - centre) times[l]), to within a bound.

    Attributes:
        times: (segments,), in s: Chebyshev nodes of the readout.
        cardinal: (segments, samples), real: the interpolation's weights at the times of the samples.
        centre: middle of the field map's range, in Hz.
        sampled: (samples,), in s.
    """

    times: Tensor
    cardinal: Tensor
    centre: float
    sampled: Tensor

    @property
    def weights(self) -> Tensor:
        """(segments, samples), complex128, with the middle frequency's phase."""
        return self.cardinal * torch.polar(torch.ones_like(self.sampled), -2 * math.pi * self.centre * self.sampled)

    def phases(self, field: Tensor) -> Tensor:
        """exp(-2 pi i (field - centre) times), (segments, *size), complex128, for a field map in Hz."""
        turns = (field.double() - self.centre) * self.times.to(field.device).view(-1, *[1] * field.ndim)
        return torch.polar(torch.ones_like(turns), -2 * math.pi * turns)


def largest_phase(field: Tensor, times: Tensor) -> float:
    """Half of the field's range times half of the readout, in radians: what decides the number of segments."""
    width = float(field.max() - field.min()) * float(times.max() - times.min())
    return math.pi / 2 * width


def segmented(field: Tensor, times: Tensor, tolerance: float, differences: bool = False) -> Segments:
    """Segments for a field map in Hz and samples at these times in s, float64.

    Args:
        field: (*size).
        times: (samples,).
        tolerance: of the phase factor, at every pixel and sample.
        differences: for differences of two pixels' frequencies, which reach twice as far, around 0: for A'A.
    """
    phase = largest_phase(field, times) * (2 if differences else 1)
    count = segments_for(phase, tolerance)
    first, last = float(times.min()), float(times.max())
    node = torch.cos(math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    middle, half = (first + last) / 2, (last - first) / 2
    s = ((times - middle) / half).clamp(-1, 1) if half > 0 else torch.zeros_like(times)
    order = torch.arange(count, dtype=torch.float64)
    # The cardinal functions as sums of Chebyshev polynomials, which are cosines.
    at_nodes, at_samples = torch.cos(order[:, None] * node.acos()), torch.cos(order[:, None] * s.acos())
    share = torch.where(order == 0, 1.0, 2.0).double() / count
    cardinal = (at_nodes * share[:, None]).T @ at_samples
    centre = 0.0 if differences else float(field.max() + field.min()) / 2
    return Segments(middle + half * node, cardinal, centre, times)
