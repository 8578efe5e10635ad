"""Batches of patches with their positions, cut out of the batches of whole images."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from invsolve.contracts.prior import Prior
from invsolve.errors import UserError
from invsolve.networks.patches import Patches, cut
from invsolve.numerics.random import ChainRandom
from invsolve.training.batches import Batch, Batches, Source
from invsolve.training.data import Images
from invsolve.training.settings import Settings

#: Parts of the full side that patches have in training, and how often (PaDIS, appendix: 64, 32, 16 at 0.5, 0.3, 0.2).
_PARTS = ((1, 0.5), (2, 0.3), (4, 0.2))
# As in `batches`: draws for different ends must not coincide.
_PLACE, _SIDE = 5, 7


class PatchBatches:
    """Batches whose images are patches and positions (B, C + 2, side, side), and whose targets are patches.

    A batch has one side, each of its patches another place in the surrounded image.

    Args:
        whole: batches of images of one size.
        patches: how images are cut.
        multiple: sides are multiples of this.
    """

    def __init__(self, whole: Batches, patches: Patches, multiple: int) -> None:
        self.whole, self.patches = whole, patches
        self.mine = whole.mine
        possible = [(patches.side // part, share) for part, share in _PARTS if patches.side % (part * multiple) == 0]
        self.sides = [side for side, _ in possible]
        shares = np.array([share for _, share in possible])
        self.shares = shares / shares.sum()

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        return self._patches_of(self.whole.at(step), step)

    def ahead(self, first: int, workers: int) -> Generator[Batch]:
        """Batches from a step on without end."""
        for step, batch in enumerate(self.whole.ahead(first, workers), first):
            yield self._patches_of(batch, step)

    def _patches_of(self, batch: Batch, step: int) -> Batch:
        seed = self.whole.settings.seed
        side = int(np.random.default_rng((seed, _SIDE, step)).choice(self.sides, p=self.shares))
        noisy, target = self.patches.surrounded(batch.noisy), self.patches.surrounded(batch.target)
        places = ChainRandom(seed, [(row, _PLACE) for row in self.mine]).at(step)
        share = torch.stack([places.uniform(), places.uniform()], 1)
        room = torch.tensor(noisy.shape[2:]) - side + 1
        positions = self.patches.positions(noisy)
        seen, wanted = [], []
        for row, (top, left) in enumerate((share * room).long().tolist()):
            rows, columns = slice(top, top + side), slice(left, left + side)
            seen.append(cut(noisy[row : row + 1], positions, rows, columns))
            wanted.append(target[row : row + 1, :, rows, columns])
        return Batch(torch.cat(seen), batch.sigma, torch.cat(wanted), batch.outlier)


def patches_of(images: Images, settings: Settings, outside: float, multiple: int) -> Patches | None:
    """How a training cuts its images; None for whole ones.

    Args:
        images: to train on.
        settings: of the training.
        outside: value of what surrounds an image, network units.
        multiple: sides of images that the network takes are multiples of this.

    Raises:
        UserError: signals or volumes, random crops, or a side that the network does not take.
    """
    side = settings.patch
    if side is None:
        return None
    if len(images.spatial) != 2:
        raise UserError(f"{images.where}: patch is for images; leave it out for {len(images.spatial)} dimensions")
    if settings.crop is not None:
        raise UserError("training: a patch knows where in the image it lies, a random crop does not; leave crop out")
    if side % multiple:
        near = max(multiple, round(side / multiple) * multiple)
        raise UserError(f"training: patch {side} is no multiple of {multiple}, which this network needs; try {near}")
    rows, columns = images.spatial
    return Patches(side, (int(rows), int(columns)), outside)


def source_of(batches: Batches, prior: Prior) -> Source:
    """What a prior is trained on: patches where it knows images by these, else the batches as they are."""
    patches = getattr(prior, "patches", None)
    return batches if patches is None else PatchBatches(batches, patches, getattr(prior, "multiple", 1))
