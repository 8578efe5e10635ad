"""Orders that are drawn from the seed: all groups alike, denser in the middle, and kept apart from one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invsolve.contracts.acquisition import Knowledge
from invsolve.errors import UserError
from invsolve.plugins.policies._fixed import Fixed


@dataclass(frozen=True)
class Random(Fixed):
    """All groups alike, in an order drawn once from the seed."""

    name: ClassVar[str] = "random"

    def order(self, knowledge: Knowledge) -> Sequence[int]:
        generator = torch.Generator().manual_seed(knowledge.seed)
        return torch.randperm(knowledge.groups, generator=generator).tolist()


@dataclass(frozen=True)
class VariableDensity(Fixed):
    """Drawn from the seed, denser in the middle: weight (1 - distance)^power, 1 at the border (Lustig 2007).

    Args:
        power: how much denser; 0 is all alike.
    """

    name: ClassVar[str] = "variable-density"
    power: float = 3.0

    def order(self, knowledge: Knowledge) -> Sequence[int]:
        self.refuse(knowledge, "circle", "none")
        generator = torch.Generator().manual_seed(knowledge.seed)
        # Efraimidis and Spirakis 2006: drawing without replacement by weight is sorting by -log(u) / weight.
        uniform = torch.rand(knowledge.groups, generator=generator, dtype=torch.float64)
        return (-uniform.log() / (1 - knowledge.radius()) ** self.power).argsort().tolist()


@dataclass(frozen=True)
class PoissonDisc(Fixed):
    """Drawn from the seed, none near another, in discs that grow away from the middle (Cook 1986).

    As for k-space by Vasanawala (2010). Darts are thrown with large discs until none fits, then with smaller ones, and so on
    (McCool & Fiume 1992): whenever it ends, what was measured is a Poisson-disc set of the size that the discs then had.

    Args:
        growth: how much larger discs are at the border than in the middle, 1 + growth; 0 where groups are directions.
    """

    name: ClassVar[str] = "poisson-disc"
    growth: float = 3.0

    def __post_init__(self) -> None:
        if not self.growth >= 0:
            raise UserError(f"policy 'poisson-disc': growth must be >= 0, got {self.growth:g}")

    def order(self, knowledge: Knowledge) -> Sequence[int]:
        self.refuse(knowledge, "none")
        places = knowledge.places()
        round_ = knowledge.operator.group_layout == "circle"
        scale = 1 + (0 if round_ else self.growth) * knowledge.radius()
        generator = torch.Generator().manual_seed(knowledge.seed)
        darts = torch.randperm(knowledge.groups, generator=generator)
        extent = places.amax(0) - places.amin(0) + 1
        # The distance of each group from the nearest of those before, in discs of its own size.
        nearest = torch.full((knowledge.groups,), float("inf"), dtype=torch.float64)
        order: list[int] = []
        radius = float(extent.max())
        while len(order) < knowledge.groups:
            for dart in darts.tolist():
                if nearest[dart] < radius or nearest[dart] == 0:
                    continue
                order.append(dart)
                away = (places - places[dart]).abs()
                away = torch.minimum(away, extent - away) if round_ else away
                nearest = torch.minimum(nearest, away.square().sum(1).sqrt() / torch.minimum(scale, scale[dart]))
                nearest[dart] = 0
            radius /= 2**0.25
        return order
