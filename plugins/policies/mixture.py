"""The scores of active diffusion subsampling: entropy of a mixture around the particles, and its limit, their variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.acquisition import Knowledge
from invsolve.contracts.paper import Paper
from invsolve.plugins.policies._adaptive import Adaptive, summed

_NOLAN = Paper(
    "Active Diffusion Subsampling",
    ("Oisin Nolan", "Tristan S. W. Stevens", "Wessel L. van Nierop", "Ruud J. G. van Sloun"),
    2024,
    "arXiv:2406.14388",
)


@dataclass(frozen=True)
class Variance(Adaptive):
    """What the particles predict with the largest variance in all: the limit of `entropy` for wide Gaussians.

    Args:
        together: how a pick tells on the next of one round: by conditioning, by suppressing neighbours, or not.
    """

    name: ClassVar[str] = "variance"

    def score(self, deviations: Tensor, index: Tensor, knowledge: Knowledge) -> Tensor:
        return summed(deviations.square().sum(0), index, knowledge.groups)


@dataclass(frozen=True)
class Entropy(Adaptive):
    """The score of active diffusion subsampling (Nolan 2024): entropy of a mixture around the particles.

    H_g = -(1/N) sum_i ln (1/N) sum_j exp(-d_ij^2 / 2 width^2), d_ij the distance of two particles in group g (Hershey & Olsen
    2007), in log space. The "pairwise" form is that of the published code, (1/N) sum_i ln (1/N) sum_j exp(+d_ij^2 / 2 width^2):
    the same for wide Gaussians, beyond that ruled by the particles that are furthest apart.

    Args:
        width: standard deviation of the mixture's Gaussians, in units of the rms distance over all groups; the published one
            is a constant in the data's own units.
        form: the entropy, or what the published code calculates.
        together: how a pick tells on the next of one round: by conditioning, by suppressing neighbours, or not.
    """

    name: ClassVar[str] = "entropy"
    preference: ClassVar[int | None] = 0
    paper: ClassVar[Paper | None] = _NOLAN
    width: float = 1.0
    form: Literal["mixture", "pairwise"] = "mixture"

    def score(self, deviations: Tensor, index: Tensor, knowledge: Knowledge) -> Tensor:
        count = len(deviations)
        rows = deviations * max(count - 1, 1) ** 0.5
        squared = torch.stack([summed((rows - row).square(), index, knowledge.groups) for row in rows])
        width = self.width * squared.mean().sqrt().clamp_min(1e-12)
        sign = -1 if self.form == "mixture" else 1
        return sign * (torch.logsumexp(sign * squared / (2 * width**2), 1) - math.log(count)).mean(0)
