"""Which chains run together: samples of items, or all slices of a volume, cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from invsolve.engine.snapshot import Chain


def batches(chains: Sequence[Chain], size: Callable[[], int], together: int) -> Iterator[list[Chain]]:
    """Cut chains into batches of `size()` rows, a multiple of `together`; asks for the size anew for each."""
    position = 0
    while position < len(chains):
        rows = max(size() // together, 1) * together
        yield list(chains[position : position + rows])
        position += rows


def batches_of_volumes(
    volumes: Sequence[Sequence[int]], samples: int, remaining: Collection[int], had: Collection[Chain]
) -> Iterator[list[Chain]]:
    """One batch for each sample of each volume.

    Args:
        volumes: the items of each.
        samples: S.
        remaining: items to do; a volume without any is passed over.
        had: chains that are finished, or begun by somebody else; a sample that consists of such is passed over.
    """
    for volume in volumes:
        if any(item in remaining for item in volume):
            for sample in range(samples):
                chains = [(item, sample) for item in volume]
                if any(chain not in had for chain in chains):
                    yield chains
