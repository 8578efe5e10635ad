"""How files enter and leave: a layout reads one kind of file into a Measurement; a sink takes finished items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

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
        notes: one line each on what was done on the way (flat field, thinning), for the record and the terminal.
    """

    y: Rows
    operator: Operator
    noise: Noise | None = None
    scale: Scale | None = None
    truth: Rows | None = None
    unit: str = ""
    source: str = ""
    fingerprint: str = ""
    notes: list[str] = field(default_factory=list)


class Layout:
    """One kind of measurement file. Options are keyword arguments of the constructor; two methods do the work.

    Attributes:
        make_operator: makes a registered operator from its name and parameters. The engine sets it before a file is opened,
            because a layout may not import the registry. Call it as `type(self).make_operator(name, parameters)`.
    """

    name: ClassVar[str] = ""
    make_operator: ClassVar[Callable[[str, dict[str, Any]], Operator] | None] = None

    @classmethod
    def recognises(cls, file: Any) -> bool:
        """Whether an open, read-only `h5py.File` is of this kind. Must not read data."""
        raise NotImplementedError

    def open(self, path: Path) -> Measurement:
        """Read everything but the data itself.

        Raises:
            UserError: something is missing or contradictory; says what, where and how to mend it.
        """
        raise NotImplementedError


class Sink(Protocol):
    """Where finished items go; what it has accepted survives a kill."""

    def is_done(self, item: int) -> bool: ...

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None: ...
