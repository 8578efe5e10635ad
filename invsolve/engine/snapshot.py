"""What is needed to go on in the middle of a batch, and who keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Chain = tuple[int, int]
#: One finished sample that waits for the others of its item: its number, arrays and costs.
Sample = tuple[int, dict[str, Tensor], dict[str, float]]


@dataclass
class Snapshot:
    """A batch after some of its steps. Noise is keyed by step, so no generator state is needed.

    Attributes:
        chains: the (item, sample) pair of each row.
        step: steps done.
        state: the strategy's, tensors with the batch first.
        residuals: (B, steps), so far.
        unconverged: (B,), inner solves that did not converge so far.
        seconds: spent so far.
        calls: counters of the problem so far.
    """

    chains: Sequence[Chain]
    step: int
    state: Mapping[str, Tensor]
    residuals: Tensor
    unconverged: Tensor
    seconds: float
    calls: Mapping[str, int]

    def map(self, function: Callable[[Tensor], Tensor], chains: Sequence[Chain], share: float) -> Snapshot:
        """The same for other rows: tensors by a function of them, `share` times the calls."""
        state = {name: function(value) for name, value in self.state.items()}
        calls = {name: round(count * share) for name, count in self.calls.items()}
        residuals, unconverged = function(self.residuals), function(self.unconverged)
        return Snapshot(chains, self.step, state, residuals, unconverged, self.seconds, calls)


class Keeper(Protocol):
    """Keeps the last snapshot of a run where a kill does not reach it."""

    def due(self) -> bool:
        """Whether it is time to save again; asked after each step, so it must be quick."""
        ...

    def save(self, snapshot: Snapshot, waiting: Mapping[int, Sequence[Sample]]) -> None:
        """Replace what is kept, in one step.

        Args:
            snapshot: the batch that is running, on the CPU.
            waiting: finished samples of items that are not complete.
        """
        ...

    def restore(self) -> tuple[Snapshot | None, dict[int, list[Sample]]]:
        """What `save` kept last, in an earlier run of the same configuration."""
        ...
