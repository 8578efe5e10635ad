"""Greedy information about the image: of Gaussian particles, and of a Gaussian prior exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.acquisition import Knowledge
from invsolve.plugins.policies._adaptive import Adaptive, conditioned


@dataclass(frozen=True)
class Information(Adaptive):
    """What brings most information about the image: the greedy log-determinant, of Gaussian particles.

    ln det(1 + C_g) / 2, C_g the particles' covariance in group g in units of the noise's variance, conditioned on the picks
    before. Exact for a Gaussian posterior as particles grow; with N particles C_g has rank N - 1.

    Args:
        together: how a pick tells on the next of one round: by conditioning, by suppressing neighbours, or not.
    """

    name: ClassVar[str] = "information"

    def score(self, deviations: Tensor, index: Tensor, knowledge: Knowledge) -> Tensor:
        inner = (deviations[:, index == group] for group in range(knowledge.groups))
        # Of the two Gram matrices, which have one determinant, the smaller.
        small = (z @ z.T if len(z) <= z.shape[1] else z.T @ z for z in inner)
        return torch.stack([torch.linalg.slogdet(torch.eye(len(c)).to(c) + c)[1] / 2 for c in small])


@dataclass(frozen=True)
class GaussianOptimal(Information):
    """The greedy optimum of a Gaussian prior: `information` of its exact covariance, no particles.

    For priors with a method `covariance()`, such as `gaussian-field`. What it chooses does not depend on what is measured: of a
    Gaussian the posterior covariance is known beforehand.

    Args:
        together: how a pick tells on the next of one round: by conditioning, by suppressing neighbours, or not.
    """

    name: ClassVar[str] = "gaussian-optimal"
    particles: ClassVar[bool] = False
    covariance: ClassVar[bool] = True

    def deviations(self, knowledge: Knowledge) -> Tensor:
        rows, index = knowledge.exact_deviations(), knowledge.entry_groups()
        inside = knowledge.acquired.to(index.device)[index.clamp_min(0)] & (index >= 0)
        return conditioned(rows, rows[:, inside]) if bool(inside.any()) else rows
