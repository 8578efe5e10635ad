"""Fixed orders: what is measured next does not depend on what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from invsolve.contracts.acquisition import Knowledge, Policy
from invsolve.errors import UserError


@dataclass(frozen=True)
class Fixed(Policy):
    """Takes the groups in one order, which a subclass gives."""

    def ask(self, knowledge: Knowledge, count: int) -> Sequence[int]:
        key: Any = (self, knowledge.seed)
        order = knowledge.operator.remembered(key, lambda: dict.fromkeys(self.order(knowledge)))
        return [group for group in order if not knowledge.acquired[group]][:count]

    def order(self, knowledge: Knowledge) -> Sequence[int]:
        """All groups, the first one first; one that stands twice counts where it stands first."""
        raise NotImplementedError

    def refuse(self, knowledge: Knowledge, *layouts: str) -> None:
        """Raise where the groups lie in one of these ways, in which the order means nothing."""
        lie = knowledge.operator.group_layout
        if lie in layouts:
            words = {"circle": "directions, which have no middle", "none": "without any order among them"}
            raise UserError(
                f"policy {self.name!r} makes no sense here: the operator's groups are {words[lie]}; take another policy"
            )
