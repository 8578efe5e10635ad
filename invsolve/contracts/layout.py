"""Layouts: one kind of file each, read into a measurement or into images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from invsolve.contracts.measurement import Images, Measurement
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.errors import UserError


class Make(Protocol):
    """Makes what is registered from its name and parameters; handed to a layout, because a layout knows no registry.

    `make("ct", image_size=128, angles=60)` is an operator, `make.noise("gaussian", sigma=0.01)` a noise. `invsolve.make` is
    the one that everybody hands in.
    """

    def __call__(self, name: str, /, **parameters: Any) -> Operator:
        """An operator, as `invsolve.operator` makes it."""
        ...

    def noise(self, name: str, /, **parameters: Any) -> Noise:
        """A noise, as `invsolve.noise` makes it."""
        ...


@dataclass(frozen=True)
class _MakeFor:
    """A maker whose errors begin with a place."""

    where: str
    make: Make

    def __call__(self, name: str, /, **parameters: Any) -> Operator:
        try:
            return self.make(name, **parameters)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None

    def noise(self, name: str, /, **parameters: Any) -> Noise:
        try:
            return self.make.noise(name, **parameters)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None


def make_for(where: str | Path, make: Make) -> Make:
    """The same maker, whose errors begin with the file (and the place in it) that asked."""
    return _MakeFor(str(where), make)


class Layout:
    """One kind of file. Options are keyword arguments of the constructor.

    Measurements: write `recognises` (or `opens`, for what is no HDF5) and `open`. Images: the same, and `images`.
    """

    name: ClassVar[str] = ""

    @classmethod
    def recognises(cls, file: Any) -> bool:
        """Whether an open, read-only `h5py.File` is of this kind. Must not read data."""
        return False

    @classmethod
    def resembles(cls, file: Any) -> bool:
        """Whether an open `h5py.File` that no layout recognises could be of this kind; `inspect` then suggests the layout."""
        return False

    @classmethod
    def opens(cls, path: Path) -> bool:
        """Whether a file that is no HDF5, or a folder, is of this kind; by its name and first bytes alone."""
        return False

    @classmethod
    def beside(cls, path: Path) -> list[Path]:
        """Files that are read with this one, by their names, such as a header; those that an HDF5 file names are known anyway."""
        return []

    def open(self, path: Path, make: Make) -> Measurement:
        """Read everything but the data itself.

        Args:
            path: the file or folder.
            make: makes registered operators, `make("ct", image_size=128, angles=60)`, and noises, `make.noise("gaussian",
                sigma=0.01)`; handed in, because a layout knows no registry. `make_for` names the file in its errors.

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
