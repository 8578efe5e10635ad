"""Weights of 8 or 4 bits: whole numbers and a scale for each group, tables that become ordinary weights when they are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from invsolve.errors import UserError

BITS = (8, 4)
#: Weights that share a scale: all of an output channel with 8 bits, so many of it with 4.
GROUP = 32
#: Smaller tensors, and those without input channels, stay as they are: biases are few and matter.
LEAST = 512
_NUMBERS, _SCALE, _SHAPE = ":whole", ":scale", ":shape"


def quantised(weights: Mapping[str, Tensor], bits: int, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Round weights to whole numbers of so many bits times a scale; the scale of a group of 4 bits is the best of sixteen.

    Args:
        weights: name -> tensor.
        bits: 8 or 4.
        dtype: of the scales and of the tensors that stay.

    Returns:
        Tensors to store: NAME where it stays, else NAME:whole (int8, or two of 4 bits in a byte), NAME:scale, NAME:shape.

    Raises:
        UserError: another number of bits.
    """
    if bits not in BITS:
        raise UserError(f"weights are quantised to {' or '.join(map(str, BITS))} bits, got {bits}")
    stored: dict[str, Tensor] = {}
    for name, value in weights.items():
        if value.ndim < 2 or value.numel() < LEAST:
            stored[name] = value.to(dtype).contiguous()
            continue
        rows = value.detach().float().flatten(1)
        groups = rows[:, None] if bits == 8 else _grouped(rows)
        whole, scale = _rounded(groups, 2 ** (bits - 1) - 1, dtype)
        stored[name + _NUMBERS] = whole.flatten(1) if bits == 8 else _packed(whole)
        stored[name + _SCALE] = scale
        stored[name + _SHAPE] = torch.tensor(value.shape, dtype=torch.int32)
    return stored


def plain(stored: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Ordinary weights in single precision, of what `quantised` returned or of ordinary ones.

    Raises:
        UserError: parts that are missing or do not go together.
    """
    weights: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith(_NUMBERS):
            base = name.removesuffix(_NUMBERS)
            try:
                weights[base] = _restored(value, stored[base + _SCALE], stored[base + _SHAPE].tolist())
            except (KeyError, RuntimeError, ValueError, TypeError):
                raise UserError(
                    f"{where}: the quantised weights {base!r} are not whole: numbers, scales and shape do not go together; copy "
                    "the file again"
                ) from None
        elif not name.endswith((_SCALE, _SHAPE)):
            weights[name] = value.float() if value.is_floating_point() else value
    return weights


def _rounded(groups: Tensor, most: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Whole numbers (rows, groups, size) and the scale of each group (rows, groups)."""
    peak = groups.abs().amax(2, keepdim=True)
    best = least = None
    # A smaller scale clips the few largest and is finer for the rest; with 8 bits that never pays.
    for part in (torch.linspace(0.6, 1.0, 16) if most < 100 else torch.ones(1)).tolist():
        scale = (part * peak / most).to(dtype).float()
        whole = (groups / scale.clamp_min(1e-12)).round().clamp(-most, most)
        error = (whole * scale - groups).square().sum(2, keepdim=True)
        if best is None or least is None:
            best, least = (whole, scale), error
        else:
            better = error < least
            best = torch.where(better, whole, best[0]), torch.where(better, scale, best[1])
            least = torch.minimum(error, least)
    assert best is not None
    return best[0].to(torch.int8), best[1][..., 0].to(dtype)


def _grouped(rows: Tensor) -> Tensor:
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))


def _packed(whole: Tensor) -> Tensor:
    """Pairs of numbers from -8 to 7 in one byte, the first in the lower half."""
    pairs = (whole.flatten(1).to(torch.int16) + 8).unflatten(1, (-1, 2))
    return (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)


def _restored(numbers: Tensor, scale: Tensor, shape: list[int]) -> Tensor:
    if len(shape) < 2 or any(length < 1 for length in shape) or numbers.ndim != 2 or scale.ndim != 2:
        raise ValueError
    if numbers.dtype == torch.uint8:
        whole = torch.stack([numbers % 16, numbers // 16], -1).flatten(1).float() - 8
    elif numbers.dtype == torch.int8:
        whole = numbers.float()
    else:
        raise TypeError
    values = whole.unflatten(1, (scale.shape[1], -1)) * scale.float()[..., None]
    rows = values.flatten(1)
    inside = 1
    for length in shape[1:]:
        inside *= length
    # What was filled up to whole groups is less than one.
    if rows.shape[0] != shape[0] or not 0 <= rows.shape[1] - inside < max(GROUP, 1):
        raise ValueError
    return rows[:, :inside].reshape(shape).contiguous()
