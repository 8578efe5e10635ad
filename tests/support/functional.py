"""Layers written out as plain functions, apart from the package's modules, for the comparison of foreign networks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


class Maker:
    """Random weights under given names, in the order in which they are asked for, with sensible sizes."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.weights: Weights = {}

    def put(self, name: str, *shape: int, gain: float = 1.0) -> None:
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        self.weights[name] = gain * torch.randn(shape, generator=self.rng) / math.sqrt(fan)

    def affine(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """A layer with weight (out, in, ...) and bias (out,)."""
        self.put(f"{name}.weight", *shape, gain=gain)
        self.put(f"{name}.bias", shape[0], gain=0.1)

    def norm(self, name: str, channels: int) -> None:
        self.put(f"{name}.bias", channels, gain=0.1)
        self.weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(channels, generator=self.rng)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def norm(w: Weights, name: str, x: Tensor, groups: int, eps: float) -> Tensor:
    """Group normalisation from its definition."""
    parts = x.reshape(len(x), groups, -1)
    mean = parts.mean(-1, keepdim=True)
    spread = ((parts - mean) ** 2).mean(-1, keepdim=True)
    flat = ((parts - mean) / torch.sqrt(spread + eps)).reshape(x.shape)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return flat * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape)


def conv(w: Weights, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
    """A convolution as a sum over its taps."""
    kernel, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
    size = kernel.shape[-1]
    pad = size // 2 if padding is None else padding
    x = F.pad(x, (pad, pad, pad, pad))
    rows, columns = x.shape[-2] - size + 1, x.shape[-1] - size + 1
    total = x.new_zeros(())
    for i in range(size):
        for j in range(size):
            total = total + torch.einsum("oc,bcrs->bors", kernel[:, :, i, j], x[:, :, i : i + rows, j : j + columns])
    total = total[:, :, ::stride, ::stride]
    return total if bias is None else total + bias.view(1, -1, 1, 1)


def dense(w: Weights, name: str, x: Tensor) -> Tensor:
    y = torch.einsum("oi,bi->bo", w[f"{name}.weight"], x)
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head: (B, C, N) each."""
    chance = torch.softmax(torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(q.shape[1]), -1)
    return torch.einsum("bnm,bcm->bcn", chance, v)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def halved(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def filtered(x: Tensor, taps: list[float], up: bool) -> Tensor:
    """Twice or half the size through a separable filter, by writing zeros between the pixels and summing shifted copies."""
    k = torch.tensor(taps, dtype=x.dtype) / sum(taps)
    n = len(taps)
    if up:
        wide = x.new_zeros(*x.shape[:-2], 2 * x.shape[-2], 2 * x.shape[-1])
        wide[..., ::2, ::2] = 4 * x
        before, after = n // 2, n // 2 - 1
    else:
        wide, before, after = x, (n - 1) // 2, (n - 1) // 2
    padded = F.pad(wide, (before, after, before, after))
    rows, columns = padded.shape[-2] - n + 1, padded.shape[-1] - n + 1
    out = x.new_zeros(())
    for i in range(n):
        for j in range(n):
            out = out + k[i] * k[j] * padded[..., i : i + rows, j : j + columns]
    return out if up else out[..., ::2, ::2]


def waves(t: Tensor, channels: int, last: int) -> tuple[Tensor, Tensor]:
    """Sines and cosines of t 10000^(-k / last), each (B, channels / 2)."""
    rates = torch.tensor([10000.0 ** (-k / last) for k in range(channels // 2)])
    return torch.sin(t[:, None] * rates), torch.cos(t[:, None] * rates)


def error(a: Tensor, b: Tensor) -> float:
    """Greatest difference, over the greatest value."""
    return float((a - b).abs().max() / b.abs().max())
