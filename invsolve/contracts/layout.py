"""How files enter and leave: a layout reads one kind of file into a Measurement or Images; a sink takes finished items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.scale import Scale
from invsolve.errors import UserError


class Rows(Protocol):
    """Anything with a length and slices that are tensors: a tensor, or a dataset that is read only when sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass
class Measurement:
    """What an instrument recorded, and what is known about how.

    Attributes:
        y: (N, *measurement), read in slices.
        operator: how y came from the image.
        noise: how y scatters; None when the file does not say.
        scale: the map to network units, where the file fixes it; else None and the caller decides.
        truth: (N, C, *spatial) in physical units, where it is known.
        unit: physical unit of the image.
        source: the file it came from.
        fingerprint: changes when the input does; compared before a run is resumed.
        volumes: a label an item; items with the same label are the slices of one volume, in their order. None where all
            items are slices of one.
        notes: one line each on what was done on the way (flat field, thinning), for the record and the terminal.
        missing: one line each on what the file does not say, what is taken instead, and how to give it.
        axes: names of y's axes, such as "item angle detector".
        operators: the operator of one item, where items differ (coil maps of each slice); `operator` is that of the first
            then, and all have its shapes.
        region: [start, stop) along each spatial axis of the part of the image that is the result; what lies outside is
            reconstructed too, because the data see it, and cut off. None keeps everything. `truth` covers the region.
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

    def operator_for(self, item: int) -> Operator:
        """The operator that measured this item."""
        return self.operator if self.operators is None else self.operators(item)

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
        volumes: a label an item, as in `Measurement`.
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


class Layout:
    """One kind of file. Options are keyword arguments of the constructor.

    Measurements: write `recognises` (or `opens`, for what is no HDF5) and `open`. Images: the same, and `images`.

    Attributes:
        make_operator: makes a registered operator from its name and parameters. The engine sets it before a file is opened,
            because a layout may not import the registry. Call it as `type(self).make_operator(name, parameters)`.
    """

    name: ClassVar[str] = ""
    make_operator: ClassVar[Callable[[str, dict[str, Any]], Operator] | None] = None

    @classmethod
    def recognises(cls, file: Any) -> bool:
        """Whether an open, read-only `h5py.File` is of this kind. Must not read data."""
        return False

    @classmethod
    def opens(cls, path: Path) -> bool:
        """Whether a file that is no HDF5, or a folder, is of this kind; by its name and first bytes alone."""
        return False

    def open(self, path: Path) -> Measurement:
        """Read everything but the data itself.

        Raises:
            UserError: something is missing or contradictory; says what, where and how to mend it.
        """
        raise UserError(
            f"{path}: layout {self.name!r} holds images, not a measurement; simulate one from it (invsolve simulate), or "
            "train a prior on it (invsolve train)"
        )

    def images(self, path: Path) -> Images:
        """Open images; reads everything but the values.

        Raises:
            UserError: something is missing or contradictory; says what, where and how to mend it.
        """
        raise UserError(f"{path}: layout {self.name!r} holds a measurement, not images; reconstruct it first")


class Sink(Protocol):
    """Where finished items go; what it has accepted survives a kill."""

    def is_done(self, item: int) -> bool: ...

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None: ...
