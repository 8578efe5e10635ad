"""Finished samples wait here until their item's others are there too; then the item goes to the sink, in another thread."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from invsolve.contracts.sink import Sink
from invsolve.engine.snapshot import Chain, Sample
from invsolve.engine.streaming import WriteBehind
from invsolve.numerics.grouping import grouping

#: What the first sample of an item carries for all of them, where it is asked for.
LINEAR = "linear"


class Collector:
    """Hands each item to the sink as soon as its last sample is done. Leaving the block waits for what was handed over.

    Args:
        sink: where items go; called in a thread, one item at a time.
        samples: S, samples per item.
        waiting: finished samples of items that were not complete when an earlier run was killed.
        skip: items that the sink has already: those of a volume that was being written at a kill are computed again.
        depth: how many items may wait to be written.
    """

    def __init__(
        self, sink: Sink, samples: int, waiting: dict[int, list[Sample]], skip: Collection[int], depth: int
    ) -> None:
        self._sink, self._samples, self._waiting, self._skip = sink, samples, waiting, skip
        self._writing = WriteBehind(self._write, depth)

    def __enter__(self) -> Self:
        self._writing.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writing.__exit__(kind, error, trace)

    def add(
        self,
        chains: Sequence[Chain],
        arrays: Mapping[str, Tensor],
        facts: dict[str, float],
        linear: Mapping[int, Tensor],
    ) -> None:
        """Take in a batch.

        Args:
            chains: the (item, sample) pair of each row.
            arrays: (B, ...) each, on the CPU; "image" in physical units.
            facts: what a row cost.
            linear: linear reconstructions (C, *spatial), by item.

        Raises:
            UserError: an earlier item could not be written.
        """
        for row, (item, sample) in enumerate(chains):
            mine = {name: value[row] for name, value in arrays.items()}
            if sample == 0 and item in linear:
                mine[LINEAR] = linear[item]
            parts = self._waiting.setdefault(item, [])
            parts.append((sample, mine, facts))
            if len(parts) == self._samples:
                del self._waiting[item]
                if item not in self._skip:
                    self._writing.put(item, sorted(parts, key=lambda part: part[0]))

    def waiting(self) -> Mapping[int, Sequence[Sample]]:
        """Samples of items that are not complete, after all that are complete were written: nothing is in between.

        Raises:
            UserError: an item could not be written.
        """
        self._writing.drain()
        return self._waiting

    def _write(self, item: int, parts: list[Sample]) -> None:
        self._sink.write(item, *_summary(parts))


def _summary(parts: list[Sample]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Mean, standard deviation and stacked arrays of an item's samples; costs averaged, seconds summed."""
    first = parts[0][1]
    arrays = {name: torch.stack([part[name] for _, part, _ in parts]) for name in first if name != LINEAR}
    samples = arrays.pop("image")
    std = samples.std(0) if len(samples) > 1 else torch.zeros_like(samples[0])
    arrays["grouping"] = torch.full((len(samples),), grouping(samples))
    costs = [facts for _, _, facts in parts]
    facts = {name: sum(cost[name] for cost in costs) / len(costs) for name in costs[0]}
    facts["seconds"] *= len(costs)
    if LINEAR in first:
        arrays[LINEAR] = first[LINEAR]
    return {"mean": samples.mean(0), "std": std, "samples": samples, **arrays}, facts
