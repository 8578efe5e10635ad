"""Training batches, each number of which follows from (seed, step, row): order, crops, augmentation, noise, target."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.prior import per_row
from invsolve.contracts.scale import Scale
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.training.data import Images
from invsolve.training.settings import Settings

#: Least noise level of a prior and of its training; below, bf16 weights see nothing.
SIGMA_MIN = 0.005
# The second number of a chain's key: draws for different ends must not coincide.
_IMAGE, _NOISE, _REFERENCE = 0, 1, 2


@dataclass(frozen=True)
class Batch:
    """What one step of training sees, network units, on the CPU.

    Attributes:
        noisy: (B, C, *size), image plus noise.
        sigma: (B,), the noise level.
        target: (B, C, *size), what the denoiser should say: the image, or the stable target.
    """

    noisy: Tensor
    sigma: Tensor
    target: Tensor


class Batches:
    """The batches of a run, or of one process of it.

    Args:
        images: where they are read.
        rows: indices of the images to train on.
        settings: batch size, augmentation, noise.
        scale: from physical to network units.
        rank, world: this process takes every `world`-th row of a batch, so that the whole batch does not depend on them.

    Raises:
        UserError: a crop or a mirror axis that the images do not have.
    """

    def __init__(
        self, images: Images, rows: np.ndarray, settings: Settings, scale: Scale, rank: int = 0, world: int = 1
    ) -> None:
        self.images, self.rows, self.settings, self.scale = images, rows, settings, scale
        self.mine = list(range(rank, settings.batch_size, world))
        self.size = crop_size(images, settings)
        self.flips = list(settings.flip or [])
        self._orders: dict[int, np.ndarray] = {}
        dimensions = len(images.spatial)
        if any(not 0 <= axis < dimensions for axis in self.flips):
            raise UserError(f"{images.where}: flip {self.flips}: images have the spatial axes 0..{dimensions - 1}")
        self.warps = bool(settings.rotate or settings.zoom)
        if self.warps and dimensions == 1:
            raise UserError(f"{images.where}: rotate and zoom are for two and three dimensions; leave them out")

    def image_at(self, position: int) -> int:
        """Index of the image at a position of the endless order: every epoch is a permutation of its own."""
        epoch, within = divmod(position, len(self.rows))
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng((self.settings.seed, 2, epoch)).permutation(len(self.rows))
            # A batch spans two epochs at most, but other threads may still be at the one before.
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 2} | {epoch: order}
        return int(self.rows[order[within]])

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        s = self.settings
        indices = [self.image_at(step * s.batch_size + row) for row in self.mine]
        clean = self._augmented(indices, ChainRandom(s.seed, [(row, _IMAGE) for row in self.mine]).at(step))
        rng = ChainRandom(s.seed, [(row, _NOISE) for row in self.mine]).at(step)
        level = rng.normal(clean.new_zeros(len(clean), 1))[:, 0]
        sigma = (s.sigma_mean + s.sigma_std * level).exp().clamp(SIGMA_MIN / 2, s.sigma_max)
        noisy = clean + per_row(sigma, clean) * self._noise(clean, rng)
        target = self._stable(clean, noisy, sigma, step) if s.stable_target else clean
        return Batch(noisy, sigma, target)

    def _noise(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        """Noise for each image: of k draws the nearest one (immiscible diffusion with k nearest neighbours, Li 2025)."""
        best = rng.normal(clean)
        distance = (best - clean).flatten(1).square().sum(1)
        for _ in range(self.settings.immiscible - 1):
            other = rng.normal(clean)
            far = (other - clean).flatten(1).square().sum(1)
            nearer = far < distance
            best, distance = torch.where(per_row(nearer, clean), other, best), torch.minimum(far, distance)
        return best

    def _stable(self, clean: Tensor, noisy: Tensor, sigma: Tensor, step: int) -> Tensor:
        """Posterior mean over a reference batch (stable target field, Xu 2023); the image itself is always in it."""
        count = self.settings.stable_target
        picker = np.random.default_rng((self.settings.seed, 3, step))
        indices = picker.choice(self.rows, size=count, replace=count > len(self.rows)).tolist()
        chains = [(row, _REFERENCE) for row in range(count)]
        others = self._augmented(indices, ChainRandom(self.settings.seed, chains).at(step))
        targets = []
        for image, seen, level in zip(clean, noisy, sigma.tolist(), strict=True):
            candidates = torch.cat([image[None], others])
            distance = (candidates - seen).double().flatten(1).square().sum(1)
            weight = torch.softmax(-distance / (2 * level**2), 0).float()
            targets.append((per_row(weight, candidates) * candidates).sum(0))
        return torch.stack(targets)

    def _augmented(self, indices: Sequence[int], rng: ChainRandom) -> Tensor:
        """Images (B, C, *size) in network units: cropped, mirrored, turned, magnified, brightened."""
        low, high = self.scale.range
        # One uniform number an image and purpose, drawn whether used or not: options do not shift one another's draws.
        place = torch.stack([rng.uniform() for _ in range(3)], 1)
        mirror = torch.stack([rng.uniform() for _ in range(3)], 1) < 0.5
        turn, magnify, bright = rng.normal(torch.zeros(len(indices), 1))[:, 0], rng.uniform(), rng.uniform()
        if self.warps:
            full = torch.stack([torch.from_numpy(self.images.read(i)) for i in indices])
            clean = self._warped(full, place, turn, magnify)
        else:
            clean = torch.stack(
                [torch.from_numpy(self.images.read(i, self._window(at))) for i, at in zip(indices, place, strict=True)]
            )
        for axis in self.flips:
            clean = torch.where(per_row(mirror[:, axis], clean), clean.flip(2 + axis), clean)
        if self.settings.gain:
            strength = torch.where(bright < 0.5, 1 + self.settings.gain * (4 * bright - 1), 1.0).float()
            zero = 0.0 if low <= 0 < high else low
            clean = zero + (clean - zero) * per_row(strength, clean)
        if self.settings.clip:
            clean = clean.clamp(low, high)
        return self.scale.to_network(clean)

    def _window(self, place: Tensor) -> list[slice]:
        starts = [
            int(p * (full - size + 1))
            for p, full, size in zip(place.tolist(), self.images.spatial, self.size, strict=False)
        ]
        return [slice(start, start + size) for start, size in zip(starts, self.size, strict=True)]

    def _warped(self, full: Tensor, place: Tensor, turn: Tensor, magnify: Tensor) -> Tensor:
        """Rotation in the last two axes, magnification and crop in one resampling; edges are continued outwards."""
        size, spatial = self.size, full.shape[2:]
        # Normalised coordinates run over (x, y, z), the last axis first.
        window = [s / f for s, f in zip(reversed(size), reversed(spatial), strict=True)]
        zoom = ((2 * magnify - 1) * math.log1p(self.settings.zoom)).exp().float()
        angle = turn * math.radians(self.settings.rotate)
        aspect = size[-1] / spatial[-2], size[-2] / spatial[-1]
        matrix = torch.zeros(len(full), len(size), len(size) + 1)
        matrix[:, 0, 0], matrix[:, 0, 1] = zoom * angle.cos() * window[0], -zoom * angle.sin() * aspect[1]
        matrix[:, 1, 0], matrix[:, 1, 1] = zoom * angle.sin() * aspect[0], zoom * angle.cos() * window[1]
        if len(size) == 3:
            matrix[:, 2, 2] = zoom * window[2]
        for axis, part in enumerate(window):
            matrix[:, axis, -1] = (2 * place[:, axis].float() - 1) * (1 - part * zoom).clamp(min=0)
        grid = F.affine_grid(matrix, [*full.shape[:2], *size], align_corners=False)
        mode = "bicubic" if len(size) == 2 else "bilinear"
        return F.grid_sample(full, grid, mode=mode, padding_mode="border", align_corners=False)

    def ahead(self, first: int, workers: int) -> Generator[Batch]:
        """Batches from a step on without end, made by threads while the network works."""
        with ThreadPoolExecutor(workers) as pool:
            queue: deque[Future[Batch]] = deque()
            try:
                step = first
                while True:
                    while len(queue) <= workers:
                        queue.append(pool.submit(self.at, step))
                        step += 1
                    yield queue.popleft().result()
            finally:
                for waiting in queue:
                    waiting.cancel()


def crop_size(images: Images, settings: Settings) -> tuple[int, ...]:
    """Spatial size of what the network is trained on.

    Raises:
        UserError: larger than the images, or too small for the network's levels.
    """
    crop = settings.crop
    dimensions = len(images.spatial)
    size = images.spatial if crop is None else tuple(crop) if isinstance(crop, list) else (crop,) * dimensions
    if len(size) != dimensions or any(not 1 <= c <= s for c, s in zip(size, images.spatial, strict=True)):
        raise UserError(f"{images.where}: crop {crop} does not fit images of {images.spatial}")
    least = 2**settings.levels
    if min(size) < least:
        raise UserError(
            f"{images.where}: images of {size} are too small for {settings.levels} levels, which need {least}; set levels"
        )
    return size


def worker_count(device: torch.device) -> int:
    """Threads that make batches: one beside a CPU network, more beside a GPU, which outruns one."""
    return min(4, os.cpu_count() or 1) if device.type == "cuda" else 1


def held_out(
    images: Images, rows: Sequence[int], size: Sequence[int], prepare: Callable[[Tensor], Tensor], seed: int = 0
) -> Tensor:
    """Held-out images (N, C, *size) in network units: from each image one window, always the same.

    Args:
        images: where they are read.
        rows: which.
        size: of the window.
        prepare: from physical to network units.
        seed: of the windows' places.
    """
    picked = []
    for row in rows:
        places = np.random.default_rng((seed, 4, int(row))).random(len(size))
        starts = [int(p * (full - part + 1)) for p, full, part in zip(places, images.spatial, size, strict=True)]
        window = [slice(start, start + part) for start, part in zip(starts, size, strict=True)]
        picked.append(torch.from_numpy(images.read(row, window)))
    return prepare(torch.stack(picked))
