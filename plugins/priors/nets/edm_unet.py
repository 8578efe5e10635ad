"""The networks of EDM (Karras 2022): SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM), built to fit a state dict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invsolve.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


class Convolution(nn.Module):
    """A convolution, or none (kernel size 0), after or before doubling or halving the size by a filter kept in the file.

    Args:
        shapes: shapes in the state dict.
        at: name of this layer in it.
        resize: "down", "up" or None.
        fused: when going down, convolve first and filter after (only the weights' trainer can know).
    """

    resample_filter: Tensor | None

    def __init__(self, shapes: Shapes, at: str, resize: str | None = None, fused: bool = False) -> None:
        super().__init__()
        weight, bias = shapes.get(f"{at}.weight"), shapes.get(f"{at}.bias")
        self.weight = None if weight is None else nn.Parameter(torch.zeros(weight))
        self.bias = None if bias is None else nn.Parameter(torch.zeros(bias))
        taps = shapes.get(f"{at}.resample_filter")
        if (taps is None) != (resize is None):
            raise UserError(f"layer {at!r} {'has no' if taps is None else 'has an unexpected'} resample_filter")
        self.register_buffer("resample_filter", None if taps is None else torch.zeros(taps))
        self.resize, self.fused = resize, fused

    def forward(self, x: Tensor) -> Tensor:
        pad = 0 if self.weight is None else self.weight.shape[-1] // 2
        if self.resample_filter is not None and not self.fused:
            x = self._resample(x, (self.resample_filter.shape[-1] - 1) // 2)
        if self.weight is not None:
            extra = (self.resample_filter.shape[-1] - 1) // 2 if self.fused and self.resample_filter is not None else 0
            x = F.conv2d(x, self.weight, padding=pad + extra)
        if self.fused:
            x = self._resample(x, 0)
        return x if self.bias is None else x + self.bias[:, None, None]

    def _resample(self, x: Tensor, pad: int) -> Tensor:
        channels = x.shape[1]
        assert self.resample_filter is not None
        kernel = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.resize == "up":
            return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=channels)
        return F.conv2d(x, kernel, stride=2, padding=pad, groups=channels)


class Affine(nn.Linear):
    """A dense layer with the shape that the state dict has."""

    def __init__(self, shapes: Shapes, at: str) -> None:
        out, inputs = shapes[f"{at}.weight"]
        super().__init__(inputs, out, bias=f"{at}.bias" in shapes)


def norm(shapes: Shapes, at: str, eps: float) -> nn.GroupNorm:
    """Normalisation over groups of at least four channels."""
    (channels,) = shapes[f"{at}.weight"]
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class Block(nn.Module):
    """Two convolutions about the noise level's embedding, a shortcut, and attention where the file has it.

    Args:
        shapes: shapes in the state dict.
        at: name of this block in it.
        resize: "down", "up" or None.
        dhariwal: scale and shift, sums kept as they are, heads of 64 channels; else added, sums divided by sqrt(2), one head.
    """

    def __init__(self, shapes: Shapes, at: str, resize: str | None, dhariwal: bool) -> None:
        super().__init__()
        eps = 1e-5 if dhariwal else 1e-6
        self.dhariwal, self.factor = dhariwal, 1.0 if dhariwal else math.sqrt(0.5)
        self.norm0, self.norm1 = norm(shapes, f"{at}.norm0", eps), norm(shapes, f"{at}.norm1", eps)
        self.conv0, self.conv1 = Convolution(shapes, f"{at}.conv0", resize), Convolution(shapes, f"{at}.conv1")
        self.affine = Affine(shapes, f"{at}.affine")
        self.inputs, self.outputs = self.norm0.num_channels, self.norm1.num_channels
        has_skip = any(name.startswith(f"{at}.skip.") for name in shapes)
        self.skip: nn.Module = Convolution(shapes, f"{at}.skip", resize) if has_skip else nn.Identity()
        self.heads = 0
        if f"{at}.qkv.weight" in shapes:
            self.heads = self.outputs // 64 if dhariwal else 1
            if not self.heads or self.outputs % self.heads:
                raise UserError(f"attention in {at!r} over {self.outputs} channels has no heads of 64 channels")
            self.norm2 = norm(shapes, f"{at}.norm2", eps)
            self.qkv, self.proj = Convolution(shapes, f"{at}.qkv"), Convolution(shapes, f"{at}.proj")

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        params = self.affine(told)[:, :, None, None]
        if self.dhariwal:
            scale, shift = params.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + params)
        x = (self.conv1(F.silu(h)) + self.skip(x)) * self.factor
        if self.heads:
            # In the file the channels of q, k, v alternate: channel c of q is row 3 c of its head.
            qkv = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (self.heads, -1, 3))
            q, k, v = (part.mT for part in qkv.unbind(3))
            mixed = F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2).unflatten(2, x.shape[2:])
            x = (x + self.proj(mixed)) * self.factor
        return x


class EdmUNet(nn.Module):
    """`forward(x, label)`: x (B, C, rows, columns), label (B,), as EDM's preconditioning gives it.

    The names in the file say it all: level by resolution ("enc.64x64_block0"), attention, auxiliary branches, filters.

    Args:
        weights: the state dict, without the prefix `model.`.

    Raises:
        UserError: of another layout.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        shapes: Shapes = {name: tuple(value.shape) for name, value in weights.items()}
        self.dhariwal = "out_conv.weight" in shapes
        self.fourier = "map_noise.freqs" in shapes
        self.map_noise = nn.Module()
        if self.fourier:
            self.map_noise.register_buffer("freqs", torch.zeros(shapes["map_noise.freqs"]))
        self.map_layer0, self.map_layer1 = Affine(shapes, "map_layer0"), Affine(shapes, "map_layer1")
        self.enc, self.dec = (nn.ModuleDict(self._layers(shapes, side)) for side in ("enc", "dec"))
        self.levels = len({name.split("_")[0] for name in self.enc})
        self.channels = shapes[f"enc.{next(iter(self.enc))}.weight"][1]
        if self.dhariwal:
            self.out_norm, self.out_conv = norm(shapes, "out_norm", 1e-5), Convolution(shapes, "out_conv")

    def _layers(self, shapes: Shapes, side: str) -> dict[str, nn.Module]:
        """The layers of a side in the order in which they work, which the names give and the file may have lost."""
        names = {name.split(".")[1] for name in shapes if name.startswith(f"{side}.")}
        order = (
            "conv",
            "down",
            "aux_down",
            "aux_skip",
            "aux_residual",
            "in",
            "up",
            "block",
            "aux_up",
            "aux_norm",
            "aux_conv",
        )

        def rank(name: str) -> tuple[int, int, int]:
            match = re.fullmatch(r"(\d+)x\d+_(\D+?)(\d*)", name)
            if not match or match[2] not in order:
                raise UserError(f"layer {f'{side}.{name}'!r} is of no kind that EDM's networks have")
            size = int(match[1])
            return (-size if side == "enc" else size), order.index(match[2]), int(match[3] or 0)

        return {name: self._layer(shapes, side, name) for name in sorted(names, key=rank)}

    def _layer(self, shapes: Shapes, side: str, name: str) -> nn.Module:
        at, kind = f"{side}.{name}", name.split("_", 1)[1]
        resize = "down" if kind in ("down", "aux_down", "aux_residual") else "up" if kind in ("up", "aux_up") else None
        if kind == "aux_norm":
            return norm(shapes, at, 1e-6)
        if f"{at}.norm0.weight" in shapes:
            return Block(shapes, at, resize, self.dhariwal)
        return Convolution(shapes, at, resize, fused=kind == "aux_residual")

    def _told(self, label: Tensor, dtype: torch.dtype) -> Tensor:
        """The noise level's embedding, (B, 4 channels)."""
        label = label.float()
        width = self.map_layer0.in_features
        if self.fourier:
            angle = label[:, None] * self.map_noise.freqs.float() * (2 * math.pi)  # type: ignore[operator]
        else:
            last = width // 2 - (0 if self.dhariwal else 1)
            steps = torch.arange(width // 2, dtype=torch.float32, device=label.device)
            angle = label[:, None] * (1e-4) ** (steps / last)
        waves = (angle.cos(), angle.sin()) if self.dhariwal else (angle.sin(), angle.cos())
        told = F.silu(self.map_layer0(torch.cat(waves, dim=1).to(dtype)))
        return F.silu(self.map_layer1(told))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        told = self._told(label, x.dtype)
        kept: list[Tensor] = []
        image = x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                image = layer(image)
            elif name.endswith("aux_skip"):
                x = kept[-1] = x + layer(image)
            elif name.endswith("aux_residual"):
                x = kept[-1] = image = (x + layer(image)) * math.sqrt(0.5)
            else:
                x = layer(x, told) if isinstance(layer, Block) else layer(x)
                kept.append(x)
        output = normed = x.new_zeros(())
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                output = layer(output)
            elif name.endswith("aux_norm"):
                normed = layer(x)
            elif name.endswith("aux_conv"):
                output = output + layer(F.silu(normed))
            else:
                assert isinstance(layer, Block)
                if x.shape[1] != layer.inputs:
                    x = torch.cat([x, kept.pop()], dim=1)
                x = layer(x, told)
        return self.out_conv(F.silu(self.out_norm(x))) if self.dhariwal else output
