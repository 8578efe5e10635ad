"""Orders that spread evenly, whenever they end: halving the gaps, golden steps, spokes, and from the middle outwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invsolve.contracts.acquisition import Knowledge
from invsolve.errors import UserError
from invsolve.plugins.policies._fixed import Fixed

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class CentreOut(Fixed):
    """From the middle outwards, low frequencies first; in one dimension to the left and to the right by turns."""

    name: ClassVar[str] = "centre-out"

    def order(self, knowledge: Knowledge) -> Sequence[int]:
        self.refuse(knowledge, "circle", "none")
        distance = knowledge.from_middle().square().sum(1).tolist()
        return sorted(range(knowledge.groups), key=lambda group: (distance[group], group))


@dataclass(frozen=True)
class Uniform(Fixed):
    """Each halves the widest gap between those before, along every axis by turns (van der Corput 1935)."""

    name: ClassVar[str] = "uniform"

    def order(self, knowledge: Knowledge) -> Sequence[int]:
        self.refuse(knowledge, "none")
        # By rank along each axis, so that lines that are not there leave no gap.
        ranks = [axis.unique(return_inverse=True) for axis in knowledge.places().T]
        sides = [len(values) for values, _ in ranks]
        cells = dict(
            zip(zip(*(inverse.tolist() for _, inverse in ranks), strict=True), range(knowledge.groups), strict=True)
        )
        bits = max(max(sides) - 1, 1).bit_length()
        axes = len(sides)
        order = []
        for k in range(2 ** (bits * axes)):
            turned = format(k, f"0{bits * axes}b")[::-1]
            cell = tuple(int(turned[axis::axes], 2) * side >> bits for axis, side in enumerate(sides))
            if cell in cells:
                order.append(cells[cell])
        return [*order, *range(knowledge.groups)]


@dataclass(frozen=True)
class GoldenAngle(Fixed):
    """Steps of the golden ratio of all groups (Winkelmann 2007): for angles, about evenly spread whenever it ends."""

    name: ClassVar[str] = "golden-angle"

    def order(self, knowledge: Knowledge) -> Sequence[int]:
        self.refuse(knowledge, "none")
        groups = knowledge.groups
        if knowledge.places().shape[1] > 1:
            raise UserError(
                "policy 'golden-angle' makes no sense here: the operator's groups lie along more than one axis; for points take "
                "'radial'"
            )
        # Steps that are rounded may fall on a group twice and leave one out for long; the rest comes in order.
        return [*(math.floor(groups * ((k * _GOLDEN) % 1)) for k in range(4 * groups)), *range(groups)]


@dataclass(frozen=True)
class Radial(Fixed):
    """Points along spokes through the middle, a golden angle apart (Winkelmann 2007), from the middle outwards."""

    name: ClassVar[str] = "radial"

    def order(self, knowledge: Knowledge) -> Sequence[int]:
        self.refuse(knowledge, "circle", "none")
        away = knowledge.from_middle()
        if away.shape[1] != 2:
            raise UserError(
                "policy 'radial' makes no sense here: it needs groups that are points of a plane, such as pixels or points of "
                "k-space; for angles take 'golden-angle'"
            )
        distance = away.square().sum(1).sqrt()
        order: list[int] = []
        left = torch.ones(len(away), dtype=torch.bool)
        spoke = 0
        while left.any() and spoke < 4 * len(away):
            angle = math.pi * ((spoke * _GOLDEN) % 1)
            beside = (away[:, 0] * math.cos(angle) - away[:, 1] * math.sin(angle)).abs()
            on = (left & (beside <= 0.5)).nonzero().flatten()
            order += on[distance[on].argsort(stable=True)].tolist()
            left[on] = False
            spoke += 1
        return [*order, *range(len(away))]
