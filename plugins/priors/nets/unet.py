"""A small U-Net for one- and three-dimensional images, called as the `diffusers` one is for two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class _Block(nn.Module):
    """Residual block: two convolutions, the noise label as scale and shift between them (Dhariwal 2021)."""

    def __init__(self, conv: Any, inside: int, out: int, label: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(math.gcd(groups, inside), inside)
        self.conv1 = conv(inside, out, 3, padding=1)
        self.label = nn.Linear(label, 2 * out)
        self.norm2 = nn.GroupNorm(math.gcd(groups, out), out, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out, out, 3, padding=1)
        self.skip = conv(inside, out, 1) if inside != out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.label(label)[(..., *(None,) * (x.ndim - 2))].chunk(2, 1)
        hidden = F.silu(hidden * (1 + scale) + shift)
        return self.skip(x) + self.conv2(self.dropout(hidden))


class UNet(nn.Module):
    """A U-Net of residual blocks without attention, so that it takes images of any size that its levels divide.

    Args:
        dimensions: of space, 1 to 3.
        in_channels, out_channels: of the image.
        block_out_channels: width of each level, finest first; each level halves the size.
        layers_per_block: residual blocks a level on the way down; one more on the way up.
        norm_num_groups: groups of the normalisation.
        dropout: probability, in training.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        conv, widths = _CONVOLUTIONS[dimensions], list(block_out_channels)
        first, label = widths[0], 4 * widths[0]
        self.first = first
        self.embed = nn.Sequential(nn.Linear(first, label), nn.SiLU(), nn.Linear(label, label), nn.SiLU())
        self.enter = conv(in_channels, first, 3, padding=1)

        def block(inside: int, out: int) -> _Block:
            return _Block(conv, inside, out, label, norm_num_groups, dropout)

        kept, width = [first], first
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for k, wide in enumerate(widths):
            blocks = nn.ModuleList()
            for _ in range(layers_per_block):
                blocks.append(block(width, wide))
                width = wide
                kept.append(width)
            self.down.append(blocks)
            if k + 1 < len(widths):
                self.shrink.append(conv(width, width, 3, stride=2, padding=1))
                kept.append(width)
        self.middle = nn.ModuleList([block(width, width), block(width, width)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for k, wide in enumerate(reversed(widths)):
            blocks = nn.ModuleList()
            for _ in range(layers_per_block + 1):
                blocks.append(block(width + kept.pop(), wide))
                width = wide
            self.up.append(blocks)
            if k + 1 < len(widths):
                self.grow.append(conv(width, width, 3, padding=1))
        self.leave_norm = nn.GroupNorm(math.gcd(norm_num_groups, width), width)
        self.leave = conv(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """x (B, C, *spatial), label (B,) on the scale of a DDPM timestep; (estimate,), as diffusers returns it."""
        half = self.first // 2
        rates = torch.exp(-math.log(1e4) * torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angles = label.float()[:, None] * rates
        embedded = self.embed(torch.cat([angles.cos(), angles.sin()], 1))
        hidden = self.enter(x)
        kept = [hidden]
        for k, blocks in enumerate(self.down):
            for one in cast(nn.ModuleList, blocks):
                hidden = one(hidden, embedded)
                kept.append(hidden)
            if k < len(self.shrink):
                hidden = self.shrink[k](hidden)
                kept.append(hidden)
        for one in self.middle:
            hidden = one(hidden, embedded)
        for k, blocks in enumerate(self.up):
            for one in cast(nn.ModuleList, blocks):
                hidden = one(torch.cat([hidden, kept.pop()], 1), embedded)
            if k < len(self.grow):
                hidden = self.grow[k](F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return (self.leave(F.silu(self.leave_norm(hidden))),)
