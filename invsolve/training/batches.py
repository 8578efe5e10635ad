"""Training batches, each number of which follows from (seed, step, row): order, crops, augmentation, noise, target."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.prior import per_row
from invsolve.contracts.scale import Scale
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.training.balance import draw_weights, epoch_order
from invsolve.training.data import Images
from invsolve.training.phases import DRAWS, smooth_phase, turn
from invsolve.training.settings import Settings

#: Least noise level of a prior and of its training; below, bf16 weights see nothing.
SIGMA_MIN = 0.005
# The second number of a chain's key: draws for different ends must not coincide.
_IMAGE, _NOISE, _REFERENCE, _OUTLIER, _TAIL = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class Batch:
    """What one step of training sees, network units, on the CPU unless the images are resident on a device.

    Attributes:
        noisy: (B, C, *size), image plus noise.
        sigma: (B,), the noise level.
        target: (B, C, *size), what the denoiser should say: the image, or the stable target.
        outlier: (B,), which images are noise instead; None where there are none.
    """

    noisy: Tensor
    sigma: Tensor
    target: Tensor
    outlier: Tensor | None = None


class Source(Protocol):
    """Where a training's batches come from; `mine` are the rows of a batch that this process makes."""

    mine: list[int]

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""

    def ahead(self, first: int, workers: int) -> Generator[Batch]:
        """Batches from a step on without end."""


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
        self.weights = draw_weights(images, rows, settings)
        self.warps = bool(settings.rotate or settings.zoom or settings.shift)
        if self.warps and dimensions == 1:
            raise UserError(f"{images.where}: rotate, zoom and shift are for two and three dimensions; leave them out")

    def image_at(self, position: int) -> int:
        """Index of the image at a position of the endless order: every epoch is drawn anew."""
        epoch, within = divmod(position, len(self.rows))
        order = self._orders.get(epoch)
        if order is None:
            order = epoch_order(len(self.rows), self.weights, np.random.default_rng((self.settings.seed, 2, epoch)))
            # A batch spans two epochs at most, but other threads may still be at the one before.
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 2} | {epoch: order}
        return int(self.rows[order[within]])

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        s = self.settings
        indices = [self.image_at(step * s.batch_size + row) for row in self.mine]
        clean = self._augmented(indices, self._random(step, _IMAGE, len(self.mine)))
        clean, outlier = self._with_outliers(clean, step)
        rng = self._random(step, _NOISE, len(self.mine))
        level = self._levels(clean, rng)
        sigma = (s.sigma_mean + s.sigma_std * level).exp().clamp(SIGMA_MIN / 2, s.sigma_max)
        noisy = clean + per_row(sigma * self._tail(clean, step), clean) * self._noise(clean, rng)
        target = self._stable(clean, noisy, sigma, step) if s.stable_target else clean
        return Batch(noisy, sigma, target, outlier)

    def _with_outliers(self, clean: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Some images replaced by white noise, a tenth to three times as strong as images, and which they are."""
        if not self.settings.outliers:
            return clean, None
        rng = self._random(step, _OUTLIER, len(self.mine))
        chosen = rng.uniform() < self.settings.outliers
        strength = (0.1 * 30 ** rng.uniform()).float()
        return torch.where(per_row(chosen, clean), per_row(strength, clean) * rng.normal(clean), clean), chosen

    def _tail(self, clean: Tensor, step: int) -> Tensor:
        """By what the noise of each image is stronger than sigma, (B,): 1, but for the t-distributed noise of PFGM++.

        Its kernel (|x - x0|^2 + r^2)^(-(N + D) / 2), r = sigma sqrt(D) (Xu 2023, eq. 5), is Student's with D degrees of freedom:
        Gaussian noise over the root of chi^2_D / D.
        """
        if self.settings.kind != "pfgm++":
            return clean.new_ones(len(clean))
        degrees = self.settings.augmented
        normal = self._random(step, _TAIL, len(self.mine)).normal(clean.new_zeros(len(clean), degrees))
        return (degrees / normal.square().sum(1)).sqrt()

    def _random(self, step: int, purpose: int, rows: int) -> ChainRandom:
        """Random numbers of a step for one purpose; those of the reference batch are not shared out over processes."""
        mine = range(rows) if purpose == _REFERENCE else self.mine
        return ChainRandom(self.settings.seed, [(row, purpose) for row in mine]).at(step)

    def _levels(self, clean: Tensor, rng: ChainRandom) -> Tensor:
        """Standard normal numbers (B,), from which the noise levels follow."""
        return rng.normal(clean.new_zeros(len(clean), 1))[:, 0]

    def _full(self, indices: Sequence[int]) -> Tensor:
        """Whole images (B, C, *spatial) in physical units."""
        return torch.stack([torch.from_numpy(self.images.read(i)) for i in indices])

    def _cut(self, indices: Sequence[int], place: Tensor) -> Tensor:
        """Windows (B, C, *size) of the images at places between 0 and 1 along each axis."""
        return torch.stack(
            [torch.from_numpy(self.images.read(i, self._window(at))) for i, at in zip(indices, place, strict=True)]
        )

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
        others = self._augmented(indices, self._random(step, _REFERENCE, count))
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
        angle = rng.normal(place.new_zeros(len(indices), 1, dtype=torch.float32))[:, 0]
        magnify, bright = rng.uniform(), rng.uniform()
        if self.warps:
            shift = torch.stack([rng.uniform() for _ in range(3)], 1)
            plain = rng.uniform() >= self.settings.warped
            clean = self._warped(self._full(indices), place, angle, magnify, shift, plain)
        else:
            clean = self._cut(indices, place)
        for axis in self.flips:
            clean = torch.where(per_row(mirror[:, axis], clean), clean.flip(2 + axis), clean)
        if self.settings.gain:
            strength = torch.where(bright < 0.5, 1 + self.settings.gain * (4 * bright - 1), 1.0).float()
            zero = 0.0 if low <= 0 < high else low
            clean = zero + (clean - zero) * per_row(strength, clean)
        if self.settings.phase:
            numbers = torch.stack([rng.uniform() for _ in range(DRAWS)], 1)
            clean = turn(clean, smooth_phase(numbers, self.size, self.settings.phase))
        if self.settings.clip:
            clean = clean.clamp(low, high)
        return self.scale.to_network(clean)

    def _window(self, place: Tensor) -> list[slice]:
        starts = [
            int(p * (full - size + 1))
            for p, full, size in zip(place.tolist(), self.images.spatial, self.size, strict=False)
        ]
        return [slice(start, start + size) for start, size in zip(starts, self.size, strict=True)]

    def _warped(
        self, full: Tensor, place: Tensor, angle: Tensor, magnify: Tensor, shift: Tensor, plain: Tensor
    ) -> Tensor:
        """Rotation in the last two axes, magnification, shift and crop in one resampling; edges are continued outwards.

        Images that are `plain` (B,) are only moved by whole pixels, which changes none of their values.
        """
        size, spatial = self.size, full.shape[2:]
        # Normalised coordinates run over (x, y, z), the last axis first.
        window = [s / f for s, f in zip(reversed(size), reversed(spatial), strict=True)]
        zoom = ((2 * magnify - 1) * math.log1p(self.settings.zoom)).exp().float()
        zoom = torch.where(plain, 1.0, zoom)
        angle = torch.where(plain, 0.0, angle * math.radians(self.settings.rotate))
        aspect = size[-1] / spatial[-2], size[-2] / spatial[-1]
        matrix = torch.zeros(len(full), len(size), len(size) + 1, device=full.device)
        matrix[:, 0, 0], matrix[:, 0, 1] = zoom * angle.cos() * window[0], -zoom * angle.sin() * aspect[1]
        matrix[:, 1, 0], matrix[:, 1, 1] = zoom * angle.sin() * aspect[0], zoom * angle.cos() * window[1]
        if len(size) == 3:
            matrix[:, 2, 2] = zoom * window[2]
        for axis, (length, part) in enumerate(zip(reversed(spatial), reversed(size), strict=True)):
            room = (length - part * zoom).clamp(min=0)
            start = place[:, axis].float() * room
            move = (2 * shift[:, axis].float() - 1) * self.settings.shift
            start = torch.where(plain, (start.round() + move.round()), start + move)
            matrix[:, axis, -1] = (2 * start - room) / length
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
