"""What active acquisition hands round: what was acquired so far, what the particles predict, and who answers for a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from invsolve.contracts.maskable import MaskableOperator


class Instrument(Protocol):
    """What measures: a scanner, a simulator, or a recorded scan that is replayed."""

    def __call__(self, groups: Sequence[int], /) -> Any:
        """Values of these groups, in the instrument's units: (groups, entries per group), or a whole measurement."""
        ...


@dataclass(frozen=True)
class Knowledge:
    """What a policy decides on.

    Attributes:
        operator: the whole instrument's; `group_index` says which entries are measured together.
        acquired: boolean, (groups,).
        costs: (groups,) float64, what measuring a group costs.
        seed: of what a policy draws.
        predicted: (particles, *measurement), A x of each particle, in units of the noise's standard deviation, entry by entry;
            None where the policy did not ask for particles.
    """

    operator: MaskableOperator
    acquired: Tensor
    costs: Tensor
    seed: int
    predicted: Tensor | None = None

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self.acquired)

    def deviations(self) -> Tensor:
        """The particles' deviations from their mean in each entry, real, (particles, entries), over sqrt(particles - 1).

        D'D is then their covariance in units of the noise's variance. Complex entries count as two; their noise is that of
        each part.
        """
        assert self.predicted is not None
        rows = self.predicted - self.predicted.mean(0)
        flat = rows.flatten(1)
        flat = torch.cat([flat.real, flat.imag], 1) if flat.is_complex() else flat
        return flat.double() / max(len(flat) - 1, 1) ** 0.5

    def entry_groups(self) -> Tensor:
        """The group of each column of `deviations`, (entries,); -1 for none."""
        assert self.predicted is not None
        index = self.operator.group_index.expand(self.predicted.shape[1:]).flatten()
        return torch.cat([index, index]) if self.predicted.is_complex() else index


class Policy:
    """Chooses what is measured next. A frozen dataclass is a good subclass: its fields are then in the session's record.

    Attributes:
        name: for records and messages.
        particles: whether it decides by posterior samples; those are drawn before each `ask` then.
    """

    name: ClassVar[str] = ""
    particles: ClassVar[bool] = False

    def ask(self, knowledge: Knowledge, count: int) -> Sequence[int]:
        """Up to `count` groups that were not acquired, the most wanted first; deterministic in what it is handed."""
        raise NotImplementedError

    def parameters(self) -> Mapping[str, Any]:
        """What is compared when a session is gone on with."""
        return {"name": self.name, **{k: v for k, v in vars(self).items() if not k.startswith("_")}}
