"""What a layout hands over: a measurement with its operator and noise, or images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.scale import Scale


class Rows(Protocol):
    """Anything with a length and slices that are tensors: a tensor, or a dataset that is read only when sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass
class Measurement:
    """What an instrument measured, and what is known about how.

    Attributes:
        y: (N, *measurement), read in slices.
        operator: how y came from the image.
        noise: how y scatters; None when the file does not say.
        scale: the map to network units, where the file fixes it; else None and the caller decides.
        truth: (N, C, *spatial) in physical units, where it is known.
        unit: physical unit of the image.
        source: the file it came from.
        fingerprint: changes when the input does; compared before a run is resumed.
        volumes: a label per item; items with the same label are the slices of one volume, in their order. None where all
            items are slices of one.
        notes: one line each on what was done on the way (flat field, thinning), for the record and the terminal.
        missing: one line each on what the file does not say, what is taken instead, and how to give it.
        axes: names of y's axes, such as "item angle detector".
        operators: the operator of one item, where items differ and what differs is read from the file when it is needed (coil
            maps of each slice); `operator` is that of the first then, and all have its shapes. What is known beforehand is
            said by the operator itself (`Operator.items`).
        region: [start, stop) along each spatial axis of the part of the image that is the result; what lies outside is
            reconstructed too, because the data see it, and cut off. None keeps everything. `truth` covers the region.
        image_shape: (C, *spatial) of the images that were measured, where the file says so; needed where neither the operator
            nor the shape of y tells.
    """

    y: Rows
    operator: Operator
    noise: Noise | None = None
    scale: Scale | None = None
    truth: Rows | None = None
    unit: str = ""
    source: str = ""
    fingerprint: str = ""
    volumes: Sequence[int] | None = None
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    axes: str = ""
    operators: Callable[[int], Operator] | None = None
    region: tuple[tuple[int, int], ...] | None = None
    image_shape: tuple[int, ...] | None = None

    @property
    def items_differ(self) -> bool:
        """Whether items have operators of their own."""
        return self.operators is not None or self.operator.items is not None

    def operator_for(self, item: int) -> Operator:
        """The operator that measured this item."""
        return self.operator.for_item(item) if self.operators is None else self.operators(item)

    def crop(self, image: Tensor) -> Tensor:
        """Cut an image (..., *spatial) down to the region."""
        if self.region is None:
            return image
        index: tuple[Any, ...] = (..., *(slice(start, stop) for start, stop in self.region))
        return image[index]


@dataclass
class Images:
    """Images to simulate from, to train on, or to compare with.

    Attributes:
        x: (N, C, *spatial), physical units, read in slices.
        unit: of the values.
        spacing: pixel size along each spatial axis, in spacing_unit; None where the file does not say.
        spacing_unit: such as "mm".
        source: the file or folder.
        fingerprint: changes when the input does.
        notes: one line each on what was done on the way.
        missing: one line each on what the file does not say.
        axes: names of x's axes.
        volumes: a label per item, as in `Measurement`.
    """

    x: Rows
    unit: str = ""
    spacing: tuple[float, ...] | None = None
    spacing_unit: str = ""
    source: str = ""
    fingerprint: str = ""
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    axes: str = "item channel row column"
    volumes: Sequence[int] | None = None
