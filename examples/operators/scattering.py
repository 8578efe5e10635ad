"""Linear inverse scattering as a plugin: waves that an object scatters once, from a ring of sources to a ring of receivers."""

from __future__ import annotations

import math

import scipy.special
import torch
from torch import Tensor

from invsolve import LinearOperator, UserError, hookimpl


def ring(count: int, radius: float) -> Tensor:
    """Points on a circle, (count, 2), float64."""
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    return radius * torch.stack([angle.cos(), angle.sin()], -1)


def green(places: Tensor, pixels: Tensor, wavenumber: float) -> Tensor:
    """Outgoing waves of points in the plane, i/4 H0(k r), between (n, 2) and (m, 2): (n, m), complex128."""
    distance = torch.cdist(places, pixels)
    return 0.25j * torch.from_numpy(scipy.special.hankel1(0, wavenumber * distance.numpy()))


class Scattering(LinearOperator):
    """Waves scattered once (first Born approximation) by an object in the plane.

    y[s, r] = k^2 h^2 sum over pixels of G(receiver, pixel) x G(pixel, source), G = i/4 H0(k r) (Colton & Kress). x (B, 1,
    image_size, image_size), contrast n^2 - 1 of a square of side 1; y (B, sources, receivers) complex. The adjoint is autograd's.

    Args:
        image_size: rows and columns.
        sources: on a circle around the square.
        receivers: on the same circle.
        wavelengths: across the square.
        radius: of the circle, in sides of the square, above 0.71.

    Raises:
        UserError: a circle that meets the square, or nothing to measure.
    """

    name = "scattering"
    examples = ({"image_size": 6, "sources": 3, "receivers": 5, "wavelengths": 2.0},)

    def __init__(
        self,
        image_size: int = 64,
        sources: int = 20,
        receivers: int = 60,
        wavelengths: float = 8.0,
        radius: float = 1.6,
    ) -> None:
        if not radius > 0.5**0.5:
            raise UserError(
                f"operator 'scattering': radius must be above 0.71, so that the circle misses the square, got {radius}"
            )
        if min(image_size, sources, receivers) < 1 or not wavelengths > 0:
            raise UserError("operator 'scattering': image_size, sources, receivers and wavelengths must be above 0")
        middle = (torch.arange(image_size, dtype=torch.float64) + 0.5) / image_size - 0.5
        pixels = torch.cartesian_prod(-middle, middle).flip(-1)  # x to the right, y up
        k = 2 * math.pi * wavelengths
        self.image_shape = (1, image_size, image_size)
        self.incoming = (k / image_size) ** 2 * green(ring(sources, radius), pixels, k)
        self.outgoing = green(ring(receivers, radius), pixels, k)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(x.dtype.to_complex()).flatten(1)
        return (wide[:, None] * self.incoming.to(wide)) @ self.outgoing.to(wide).T


@hookimpl
def invsolve_operators() -> dict[str, type]:
    return {"scattering": Scattering}
