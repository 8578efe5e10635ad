"""A residual U-Net without norms on the 2 x 2 pixel-unshuffled image: three times faster on a CPU than one with group norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Slowest and fastest change of the noise features, radians a unit of the label (250 to one e-fold of the noise level).
_SLOW, _FAST = 5e-4, 5e-2


class _Block(nn.Module):
    """x + conv(silu(scale * conv(x) + shift)): one activation, scale and shift from the noise level.

    The second convolution begins small but not at zero: zeros cost the first hundred steps of a short training.
    """

    def __init__(self, width: int, label: int, dropout: float) -> None:
        super().__init__()
        #: Largest root mean square of a pixel's features that is let in; a pixel with more is scaled down to it.
        self.limit: float | None = None
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.label = nn.Linear(label, 2 * width)
        self.dropout = dropout
        _he(self.conv1, 1.0)
        _he(self.conv2, 0.4)
        nn.init.normal_(self.label.weight, std=0.2 / math.sqrt(label))
        nn.init.zeros_(self.label.bias)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if self.limit is not None:
            # Nothing inside keeps numbers in bounds: far from the images of the training they would grow from block to block.
            power = x.square().mean(1, keepdim=True).clamp(min=self.limit**2)
            x = x * (self.limit * power.rsqrt())
        scale, shift = self.label(label)[:, :, None, None].chunk(2, 1)
        hidden = F.silu(self.conv1(x) * (1 + scale) + shift)
        if self.training and self.dropout:
            # Whole channels: neighbouring pixels of a feature are too alike for single zeros to matter.
            hidden = F.dropout2d(hidden, self.dropout)
        return x + self.conv2(hidden)


class FastUNet(nn.Module):
    """A fully convolutional U-Net of residual blocks for 2-D images, of any size that `2 ** len(block_out_channels)` divides.

    The image is folded to half its size with four times the channels, so that no block works at full resolution; skips
    are added, not concatenated; nothing is normalised.

    Args:
        in_channels, out_channels: of the image.
        block_out_channels: width of each level, finest first; the finest works at half the image's size.
        layers_per_block: residual blocks a level on the way down, and as many on the way up; the lowest level has one more.
        dropout: probability that a feature of a block is left out, in training.
        limits: of each block in the order of the computation, the root mean square of a pixel's features beyond which they
            are scaled down: the largest that images have, with a margin; None for no limits.
        largest: bound of the estimate's absolute values, found in the same way; None for none.
    """

    rates: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_out_channels: Sequence[int],
        layers_per_block: int = 2,
        dropout: float = 0.0,
        limits: Sequence[float] | None = None,
        largest: float | None = None,
    ) -> None:
        super().__init__()
        widths = list(block_out_channels)
        first, label = widths[0], 2 * widths[0]
        rates = torch.logspace(math.log10(_FAST), math.log10(_SLOW), first // 2)
        # Follows from the width; in the file it would be one more thing that might not fit.
        self.register_buffer("rates", rates, persistent=False)
        self.embed = nn.Sequential(nn.Linear(first, label), nn.SiLU(), nn.Linear(label, label), nn.SiLU())
        self.enter = nn.Conv2d(4 * in_channels, first, 3, padding=1)

        def blocks(width: int) -> nn.ModuleList:
            return nn.ModuleList(_Block(width, label, dropout) for _ in range(layers_per_block))

        self.down = nn.ModuleList(blocks(w) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(blocks(w) for w in widths[:-1])
        self.middle = _Block(widths[-1], label, dropout)
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.leave = nn.Conv2d(first, 4 * out_channels, 3, padding=1)
        for conv, gain in ((self.enter, 1.0), *((c, 1.0) for c in (*self.shrink, *self.grow)), (self.leave, 0.3)):
            _he(conv, gain / math.sqrt(2))
        self.largest = largest
        if limits is not None:
            self.limit(limits)

    def blocks(self) -> Iterator[nn.Module]:
        """The residual blocks in the order in which they compute."""
        for level in self.down:
            yield from cast(nn.ModuleList, level)
        yield self.middle
        for level in reversed(list(self.up)):
            yield from cast(nn.ModuleList, level)

    def limit(self, limits: Sequence[float]) -> None:
        """Set the limits of all blocks, in the order of `blocks`."""
        for block, limit in zip(self.blocks(), limits, strict=True):
            cast(_Block, block).limit = float(limit)

    def forward(self, x: Tensor, label: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """x (B, C, rows, columns), label (B,), 250 times the logarithm of the noise level; (estimate,), as diffusers does."""
        angles = label.float()[:, None] * self.rates
        embedded = self.embed(torch.cat([angles.cos(), angles.sin()], 1))
        hidden = self.enter(F.pixel_unshuffle(x, 2))
        kept = []
        for k, level in enumerate(self.down):
            for block in level:  # type: ignore[attr-defined]
                hidden = block(hidden, embedded)
            if k < len(self.shrink):
                kept.append(hidden)
                hidden = self.shrink[k](hidden)
        hidden = self.middle(hidden, embedded)
        for k in reversed(range(len(self.up))):
            hidden = F.interpolate(self.grow[k](hidden), scale_factor=2.0, mode="nearest") + kept[k]
            for block in self.up[k]:  # type: ignore[attr-defined]
                hidden = block(hidden, embedded)
        estimate = F.pixel_shuffle(self.leave(F.silu(hidden)), 2)
        return (estimate if self.largest is None else estimate.clamp(-self.largest, self.largest),)


def _he(conv: nn.Module, gain: float) -> None:
    """Normal weights that keep the variance of a rectified input, times `gain`; no bias."""
    assert isinstance(conv, nn.Conv2d)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    with torch.no_grad():
        conv.weight *= gain
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
