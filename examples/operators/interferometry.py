"""Radio interferometry as a plugin: visibilities of a sky, and closure phases, which know no phase errors of the antennas.

invsolve simulate sky.h5 -o scan.h5 --operator visibilities --plugin interferometry.py --noise gaussian:0.01
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from invsolve import LinearOperator, Operator, UserError, hookimpl


def stations(antennas: int) -> Tensor:
    """A Y-shaped array, arms of geometrically growing length, the longest 1; (antennas, 2), east and north."""
    k = torch.arange(antennas)
    radius = 1.6 ** (k // 3 - (antennas - 1) // 3).double()
    angle = 2 * math.pi * (k % 3) / 3 + 0.3
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)


class Sky:
    """What both operators share: which spatial frequencies the pairs of antennas see as the earth turns."""

    def __init__(self, image_size: int, antennas: int, hours: int) -> None:
        if image_size < 2 or antennas < 3 or hours < 1:
            raise UserError(
                f"interferometer: needs images of 2 pixels a side, 3 antennas and 1 hour at least, got {image_size}, "
                f"{antennas} and {hours}"
            )
        places = stations(antennas)
        turns = 2 * math.pi * torch.arange(hours, dtype=torch.float64) / 24
        turned = torch.stack(
            [
                places[:, :1] * turns.cos() - places[:, 1:] * turns.sin(),
                places[:, :1] * turns.sin() + places[:, 1:] * turns.cos(),
            ],
            -1,
        )  # (antennas, hours, 2)
        pairs = torch.tensor(list(itertools.combinations(range(antennas), 2)))
        # The longest baseline sees half a cycle per pixel along its own direction at most.
        scale = 0.5 / (turned[pairs[:, 0]] - turned[pairs[:, 1]]).abs().max()
        self.frequencies = scale * (turned[pairs[:, 0]] - turned[pairs[:, 1]])  # (pairs, hours, 2), cycles per pixel
        self.pairs = {(int(a), int(b)): k for k, (a, b) in enumerate(pairs)}
        self.size, self.antennas = image_size, antennas

    def waves(self, axis: int) -> Tensor:
        """exp(-2 pi i frequency position) along an axis of the image, (pairs, hours, pixels)."""
        position = torch.arange(self.size, dtype=torch.float64) - self.size // 2
        phase = -2 * math.pi * self.frequencies[..., axis, None] * position
        return torch.polar(torch.ones_like(phase), phase)


class Visibilities(LinearOperator):
    """Visibilities of a small patch of sky: y[pair, hour] = sum over pixels of x exp(-2 pi i (u l + v m)) / image_size.

    x (B, 1, image_size, image_size), brightness, l to the right and m down from the middle; y (B, pairs, hours) complex
    (Thompson, Moran & Swenson). Linear; the adjoint is autograd's.

    Args:
        image_size: rows and columns.
        antennas: of a Y-shaped array.
        hours: of observation of a source at the pole, one snapshot each.
    """

    name = "visibilities"
    examples = ({"image_size": 8, "antennas": 4, "hours": 3},)

    def __init__(self, image_size: int = 64, antennas: int = 9, hours: int = 12) -> None:
        sky = Sky(image_size, antennas, hours)
        self.image_shape = (1, image_size, image_size)
        self.along, self.down = sky.waves(0), sky.waves(1)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(x.dtype.to_complex())[:, 0]
        columns = torch.einsum("pti,bij->bptj", self.down.to(wide), wide)
        return (columns * self.along.to(wide)).sum(-1) / x.shape[-1]


class ClosurePhases(Operator):
    """Closure phases: those of V_12 V_23 V_31 for triangles of antennas, in which errors of the antennas cancel (Jennison 1958).

    y[triangle, hour] = b / |b|, b the product: a number of modulus 1, as phases themselves jump. x as of `visibilities`, y
    (B, triangles, hours) complex. Not linear; blind to the place and the brightness of the source.

    Args:
        image_size: rows and columns.
        antennas: of a Y-shaped array.
        hours: of observation of a source at the pole, one snapshot each.
    """

    name = "closure-phases"
    examples = ({"image_size": 8, "antennas": 4, "hours": 3},)

    def __init__(self, image_size: int = 64, antennas: int = 9, hours: int = 12) -> None:
        sky = Sky(image_size, antennas, hours)
        self.visibilities = Visibilities(image_size, antennas, hours)
        self.image_shape = self.visibilities.image_shape
        # Triangles of the first antenna tell all others.
        corners = [(0, a, b) for a, b in itertools.combinations(range(1, antennas), 2)]
        self.sides = torch.tensor([[sky.pairs[a, b], sky.pairs[b, c], sky.pairs[a, c]] for a, b, c in corners])

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.visibilities(x)[:, self.sides].unbind(2)
        product = first * second * third.conj()
        return product / product.abs().clamp_min(torch.finfo(x.dtype).tiny)


@hookimpl
def invsolve_operators() -> dict[str, type]:
    return {"visibilities": Visibilities, "closure-phases": ClosurePhases}
