"""Images known by their patches and by where these lie: the positions, the padding, and the partition at each noise level."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invsolve.errors import UserError

#: D of patches: (patches and positions (N, C + 2, side, side), sigma (N,)) -> (N, C, side, side).
DenoisePatches = Callable[[Tensor, Tensor], Tensor]
#: Channels that tell a network where a patch lies.
POSITIONS = 2
#: Pixels of patches that are in the network at once.
_AT_ONCE = 16 * 128**2
#: Longest side of an image, and most of a patch, that a header may ask for.
_LONGEST = 8192


@dataclass(frozen=True)
class Patches:
    """How images of one size are cut into patches (PaDIS; Hu et al., NeurIPS 2024, section 3).

    An image is surrounded by as many pixels as make it a whole number of patches along each axis with one to spare, and the
    grid of patches begins anywhere within the surroundings. The density that is modelled is the product over the patches of
    a grid, averaged over the grids; D takes one grid at each noise level, which follows from the level alone: a result
    depends neither on the batch nor on the order of the calls. The paper's surroundings carry noise, of which D is zero;
    here they are the number `outside`, without noise, so that D is a function of the image.

    Args:
        side: of a patch, pixels.
        size: (rows, columns) of the images.
        outside: value of the surroundings, network units.

    Raises:
        UserError: a side that is no whole number from 4 on, or larger than the image; a size that no image has.
    """

    side: int
    size: tuple[int, int]
    outside: float = -1.0

    def __post_init__(self) -> None:
        whole = [self.side, *self.size]
        if len(whole) != 3 or not all(type(length) is int and 4 <= length <= _LONGEST for length in whole):
            raise UserError(
                f"patches have a side and images a size of 4 to {_LONGEST} pixels, got {self.side}, {self.size}"
            )
        if self.side > min(self.size):
            raise UserError(f"a patch of {self.side} pixels is larger than images of {self.size}; give a smaller one")

    @classmethod
    def from_record(cls, record: Any, where: str) -> Patches:
        """What `record` gave.

        Raises:
            UserError: it is none; names `where`.
        """
        try:
            rows, columns = record["size"]
            return cls(record["side"], (rows, columns), float(record["outside"]))
        except (KeyError, TypeError, ValueError, UserError) as error:
            reason = str(error) if isinstance(error, UserError) else "side, size [rows, columns] and outside are needed"
            raise UserError(f"{where}: patch: {reason}; write the header again") from None

    def record(self) -> Mapping[str, Any]:
        """For a header."""
        return {"side": self.side, "size": list(self.size), "outside": self.outside}

    @property
    def margins(self) -> tuple[int, int]:
        """Pixels around the image along each axis, 1 to `side`."""
        rows, columns = (self.side - length % self.side for length in self.size)
        return rows, columns

    def surrounded(self, x: Tensor) -> Tensor:
        """Images (B, C, *size) with what lies around them, (B, C, rows + 2 margin, columns + 2 margin)."""
        rows, columns = self.margins
        return F.pad(x, (columns, columns, rows, rows), value=self.outside)

    def positions(self, like: Tensor) -> Tensor:
        """Column and row of each pixel of the surrounded image, -1 to 1, (2, rows, columns), on the device of `like`."""
        lengths = [length + 2 * margin for length, margin in zip(self.size, self.margins, strict=True)]
        rows, columns = (torch.linspace(-1, 1, length, dtype=like.dtype, device=like.device) for length in lengths)
        return torch.stack([columns.expand(lengths), rows[:, None].expand(lengths)])

    def corners(self, sigma: float) -> Iterator[tuple[int, int]]:
        """Upper left corners of the patches at a noise level, in the surrounded image; together they cover the image."""
        grids = []
        for length, margin, share in zip(self.size, self.margins, shifts(sigma), strict=True):
            first = int(share * margin)
            grids.append(range(first, first + length + margin, self.side))
        return ((row, column) for row in grids[0] for column in grids[1])

    def denoise(self, denoise_patches: DenoisePatches, x: Tensor, sigma: Tensor) -> Tensor:
        """D of images (B, C, *size) at sigma (B,), patch by patch; rows of one level share a grid."""
        levels = sigma.expand(len(x))
        numbers = levels.tolist()
        if len(set(numbers)) == 1:
            return self._at(denoise_patches, x, levels, numbers[0])
        return torch.cat(
            [self._at(denoise_patches, x[k : k + 1], levels[k : k + 1], number) for k, number in enumerate(numbers)]
        )

    def _at(self, denoise_patches: DenoisePatches, x: Tensor, levels: Tensor, sigma: float) -> Tensor:
        side, (top, left) = self.side, self.margins
        around, place = self.surrounded(x), self.positions(x)
        corners = list(self.corners(sigma))
        together = max(1, _AT_ONCE // (side**2 * len(x)))
        made = around.clone()
        for first in range(0, len(corners), together):
            some = [(slice(r, r + side), slice(c, c + side)) for r, c in corners[first : first + together]]
            patches = torch.cat([cut(around, place, rows, columns) for rows, columns in some])
            denoised = _sparing(denoise_patches, patches, levels.repeat(len(some)))
            for part, (rows, columns) in zip(denoised.split(len(x)), some, strict=True):
                made[..., rows, columns] = part
        return made[..., top : top + self.size[0], left : left + self.size[1]]


def cut(images: Tensor, positions: Tensor, rows: slice, columns: slice) -> Tensor:
    """A patch of each surrounded image with its positions, (B, C + 2, side, side)."""
    patch = images[..., rows, columns]
    return torch.cat([patch, positions[..., rows, columns].expand(len(images), -1, -1, -1)], 1)


def shifts(sigma: float) -> tuple[float, float]:
    """Two numbers in [0, 1) that follow from the noise level alone, to single precision."""
    digest = hashlib.sha256(struct.pack("<f", sigma)).digest()
    return digest[0] / 256, digest[1] / 256


def _sparing(denoise_patches: DenoisePatches, patches: Tensor, sigma: Tensor) -> Tensor:
    """D of patches; what it would keep for its gradient is computed again when that is asked for."""
    if not (torch.is_grad_enabled() and patches.requires_grad):
        return denoise_patches(patches, sigma)
    denoised: Tensor = checkpoint(denoise_patches, patches, sigma, use_reentrant=False, preserve_rng_state=False)
    return denoised
