"""How NCSN++ and DDPM++ put their layers together: a programme over the numbered list, from a score_sde configuration."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invsolve.errors import UserError
from invsolve.plugins.priors.nets.ncsnpp_net import (
    Block,
    FilteredDown,
    Frequencies,
    Merge,
    PixelAttention,
    RepeatedUp,
    Resize,
    StridedDown,
    option,
)

#: Layers whose weights the running means of score_sde leave out, because they are not trained.
UNTRAINED = (Frequencies,)


class NCSNpp(nn.Module):
    """`forward(x, label)`: x (B, C, rows, columns), label (B,) sigma of VE networks or timestep of VP ones.

    Built by walking the configuration once: each step appends a layer to `all_modules`, whose numbers are those of the file,
    and an instruction to the programme that `forward` follows. Published VE and VP configurations are covered; `progressive`
    "residual" and FIR filters in blocks of the kind "ddpm" are not.

    Args:
        model: section `model` of the configuration, by its own names (nf, ch_mult, num_res_blocks, attn_resolutions, ...).
        data: section `data` (image_size, num_channels, centered).

    Raises:
        UserError: a setting is missing, or of a variant that is not built here.
    """

    def __init__(self, model: dict[str, Any], data: dict[str, Any]) -> None:
        super().__init__()
        for name in ("nf", "ch_mult", "num_res_blocks", "attn_resolutions"):
            if name not in model:
                raise UserError(f"the configuration has no model.{name}")
        for name in ("image_size", "num_channels"):
            if name not in data:
                raise UserError(f"the configuration has no data.{name}")
        option(model, "name", ("ncsnpp", "ddpm"), "ncsnpp")
        option(model, "nonlinearity", ("swish",), "swish")
        plain = model.get("name") == "ddpm"
        self.channels, self.centered = int(data["num_channels"]), bool(data.get("centered", False))
        self.width, self.scaled = int(model["nf"]), bool(model.get("scale_by_sigma", not plain))
        self.fourier = not plain and option(model, "embedding_type", ("fourier", "positional"), "fourier") == "fourier"
        self.biggan = not plain and option(model, "resblock_type", ("biggan", "ddpm"), "biggan") == "biggan"
        self.groups = 32 if plain else None
        self.rescale = not plain and bool(model.get("skip_rescale", True))
        self.taps = (
            [float(k) for k in model.get("fir_kernel", (1, 3, 3, 1))] if not plain and model.get("fir", True) else None
        )
        self.convolved = bool(model.get("resamp_with_conv", True))
        self.into = "none" if plain else option(model, "progressive_input", ("none", "input_skip", "residual"), "none")
        self.merge = option(model, "progressive_combine", ("sum", "cat"), "sum")
        self.outof = "none" if plain else option(model, "progressive", ("none", "output_skip"), "none")
        conditional = plain or bool(model.get("conditional", True))
        if not self.biggan and self.taps is not None:
            raise UserError("model.resblock_type = 'ddpm' with model.fir = true is not read")
        if self.scaled and not self.fourier:
            raise UserError("model.scale_by_sigma needs the continuous model, embedding_type 'fourier'")
        self.told = 4 * self.width if conditional else 0
        self.all_modules = nn.ModuleList()
        self.programme: list[tuple[str, int]] = []
        self.levels = len(model["ch_mult"])
        # These have no weights and no numbers in the file.
        self.shrink: nn.Module = Resize(False, self.taps) if self.taps else StridedDown(self.channels, False)
        self.grow = Resize(True, self.taps)
        self._build([self.width * int(m) for m in model["ch_mult"]], int(model["num_res_blocks"]), model, data)

    def _add(self, verb: str, layer: nn.Module) -> None:
        self.programme.append((verb, len(self.all_modules)))
        self.all_modules.append(layer)

    def _block(self, channels: int, out: int, resize: Resize | None = None) -> Block:
        return Block(channels, out, self.told, self.groups, self.rescale, self.biggan, resize)

    def _attention(self, channels: int) -> PixelAttention:
        return PixelAttention(channels, self.groups, self.rescale)

    def _norm(self, channels: int) -> nn.GroupNorm:
        return nn.GroupNorm(self.groups or min(channels // 4, 32), channels, eps=1e-6)

    def _build(self, widths: list[int], blocks: int, model: dict[str, Any], data: dict[str, Any]) -> None:
        if self.fourier:
            self._add("embed", Frequencies(self.width))
        if self.told:
            self._add("embed", nn.Linear(self.width * (2 if self.fourier else 1), self.told))
            self._add("embed", nn.Linear(self.told, self.told))
        attended = [int(data["image_size"]) // 2**k in model["attn_resolutions"] for k in range(self.levels)]
        self._add("start", nn.Conv2d(self.channels, self.width, 3, padding=1))
        now = self._down(widths, blocks, attended, kept := [self.width])
        self._add("block", self._block(now, now))
        self._add("layer", self._attention(now))
        self._add("block", self._block(now, now))
        now = self._up(widths, blocks, attended, kept, now)
        if self.outof == "none":
            self._add("layer", self._norm(now))
            self._add("last", nn.Conv2d(now, self.channels, 3, padding=1))

    def _down(self, widths: list[int], blocks: int, attended: list[bool], kept: list[int]) -> int:
        now, pyramid = self.width, self.channels
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self._add("block", self._block(now, width))
                now = width
                if attended[level]:
                    self._add("layer", self._attention(now))
                self._keep(kept, now)
            if level == self.levels - 1:
                break
            if self.biggan:
                self._add("block", self._block(now, now, Resize(False, self.taps)))
            else:
                self._add("layer", StridedDown(now, self.convolved))
            if self.into == "input_skip":
                self.programme.append(("shrink alone", -1))
                self._add(f"merge {self.merge}", Merge(pyramid, now))
                now *= 2 if self.merge == "cat" else 1
            elif self.into == "residual":
                if not self.taps:
                    raise UserError("model.progressive_input = 'residual' without model.fir is not read")
                self._add("shrink", FilteredDown(pyramid, now, self.taps))
                self.programme.append(("merge residual", -1))
                pyramid = now
            self._keep(kept, now)
        return now

    def _up(self, widths: list[int], blocks: int, attended: list[bool], kept: list[int], now: int) -> int:
        for level in reversed(range(self.levels)):
            for _ in range(blocks + 1):
                self.programme.append(("join", -1))
                self._add("block", self._block(now + kept.pop(), widths[level]))
                now = widths[level]
            if attended[level]:
                self._add("layer", self._attention(now))
            if self.outof == "output_skip":
                if level != self.levels - 1:
                    self.programme.append(("grow", -1))
                self._add("show", self._norm(now))
                self._add("add", nn.Conv2d(now, self.channels, 3, padding=1))
            if level and self.biggan:
                self._add("block", self._block(now, now, Resize(True, self.taps)))
            elif level:
                self._add("layer", RepeatedUp(now, self.convolved))
        return now

    def _keep(self, kept: list[int], channels: int) -> None:
        kept.append(channels)
        self.programme.append(("keep", -1))

    def _embedding(self, label: Tensor, x: Tensor) -> Tensor | None:
        """What every block is told of the noise level, (B, 4 nf), in the precision of x."""
        layers = [self.all_modules[number] for verb, number in self.programme if verb == "embed"]
        told = layers.pop(0)(label.log()) if self.fourier else timestep_embedding(label, self.width)
        if not self.told:
            return None
        first, second = layers
        return second(F.silu(first(told.to(x.dtype))))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if not self.centered:
            x = 2 * x - 1
        told = self._embedding(label, x)
        image, output, kept = x, x.new_zeros(()), []
        for verb, number in self.programme:
            layer = self.all_modules[number]
            if verb == "start":
                x = layer(x)
                kept.append(x)
            elif verb == "block":
                x = layer(x, told)
            elif verb == "layer":
                x = layer(x)
            elif verb == "keep":
                kept.append(x)
            elif verb == "join":
                x = torch.cat([x, kept.pop()], dim=1)
            elif verb == "shrink":
                image = layer(image)
            elif verb == "merge sum":
                x = layer(image) + x
            elif verb == "merge cat":
                x = torch.cat([layer(image), x], dim=1)
            elif verb == "merge residual":
                x = image = (image + x) * (math.sqrt(0.5) if self.rescale else 1.0)
            elif verb == "shrink alone":
                image = self.shrink(image)
            elif verb == "grow":
                output = self.grow(output)
            elif verb == "show":
                image = F.silu(layer(x))
            elif verb == "add":
                output = output + layer(image)
            elif verb == "last":
                output = layer(F.silu(x))
        return output / label.to(x.dtype).view(-1, 1, 1, 1) if self.scaled else output


def timestep_embedding(label: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of the label (B,), the slowest with period 2 pi 10^4, (B, channels)."""
    half = channels // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=label.device) * (-math.log(10000.0) / (half - 1)))
    angle = label.float()[:, None] * rates
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, channels % 2))
