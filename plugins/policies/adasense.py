"""AdaSense (Elata 2024): measure where the principal directions of the posterior covariance lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.acquisition import Knowledge, Policy
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.paper import Paper
from invsolve.errors import UserError
from invsolve.plugins.policies._adaptive import summed

#: Rows of an operator that are applied, at most, to find what its groups' rows have in common.
_ROWS = 50_000
#: Singular values below this part of the largest are not measured.
_RANK = 1e-6


@dataclass(frozen=True)
class AdaSense(Policy):
    """What captures most of the posterior covariance, as principal components would (Elata 2024).

    Of an instrument that could measure anything these would be the principal components of the posterior samples. Of one that
    has groups to choose from it takes those with the largest E|P_g (x - mean)|^2, P_g the projection of images onto the rows
    of group g: of k-space lines and pixels the variance there; of angles A_g'(A_g A_g')^-1 A_g. As published, the groups of
    one round are those with the largest scores, and the noise counts for nothing.

    Raises:
        UserError: rows that are not orthonormal, and too many to be applied one by one.
    """

    name: ClassVar[str] = "adasense"
    particles: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = Paper(
        "Adaptive Compressed Sensing with Diffusion-Based Posterior Sampling",
        ("Noam Elata", "Tomer Michaeli", "Michael Elad"),
        2024,
        "arXiv:2407.08256",
    )

    def ask(self, knowledge: Knowledge, count: int) -> list[int]:
        score = torch.where(knowledge.acquired, -torch.inf, self.scores(knowledge))
        return score.topk(min(count, int((~knowledge.acquired).sum()))).indices.tolist()

    def scores(self, knowledge: Knowledge) -> Tensor:
        assert knowledge.predicted is not None
        away = (knowledge.predicted - knowledge.predicted.mean(0)).flatten(1)
        index = knowledge.operator.group_index.expand(knowledge.predicted.shape[1:]).flatten().to(away.device)
        whitened = _whitening(knowledge.operator, knowledge.predicted)
        if whitened is None:
            return summed(away.abs().square().sum(0).double(), index, knowledge.groups).cpu() / knowledge.costs
        parts = (away[:, index == group] @ white.to(away) for group, white in enumerate(whitened))
        return torch.stack([part.abs().square().sum().double().cpu() for part in parts]) / knowledge.costs


def _whitening(operator: MaskableOperator, like: Tensor) -> list[Tensor] | None:
    """For each group W with W W' = (A_g A_g')^-1; None where the rows are orthonormal."""

    def made() -> list[Tensor] | None:
        y = torch.randn(1, *like.shape[1:], dtype=like.dtype, generator=torch.Generator().manual_seed(0))
        measured = operator.group_index.cpu().expand(y.shape[1:]) >= 0
        y = (y * measured).to(operator.group_index.device)
        again = operator(operator.adjoint(y))
        if float((again - y).norm()) < 1e-4 * float(y.norm()):
            return None
        if int(measured.sum()) > _ROWS:
            raise UserError(
                f"policy 'adasense': the {int(measured.sum())} rows of the operator are not orthonormal, and too many to be "
                "applied one by one; take policy information"
            )
        return [_of_group(operator, group, y) for group in range(operator.groups)]

    with torch.no_grad():
        return operator.remembered(("policy adasense", str(like.dtype)), made)


def _of_group(operator: MaskableOperator, group: int, like: Tensor) -> Tensor:
    places = (operator.group_index.expand(like.shape[1:]) == group).flatten().nonzero().flatten()
    unit = torch.zeros(len(places), like[0].numel(), dtype=like.dtype, device=like.device)
    unit[torch.arange(len(places)), places] = 1
    selected = torch.arange(operator.groups, device=like.device) == group
    part = operator.restricted(selected)
    # Row k is A A' of unit vector k: the transpose of A A', as rows of deviations are multiplied with it from the left.
    gram = torch.cat([part(part.adjoint(u.view(-1, *like.shape[1:]))).flatten(1)[:, places] for u in unit.split(32)])
    wide = gram.to(torch.complex128 if gram.is_complex() else torch.float64)
    values, vectors = torch.linalg.eigh((wide + wide.mH) / 2)
    root = torch.where(values > _RANK * values[-1], values.clamp_min(1e-300).rsqrt(), 0.0)
    return vectors * root
