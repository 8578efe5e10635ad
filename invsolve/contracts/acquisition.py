"""What active acquisition hands round: what was acquired so far, what the particles predict, and who answers for a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.paper import Paper


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
        root: (rows, *measurement), A r of each row r of a root of the prior's covariance, R'R, in the same units; None where
            the policy did not ask for the covariance.
    """

    operator: MaskableOperator
    acquired: Tensor
    costs: Tensor
    seed: int
    predicted: Tensor | None = None
    root: Tensor | None = None

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
        rows = _as_real((self.predicted - self.predicted.mean(0)).flatten(1))
        return rows / max(len(rows) - 1, 1) ** 0.5

    def exact_deviations(self) -> Tensor:
        """The same of the prior's covariance, before anything is measured: (rows, entries)."""
        assert self.root is not None
        return _as_real(self.root.flatten(1))

    def entry_groups(self) -> Tensor:
        """The group of each column of `deviations`, (entries,); -1 for none."""
        values = self.root if self.predicted is None else self.predicted
        assert values is not None
        index = self.operator.group_index.expand(values.shape[1:]).flatten()
        return torch.cat([index, index]) if values.is_complex() else index

    def places(self) -> Tensor:
        """Where each group lies in a measurement, (groups, axes), float64: the mean index of its entries, along the axes in
        which groups differ."""
        return self.operator.remembered("places of the groups", lambda: _places(self.operator)[0])

    def from_middle(self) -> Tensor:
        """Places from the middle, (groups, axes), in steps of the axis; without the axis of frames, each of which has one.

        The middle of n is n // 2, where a centred transform has its lowest frequency.
        """
        return self.operator.remembered("places from the middle", lambda: _places(self.operator)[1])

    def radius(self) -> Tensor:
        """Distance of each group from the middle, (groups,), below 1 at the border of every axis."""
        away = self.from_middle()
        return (away / (away.abs().amax(0) + 1)).square().sum(1).sqrt().clamp_max(1 - 1e-3)


def _as_real(rows: Tensor) -> Tensor:
    return (torch.cat([rows.real, rows.imag], 1) if rows.is_complex() else rows).double()


def _places(operator: MaskableOperator) -> tuple[Tensor, Tensor]:
    index = operator.group_index.cpu()
    along = [torch.arange(n).view(-1, *[1] * (index.dim() - 1 - k)) for k, n in enumerate(index.shape)]
    places = torch.stack([operator.group_mean(positions) for positions in along], 1)
    middle = torch.tensor([side // 2 for side in index.shape], dtype=torch.float64)
    differ = (places.amax(0) > places.amin(0)).nonzero().flatten().tolist() or [index.dim() - 1]
    frames = None if operator.frame_axis is None else index.dim() + operator.frame_axis
    inside = [axis for axis in differ if axis != frames] or differ
    return places[:, differ], (places - middle)[:, inside]


class Policy:
    """Chooses what is measured next. A frozen dataclass is a good subclass: its fields are then in the session's record.

    Attributes:
        name: for records and messages.
        particles: whether it decides by posterior samples; those are drawn before each `ask` then.
        covariance: whether it decides by the prior's covariance; the prior must have a method `covariance()` then.
        preference: place in the order in which one is chosen where none is named, 0 first; None where it is never chosen.
        paper, builds_on: the publication that it implements, and further ones that it rests on.
        examples: keyword arguments of small instances, which the checks are run on.
    """

    name: ClassVar[str] = ""
    particles: ClassVar[bool] = False
    covariance: ClassVar[bool] = False
    preference: ClassVar[int | None] = None
    paper: ClassVar[Paper | None] = None
    builds_on: ClassVar[tuple[Paper, ...]] = ()
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    def ask(self, knowledge: Knowledge, count: int) -> Sequence[int]:
        """Up to `count` groups that were not acquired, the most wanted first; deterministic in what it is handed.

        Raises:
            UserError: the policy makes no sense for these groups.
        """
        raise NotImplementedError

    def scores(self, knowledge: Knowledge) -> Tensor | None:
        """What each group seems worth before the first pick, (groups,), for pictures; None where there is no such number."""
        return None

    def parameters(self) -> Mapping[str, Any]:
        """What is compared when a session is gone on with."""
        return {"name": self.name, **{k: v for k, v in vars(self).items() if not k.startswith("_")}}
