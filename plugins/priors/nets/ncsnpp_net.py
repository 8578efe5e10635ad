"""NCSN++ and DDPM++ (Song 2021), as the numbered list of layers that score_sde checkpoints hold (`all_modules.N`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invsolve.errors import UserError

_HALF = math.sqrt(0.5)


def square(taps: Tensor, x: Tensor) -> Tensor:
    """The filter over rows and columns, of sum 1, for each channel of x, (C, 1, len, len)."""
    return (taps[:, None] * taps[None] / taps.sum() ** 2).to(x).expand(x.shape[1], 1, -1, -1)


def fir(x: Tensor, taps: Tensor, up: bool) -> Tensor:
    """Twice or half the size of x (B, C, rows, columns) through the separable filter `taps` (even length), zeros outside."""
    kernel, channels, pad = square(taps, x), x.shape[1], (len(taps) - 1) // 2
    if up:
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=channels)
    return F.conv2d(x, kernel, stride=2, padding=pad, groups=channels)


class Resize(nn.Module):
    """Twice or half the size: by the FIR filter, or else by repetition and 2 x 2 means. No weights."""

    taps: Tensor | None

    def __init__(self, up: bool, taps: Sequence[float] | None) -> None:
        super().__init__()
        self.up = up
        self.register_buffer("taps", None if taps is None else torch.tensor(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.taps is not None:
            return fir(x, self.taps, self.up)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.avg_pool2d(x, 2)


class FilteredDown(nn.Module):
    """Half the size by the FIR filter, then a convolution with every second output (`Conv2d_0` in the file)."""

    taps: Tensor

    def __init__(self, channels: int, out_channels: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(channels, out_channels, 3)
        self.register_buffer("taps", torch.tensor(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        pad = len(self.taps)
        kernel = square(self.taps, x)
        smooth = F.conv2d(F.pad(x, ((pad + 1) // 2, pad // 2) * 2), kernel, groups=x.shape[1])
        return F.conv2d(smooth, self.Conv2d_0.weight, self.Conv2d_0.bias, stride=2)


class StridedDown(nn.Module):
    """Half the size as in DDPM: one row and column of zeros at the end, then a convolution or 2 x 2 means."""

    def __init__(self, channels: int, convolved: bool) -> None:
        super().__init__()
        if convolved:
            self.Conv_0 = nn.Conv2d(channels, channels, 3, stride=2)
        self.convolved = convolved

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))
        return self.Conv_0(x) if self.convolved else F.avg_pool2d(x, 2)


class RepeatedUp(nn.Module):
    """Twice the size as in DDPM: repetition, then a convolution or nothing."""

    def __init__(self, channels: int, convolved: bool) -> None:
        super().__init__()
        self.Conv_0: nn.Module = nn.Conv2d(channels, channels, 3, padding=1) if convolved else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv_0(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class PixelDense(nn.Module):
    """A dense layer at each pixel, with its weight as (in, out)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.zeros(channels, out_channels))
        self.b = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W.T[:, :, None, None], self.b)


class Frequencies(nn.Module):
    """Sines and cosines of 2 pi W log(sigma), W drawn once before training."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.zeros(count), requires_grad=False)

    def forward(self, log_sigma: Tensor) -> Tensor:
        # In single precision whatever the weights' is: the angles reach hundreds.
        angle = log_sigma.float()[:, None] * self.W.float() * (2 * math.pi)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class PixelAttention(nn.Module):
    """Self-attention over all pixels, one head."""

    def __init__(self, channels: int, groups: int | None, rescale: bool) -> None:
        super().__init__()
        self.GroupNorm_0 = nn.GroupNorm(groups or min(channels // 4, 32), channels, eps=1e-6)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (PixelDense(channels, channels) for _ in range(4))
        self.factor = _HALF if rescale else 1.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (layer(h).flatten(2).mT for layer in (self.NIN_0, self.NIN_1, self.NIN_2))
        mixed = F.scaled_dot_product_attention(q, k, v).mT.unflatten(2, x.shape[2:])
        return (x + self.NIN_3(mixed)) * self.factor


class Block(nn.Module):
    """Two convolutions about the noise level's embedding, with a shortcut; may change the size (BigGAN's way).

    Args:
        channels, out_channels: of input and output.
        told: width of the embedding, 0 for none.
        groups: of the normalisations; None for min(channels / 4, 32).
        rescale: divide the sum with the shortcut by sqrt(2).
        biggan: the shortcut is a convolution `Conv_2`; else a dense layer `NIN_0`.
        resize: a `Resize` before the first convolution and in the shortcut.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        told: int,
        groups: int | None,
        rescale: bool,
        biggan: bool,
        resize: Resize | None = None,
    ) -> None:
        super().__init__()
        self.GroupNorm_0 = nn.GroupNorm(groups or min(channels // 4, 32), channels, eps=1e-6)
        self.Conv_0 = nn.Conv2d(channels, out_channels, 3, padding=1)
        if told:
            self.Dense_0 = nn.Linear(told, out_channels)
        self.GroupNorm_1 = nn.GroupNorm(groups or min(out_channels // 4, 32), out_channels, eps=1e-6)
        self.Conv_1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = ""
        if channels != out_channels or resize is not None:
            self.shortcut = "Conv_2" if biggan else "NIN_0"
            layer = nn.Conv2d(channels, out_channels, 1) if biggan else PixelDense(channels, out_channels)
            self.add_module(self.shortcut, layer)
        self.told, self.resize, self.factor = told, resize or nn.Identity(), _HALF if rescale else 1.0

    def forward(self, x: Tensor, told: Tensor | None) -> Tensor:
        h = self.Conv_0(self.resize(F.silu(self.GroupNorm_0(x))))
        if self.told and told is not None:
            h = h + self.Dense_0(F.silu(told))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        x = self.resize(x)
        return ((getattr(self, self.shortcut)(x) if self.shortcut else x) + h) * self.factor


class Merge(nn.Module):
    """The shrunk input, through a 1 x 1 convolution, added to the features or put beside them."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv_0(x)


def option(model: dict[str, Any], name: str, known: Sequence[Any], default: Any) -> Any:
    """A setting of the configuration, one of those that are built here.

    Raises:
        UserError: it is another.
    """
    value = model.get(name, default)
    value = value.lower() if isinstance(value, str) else value
    if value not in known:
        raise UserError(f"model.{name} = {value!r} is not read; known: {', '.join(map(repr, known))}")
    return value
