"""Coil maps and sizes as non-Cartesian operators take them."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array
from invsolve.errors import UserError

_AXES = {2: "rows, columns", 3: "depth, rows, columns"}


def as_pairs(parameter: str, value: Tensor) -> Tensor:
    """Coil maps whose last axis is real and imaginary part without that axis, to count axes by; else the value."""
    pairs = parameter == "coil_maps" and not value.is_complex() and value.shape[-1:] == (2,)
    return value[..., 0] if pairs else value


def as_coil_maps(given: Tensor | None, dimensions: int, where: str) -> Tensor | None:
    """Complex coil maps (coils, *size), from complex numbers or pairs of real ones; None stays None.

    Raises:
        UserError: neither, or not finite.
    """
    if given is None:
        return None
    maps = as_array(given, f"{where}: coil_maps")
    if not maps.is_complex() and maps.ndim == dimensions + 2 and maps.shape[-1] == 2:
        maps = torch.view_as_complex(maps.float().contiguous())
    if not maps.is_complex() or maps.ndim != dimensions + 1 or 0 in maps.shape:
        raise UserError(
            f"{where}: coil_maps must be complex (coils, {_AXES[dimensions]}), got {maps.dtype} {tuple(maps.shape)}"
        )
    if not bool(maps.isfinite().all()):
        raise UserError(
            f"{where}: coil_maps have {int((~maps.isfinite()).sum())} NaN or infinite entries; set them to 0"
        )
    return maps.to(torch.complex64)


def size_told(
    size: tuple[int, ...] | None, maps: Tensor | None, b0_map: Tensor | None, where: str, parameter: str = "image_size"
) -> tuple[int, ...]:
    """The image size, from itself, from coil maps or from a field map.

    Raises:
        UserError: none of them is given, or they disagree.
    """
    told: tuple[int, ...] | None = None
    if maps is not None:
        told = tuple(maps.shape[1:])
    elif b0_map is not None and size is None:
        told = tuple(as_array(b0_map, f"{where}: b0_map").shape)
    if size is None and told is None:
        raise UserError(f"{where} needs {parameter}=, or coil_maps=, to know the image size")
    if size is not None and told is not None and tuple(size) != told:
        raise UserError(f"{where}: coil_maps are for images of {list(told)}, {parameter} is {list(size)}")
    return tuple(size or told or ())
