"""Greedy information about the image: of Gaussian particles, and of a Gaussian prior exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.acquisition import Knowledge
from invsolve.plugins.policies._adaptive import Adaptive, conditioned

#: Numbers that are gathered at once.
_NUMBERS = 2**22


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
        sizes = torch.bincount(index[index >= 0], minlength=knowledge.groups)
        # The entries of each group side by side; groups of one size at once, of which there may be as many as pixels.
        places = index.argsort(stable=True)[int((index < 0).sum()) :].split(sizes.tolist())
        score = deviations.new_zeros(knowledge.groups)
        for size in sizes.unique().tolist():
            groups = (sizes == size).nonzero().flatten()
            for some in groups.split(max(1, _NUMBERS // max(1, size * len(deviations)))):
                z = deviations[:, torch.stack([places[group] for group in some.tolist()])].transpose(0, 1)
                # Of the two Gram matrices, which have one determinant, the smaller.
                gram = z @ z.mT if z.shape[1] <= z.shape[2] else z.mT @ z
                score[some] = torch.linalg.slogdet(torch.eye(gram.shape[-1]).to(gram) + gram)[1] / 2
        return score


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
