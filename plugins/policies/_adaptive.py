"""Greedy choices by a score per group and unit of cost, of what the particles' predictions deviate by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.acquisition import Knowledge, Policy


@dataclass(frozen=True)
class Adaptive(Policy):
    """Greedy by a score per group and unit of cost; for several groups at once later picks know of earlier ones.

    Conditioning is that of Gaussian particles on a measurement of the picked group, deviations D -> T D with
    T = (1 + Z Z')^-1/2, Z the deviations there (the square-root form of the ensemble Kalman filter: Bishop 2001).

    Args:
        together: how a pick tells on the next of one round: "conditioned", as above; "suppressed", scores of neighbours times
            1 - exp(-distance^2 / 2), of those within two places; "alone" not at all.
    """

    particles: ClassVar[bool] = True
    together: Literal["conditioned", "suppressed", "alone"] = "conditioned"

    def ask(self, knowledge: Knowledge, count: int) -> Sequence[int]:
        deviations, index = self.deviations(knowledge), knowledge.entry_groups()
        open_ = ~knowledge.acquired
        suppressed = torch.ones(knowledge.groups, dtype=torch.float64)
        score = suppressed
        picked: list[int] = []
        while len(picked) < count and bool(open_.any()):
            if not picked or self.together == "conditioned":
                score = self.score(deviations, index, knowledge).cpu() / knowledge.costs
            best = int(torch.where(open_, score * suppressed, -math.inf).argmax())
            picked.append(best)
            open_ = open_.clone()
            open_[best] = False
            if self.together == "suppressed":
                squared = (knowledge.places() - knowledge.places()[best]).square().sum(1)
                suppressed = suppressed * torch.where(squared <= 4, 1 - (-squared / 2).exp(), 1.0)
            elif self.together == "conditioned" and len(picked) < count:
                deviations = conditioned(deviations, deviations[:, index == best])
        return picked

    def scores(self, knowledge: Knowledge) -> Tensor:
        score = self.score(self.deviations(knowledge), knowledge.entry_groups(), knowledge)
        return score.cpu() / knowledge.costs

    def deviations(self, knowledge: Knowledge) -> Tensor:
        """(rows, entries) real; rows'rows is the covariance of what would be measured, in units of the noise's variance."""
        return knowledge.deviations()

    def score(self, deviations: Tensor, index: Tensor, knowledge: Knowledge) -> Tensor:
        """(groups,), what measuring each would bring."""
        raise NotImplementedError


def conditioned(deviations: Tensor, inside: Tensor) -> Tensor:
    """Deviations (rows, entries) after a measurement of some entries, which deviate by `inside` (rows, some)."""
    left, values, _ = torch.linalg.svd(inside, full_matrices=False)
    return deviations + left @ (((1 + values.square()).rsqrt() - 1)[:, None] * (left.T @ deviations))


def summed(values: Tensor, index: Tensor, groups: int) -> Tensor:
    """Sum values (..., entries) over each group: (..., groups)."""
    kept = torch.where(index >= 0, values, 0.0)
    return values.new_zeros(*values.shape[:-1], groups).index_add_(-1, index.clamp_min(0), kept)
