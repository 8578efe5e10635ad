"""The ADM U-Net (Dhariwal 2021), built to fit a state dict of guided-diffusion: its layer names are the names in the file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invsolve.errors import UserError


def sinusoids(label: Tensor, channels: int, longest: float = 10000.0) -> Tensor:
    """Cosines, then sines, of the label (B,) at geometrically spaced frequencies, (B, channels)."""
    half = channels // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=label.device) * (-math.log(longest) / half))
    angle = label.float()[:, None] * rates
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, channels % 2))


class Residual(nn.Module):
    """Two convolutions about an embedding of the timestep, at the same size, half of it or twice.

    Args:
        channels, out_channels: of input and output.
        embedding: width of the timestep's embedding.
        scale_shift: the embedding scales and shifts the second normalisation; else it is added before.
        resize: "down", "up" or None.
        shortcut: kernel size of the shortcut's convolution, 0 when there is none.
    """

    def __init__(
        self, channels: int, out_channels: int, embedding: int, scale_shift: bool, resize: str | None, shortcut: int
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels * (2 if scale_shift else 1)))
        # Index 2 is the dropout of training; the names in the file count it.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection: nn.Module = (
            nn.Conv2d(channels, out_channels, shortcut, padding=shortcut // 2) if shortcut else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = convolution(self._resized(activation(norm(x))))
        told = self.emb_layers(embedding)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self._resized(x)) + h

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resize == "up" else x


class Attention(nn.Module):
    """Self-attention over all pixels, `heads` at a time; in the file q, k, v are interleaved by head unless `new_order`."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        flat = x.flatten(2)
        parts = (3, self.heads) if self.new_order else (self.heads, 3)
        qkv = self.qkv(self.norm(flat)).unflatten(1, (*parts, -1)).transpose(-1, -2)
        q, k, v = qkv.unbind(1 if self.new_order else 2)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)
        return x + self.proj_out(mixed).unflatten(2, x.shape[2:])


class Resample(nn.Module):
    """A convolution that halves the size (named `op` in the file), or doubling before one (named `conv`)."""

    def __init__(self, channels: int, out_channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        convolution = nn.Conv2d(channels, out_channels, 3, stride=1 if up else 2, padding=1)
        if up:
            self.conv = convolution
        else:
            self.op = convolution

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")) if self.up else self.op(x)


class Plain(nn.Conv2d):
    """The first convolution, which needs no embedding."""

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return super().forward(x)


class AdmUNet(nn.Module):
    """The whole network: `forward(x, timestep)`, x (B, C, rows, columns), timestep (B,), may be fractional.

    Everything but the heads of the attention and the order of q, k, v is read off the names and shapes of the weights.

    Args:
        weights: the state dict that it must fit.
        head_channels: channels of one attention head.
        heads: or their number, where that is what the model was made with.
        new_order: `use_new_attention_order` of guided-diffusion.

    Raises:
        UserError: the weights are of a variant that is not built here.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], head_channels: int = 64, heads: int | None = None, new_order: bool = False
    ) -> None:
        super().__init__()
        self.head_channels, self.heads, self.new_order = head_channels, heads, new_order
        width, self.width = weights["time_embed.0.weight"].shape
        self.channels, self.out_channels = weights["input_blocks.0.0.weight"].shape[1], len(weights["out.2.weight"])
        self.time_embed = nn.Sequential(nn.Linear(self.width, width), nn.SiLU(), nn.Linear(width, width))
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        ends = [i for i in range(_count(shapes, "output_blocks")) if _ends_in_upsampling(shapes, f"output_blocks.{i}")]
        self.levels = len(ends) + 1
        blocks = _count(shapes, "input_blocks")
        if blocks % self.levels or blocks != _count(shapes, "output_blocks"):
            raise UserError(
                f"{blocks} input blocks on {self.levels} levels is no layout of guided-diffusion known here (models with "
                "conv_resample=False keep no trace of their down-sampling and are not read)"
            )
        self.blocks_per_level = blocks // self.levels - 1
        self.attention_at = sorted(
            {2 ** (int(n.split(".")[1]) // (self.blocks_per_level + 1)) for n in shapes if _attention_in(n)}
        )
        downs = range(self.blocks_per_level + 1, blocks, self.blocks_per_level + 1)
        self.input_blocks = nn.ModuleList(
            self._block(shapes, f"input_blocks.{i}", "down" if i in downs else None) for i in range(blocks)
        )
        self.middle_block = self._block(shapes, "middle_block", None)
        self.output_blocks = nn.ModuleList(
            self._block(shapes, f"output_blocks.{i}", "up" if i in ends else None) for i in range(blocks)
        )
        self.out = nn.Sequential(
            nn.GroupNorm(32, self.width_out(shapes)),
            nn.SiLU(),
            nn.Conv2d(self.width_out(shapes), self.out_channels, 3, padding=1),
        )

    @staticmethod
    def width_out(shapes: Mapping[str, tuple[int, ...]]) -> int:
        return shapes["out.2.weight"][1]

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        told = self.time_embed(sinusoids(timestep, self.width).to(x.dtype))
        kept = []
        for block in self.input_blocks:
            for layer in block:  # type: ignore[attr-defined]
                x = layer(x, told)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, told)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for layer in block:  # type: ignore[attr-defined]
                x = layer(x, told)
        return self.out(x)

    def _block(self, shapes: Mapping[str, tuple[int, ...]], prefix: str, resize: str | None) -> nn.ModuleList:
        """The layers under `prefix`; the residual that changes the size is the first going down, the last going up."""
        layers: list[nn.Module] = []
        count = 1 + max(int(n[len(prefix) + 1 :].split(".")[0]) for n in shapes if n.startswith(f"{prefix}."))
        for k in range(count):
            at = f"{prefix}.{k}"
            if f"{at}.in_layers.2.weight" in shapes:
                changes = resize == "down" or (resize == "up" and k == count - 1)
                layers.append(self._residual(shapes, at, resize if changes else None))
            elif f"{at}.qkv.weight" in shapes:
                layers.append(Attention(*self._heads(shapes[f"{at}.qkv.weight"][1]), self.new_order))
            elif f"{at}.op.weight" in shapes or f"{at}.conv.weight" in shapes:
                up = f"{at}.conv.weight" in shapes
                out, channels = shapes[f"{at}.{'conv' if up else 'op'}.weight"][:2]
                layers.append(Resample(channels, out, up))
            elif f"{at}.weight" in shapes:
                out, channels = shapes[f"{at}.weight"][:2]
                layers.append(Plain(channels, out, 3, padding=1))
            else:
                raise UserError(f"layer {at!r} is of no kind that guided-diffusion's U-Net has")
        return nn.ModuleList(layers)

    @staticmethod
    def _residual(shapes: Mapping[str, tuple[int, ...]], at: str, resize: str | None) -> Residual:
        out, channels = shapes[f"{at}.in_layers.2.weight"][:2]
        told, embedding = shapes[f"{at}.emb_layers.1.weight"]
        shortcut = shapes.get(f"{at}.skip_connection.weight")
        return Residual(channels, out, embedding, told == 2 * out, resize, shortcut[-1] if shortcut else 0)

    def _heads(self, channels: int) -> tuple[int, int]:
        if self.heads is not None and channels % self.heads == 0:
            return channels, self.heads
        if self.heads is None and channels % self.head_channels == 0:
            return channels, channels // self.head_channels
        raise UserError(
            f"attention over {channels} channels cannot be split into "
            f"{f'{self.heads} heads' if self.heads else f'heads of {self.head_channels} channels'}; give num_head_channels= "
            "or num_heads= as the model was trained with"
        )


def _count(shapes: Mapping[str, tuple[int, ...]], group: str) -> int:
    return 1 + max((int(n.split(".")[1]) for n in shapes if n.startswith(f"{group}.")), default=-1)


def _ends_in_upsampling(shapes: Mapping[str, tuple[int, ...]], block: str) -> bool:
    residuals = sum(bool(re.fullmatch(rf"{re.escape(block)}\.\d+\.in_layers\.2\.weight", n)) for n in shapes)
    return residuals > 1 or any(re.fullmatch(rf"{re.escape(block)}\.\d+\.conv\.weight", n) for n in shapes)


def _attention_in(name: str) -> bool:
    return name.startswith("input_blocks.") and name.endswith(".qkv.weight")
