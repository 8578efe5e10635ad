"""What a projector is: line integrals of images, and their exact transpose, for the geometries that it supports."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.module import Module
from invsolve.errors import UserError
from invsolve.numerics.threads import apart
from invsolve.operators.ct.geometry import Geometry

#: Bytes worked on at once on a CPU, beyond whose caches all gets several times slower; and elsewhere.
CACHE_BYTES = 32 * 2**20
DEVICE_BYTES = 1024 * 2**20


class Projector(Module):
    """Line integrals of images along the rays of a geometry.

    Attributes:
        name: in `ct(projector=...)`.
        geometry: whose rays they are.
    """

    name: ClassVar[str] = ""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    @classmethod
    def unsupported(cls, geometry: Geometry) -> str:
        """Why it is not for this geometry, in words that end a sentence; empty where it is."""
        raise NotImplementedError

    def project(self, x: Tensor) -> Tensor:
        """Images (B, *image_size) to line integrals (B, *measurement_shape)."""
        raise NotImplementedError

    def backproject(self, y: Tensor) -> Tensor:
        """The exact transpose of `project`, through the same weights."""
        raise NotImplementedError


def budget(x: Tensor) -> int:
    """Bytes of temporaries that a projector may take at once where x is."""
    return CACHE_BYTES if x.device.type == "cpu" else DEVICE_BYTES


def by_images(work: Callable[[Tensor], Tensor], values: Tensor, most: int) -> Tensor:
    """`work` of images (or their rays) in turns of at most `most`, on a CPU by as many threads as torch has."""
    if values.device.type != "cpu":
        return work(values)
    share = min(most, -(-len(values) // torch.get_num_threads()))
    return joined(apart([partial(work, part) for part in values.split(max(1, share))]))


def joined(parts: list[Tensor]) -> Tensor:
    """One after the other along the first axis; put together apart, because a copy is work of which torch makes shares."""
    return parts[0] if len(parts) == 1 else apart([partial(torch.cat, parts)])[0]


def stated(geometry: Geometry) -> Tensor:
    """The geometry's text as a tensor of bytes, by which records tell operators apart that store no weights."""
    return torch.frombuffer(bytearray(geometry.to_text().encode()), dtype=torch.uint8).clone()


def need(module: str, command: str) -> ModuleType:
    """Import the package that a projector hands its work to.

    Raises:
        UserError: it is not installed; says by which command it is.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"operator 'ct': projector {module!r} needs the package {module} ({error}); install it with: {command}"
        ) from None
