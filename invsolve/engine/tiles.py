"""Large images: a prior's network sees overlapping tiles, blended smoothly, so that memory does not grow with the image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invsolve.contracts.prior import Prior
from invsolve.engine.volume import PriorInChunks
from invsolve.errors import UserError
from invsolve.networks.patches import shifts

#: Tiles begin at multiples of this where they can: a network that halves the image then halves it as it does the whole.
_GRID = 16
#: Longest side of an image that goes through the network whole, and the side of the tiles of larger ones.
WHOLE, SIDE = 512, 256


class Tiled(PriorInChunks):
    """A prior of 2-D images of any size that denoises larger ones in overlapping tiles.

    A quarter of a tile overlaps the next. Its outermost sixteenth, where the network does not see far enough, is not used but
    at the image's own border; between, the tiles are blended by squared cosines. The grid of tiles is shifted at each noise
    level, by an amount that follows from the noise level alone: no seam stays in one place through a run, and a result
    depends neither on the batch nor on the order of the tiles.

    Args:
        inner: the prior, with free sizes.
        side: of a tile, in pixels.
        above: images go through whole where no side is longer than this.
        rows: how many tiles go through the network at once.
        device: where.
    """

    def __init__(self, inner: Prior, side: int, above: int, rows: int, device: torch.device) -> None:
        super().__init__(inner, rows, device)
        self.side, self.above = side, above
        self.passes = inner.passes

    def passes_at(self, image_shape: Sequence[int], sigma: float) -> int:
        whole = max(image_shape[1:]) <= self.above
        sides = image_shape[1:] if whole else [min(self.side, length) for length in image_shape[1:]]
        return self.inner.passes_at((image_shape[0], *sides), sigma)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        if max(x.shape[2:]) <= self.above:
            return self.inner.denoise(x, sigma)
        levels = sigma.expand(len(x))
        return torch.cat([self._one(x[row : row + 1], levels[row : row + 1]) for row in range(len(x))])

    def _one(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D of one image (1, C, rows, columns)."""
        shape = x.shape[2:]
        first, second = shifts(float(sigma))
        places = list(itertools.product(starts(shape[0], self.side, first), starts(shape[1], self.side, second)))
        sides = [min(self.side, length) for length in shape]
        blended, total = torch.zeros_like(x), x.new_zeros(shape)
        for some in _groups(places, self.rows):
            tiles = torch.cat([x[..., r : r + sides[0], c : c + sides[1]] for r, c in some])
            denoised = self._tiles(tiles, sigma.expand(len(some)))
            for tile, place in zip(denoised, some, strict=True):
                weights = [weight(*each).to(x) for each in zip(place, sides, shape, strict=True)]
                window = weights[0][:, None] * weights[1]
                inside = (..., slice(place[0], place[0] + sides[0]), slice(place[1], place[1] + sides[1]))
                blended[inside] += window * tile
                total[inside] += window
        return blended / total

    def _tiles(self, tiles: Tensor, sigma: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and tiles.requires_grad):
            return super().denoise(tiles, sigma)
        # What the network would keep for its gradient is computed again when that is asked for, tile by tile.
        denoised: Tensor = checkpoint(super().denoise, tiles, sigma, use_reentrant=False, preserve_rng_state=False)
        return denoised


def tiled(prior: Prior, side: int | None, rows: int, device: torch.device) -> Prior:
    """The prior, or `Tiled` of it where larger images can go through it in parts.

    Args:
        side: of the tiles; None chooses for images longer than 512, 0 takes every image whole.
        rows: images of 128 x 128 that may be in the network at once; of tiles, half as many pixels, but one tile at least.

    Raises:
        UserError: tiles are asked for, and the prior does not know images by their parts.
    """
    possible = prior.tileable and len(prior.event_shape) == 3 and prior.event_shape[1:] == (None, None)
    if side == 0 or (side is None and not possible):
        return prior
    if not possible:
        raise UserError(
            f"tile: prior {prior.name or type(prior).__name__!r} takes images whole only; leave the option out"
        )
    if side is None:
        return Tiled(prior, SIDE, WHOLE, _at_once(SIDE, rows), device)
    if side < 16:
        raise UserError(f"tile must be 16 pixels or more, or 0 for none, got {side}")
    return Tiled(prior, side, side, _at_once(side, rows), device)


def _at_once(side: int, rows: int) -> int:
    return max(rows * 128**2 // (2 * side**2), 1)


def starts(length: int, side: int, shift: float) -> list[int]:
    """Where the tiles along an axis begin: a grid with a quarter overlapping, shifted by a part of its step, inside the image."""
    last = max(length - side, 0)
    step = max((side - side // 4) // _GRID, 1) * _GRID
    first = int(shift * step / _GRID) * _GRID - step
    return sorted({min(max(place, 0), last) for place in range(first, length, step)} | {last})


def weight(start: int, side: int, length: int) -> Tensor:
    """Weight of each pixel of a tile along an axis, (side,): squared cosines to both neighbours, one at the image's border."""
    overlap, margin = side // 4, side // 16
    place = torch.arange(side, dtype=torch.float64) + 0.5
    inwards = torch.full_like(place, side)
    if start > 0:
        inwards = torch.minimum(inwards, place)
    if start + side < length:
        inwards = torch.minimum(inwards, side - place)
    rise = ((inwards - margin) / (overlap - 2 * margin)).clamp(0, 1)
    return (torch.pi / 2 * rise).sin() ** 2


def _groups(places: Sequence[tuple[int, int]], rows: int) -> Iterator[Sequence[tuple[int, int]]]:
    return (places[k : k + rows] for k in range(0, len(places), rows))
