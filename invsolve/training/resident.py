"""Training batches made on the device that trains: the images stay there, and a batch is augmented all at once."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.scale import Scale
from invsolve.training.batches import Batch, Batches
from invsolve.training.data import Images
from invsolve.training.settings import Settings

# Of a GPU's free memory, what images may take: the network, its gradients and other trainings need the rest.
_SHARE = 0.3


class DeviceRandom:
    """Draws for a whole batch from one generator on the device; the same interface as `ChainRandom` where batches need it."""

    def __init__(self, key: Sequence[int], rows: int, device: torch.device) -> None:
        seed = np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0]
        self.rows, self.device = rows, device
        self.generator = torch.Generator(device).manual_seed(int(seed >> np.uint64(1)))

    def uniform(self) -> Tensor:
        """(rows,), in [0, 1)."""
        return torch.rand(self.rows, generator=self.generator, device=self.device)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the same shape and type."""
        return torch.randn(like.shape, generator=self.generator, device=self.device, dtype=like.dtype)


class ResidentBatches(Batches):
    """Batches whose images are held on a device.

    The numbers follow from (seed, step, rank) and from the kind of device, not from the row alone: a run resumes to the bit
    on the device that it was begun on, and another number of processes makes another run.

    Args:
        device: where.
        others: as of `Batches`.
    """

    def __init__(
        self,
        images: Images,
        rows: np.ndarray,
        settings: Settings,
        scale: Scale,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(images, rows, settings, scale, rank, world)
        self.device, self.rank = torch.device(device), rank
        self.index = np.argsort(rows), np.sort(rows)
        held = torch.stack([torch.from_numpy(images.read(row)) for row in rows.tolist()])
        self.held = held.to(self.device)

    def _random(self, step: int, purpose: int, rows: int) -> DeviceRandom:  # type: ignore[override]
        return DeviceRandom([self.settings.seed, 6, step, self.rank, purpose], rows, self.device)

    def _levels(self, clean: Tensor, rng: DeviceRandom) -> Tensor:  # type: ignore[override]
        """Standard normal numbers spread evenly over the batch: its loss varies less than with independent ones."""
        count = len(clean)
        stratum = torch.randperm(count, generator=rng.generator, device=self.device)
        share = ((stratum + rng.uniform()) / count).clamp(1e-6, 1 - 1e-6)
        return math.sqrt(2) * torch.erfinv(2 * share - 1)

    def _full(self, indices: Sequence[int]) -> Tensor:
        order, rising = self.index
        at = order[np.searchsorted(rising, np.asarray(indices))]
        return self.held[torch.from_numpy(at).to(self.device, non_blocking=True)]

    def _cut(self, indices: Sequence[int], place: Tensor) -> Tensor:
        images = self._full(indices)
        for axis, size in enumerate(self.size):
            full = images.shape[2 + axis]
            if size == full:
                continue
            start = (place[:, axis] * (full - size + 1)).long().clamp(max=full - size)
            at = start[:, None] + torch.arange(size, device=self.device)
            shape = [len(at), 1, *(size if k == axis else 1 for k in range(len(self.size)))]
            images = images.gather(
                2 + axis, at.view(shape).expand(*images.shape[: 2 + axis], size, *images.shape[3 + axis :])
            )
        return images

    def ahead(self, first: int, workers: int) -> Generator[Batch]:
        """Batches from a step on without end; the device itself queues them, so that no thread need run ahead."""
        step = first
        while True:
            yield self.at(step)
            step += 1


def make_batches(
    images: Images, rows: np.ndarray, settings: Settings, scale: Scale, rank: int, world: int, device: torch.device
) -> Batches:
    """Resident batches where the settings ask for them, or on a GPU with room; else those that read as they go."""
    size = 4 * len(rows) * math.prod(images.shape)
    if settings.resident == "auto":
        resident = device.type == "cuda" and size <= _SHARE * torch.cuda.mem_get_info(device)[0]
    else:
        resident = settings.resident == "yes"
    if resident:
        return ResidentBatches(images, rows, settings, scale, rank, world, device)
    return Batches(images, rows, settings, scale, rank, world)
