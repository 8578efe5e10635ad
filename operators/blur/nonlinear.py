"""Nonlinear blur: a camera blurs light and stores display values, or any network blurs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from invsolve.contracts.arguments import is_image
from invsolve.contracts.operator import Operator
from invsolve.errors import UserError
from invsolve.operators.blur.uniform import Blur


def to_light(v: Tensor) -> Tensor:
    """Light of display values from 0 to 1, by the curve of sRGB (IEC 61966-2-1), which is a line below 0.04."""
    return torch.where(v <= 0.04045, v / 12.92, ((v.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def to_display(light: Tensor) -> Tensor:
    """The inverse of `to_light`."""
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


class NonlinearBlur(Operator):
    """A camera's blur: of light, stored as display values; or any network. Not linear.

    y = display(k * light(x)), with the curves of sRGB and k as of `blur`; or y = network(x), which may change the shape.
    x (B, C, rows, columns), display values with white at 1.

    Args:
        sigma: standard deviation of the Gaussian k in pixels.
        kernel: instead, a point-spread function (rows, columns). A kernel for each item is (items, rows, columns).
        network: instead, any `torch.nn.Module` from images to measurements, (B, C, rows, columns) -> (B, ...); from Python only.

    Raises:
        UserError: not exactly one of the three.
    """

    name = "nonlinear-blur"
    item_axes: ClassVar[Mapping[str, int]] = {"kernel": 2}
    examples = (
        {"sigma": 0.8},
        {"kernel": [[0.2, 0.5, 0.3]]},
        {"network": nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Softplus(), nn.AvgPool2d(2))},
    )

    def __init__(
        self, sigma: float | None = None, kernel: Tensor | None = None, network: nn.Module | None = None
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (sigma, kernel, network)) != 1:
            raise UserError("operator 'nonlinear-blur' needs exactly one of sigma=, kernel= and network=")
        self.blur = None if network is not None else Blur(kernel, sigma)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        is_image(x, "operator 'nonlinear-blur'")
        if self.network is not None:
            return self.network(x)
        assert self.blur is not None
        return to_display(self.blur(to_light(x)))
