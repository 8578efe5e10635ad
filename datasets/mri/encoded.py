"""Scans whose items are no planes of the Cartesian grid, volumes and samples along trajectories, as a Measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.layout import Make, make_for
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import Operator
from invsolve.datasets.hdf5 import to_tensor
from invsolve.datasets.mri.coil_maps import absorb_phase, espirit, espirit_volume, everywhere
from invsolve.datasets.mri.compression import compressed
from invsolve.datasets.mri.kspace import KSpaceLayout
from invsolve.datasets.mri.lines import COUNTERS, Lines
from invsolve.datasets.mri.noise import AS_THEY_ARE, CoilNoise, Whitening, left_alone, whitening
from invsolve.errors import UserError

_MAPS_KEPT = 2
_LOOKED_AT = 3


@dataclass(frozen=True)
class Encoded:
    """Where a file keeps what.

    Attributes:
        name: of the operator.
        size: of the images.
        read: what was measured of one item, complex (coils, *shape), zero where nothing was.
        shape: the same for all items.
        items, coils: how many.
        parameters: of an item's operator, beside its coil maps.
        centre: of some items that share coil maps, k-space around its centre, (coils, *block) complex, centred; from their
            numbers, what makes coils white, and a maker of operators.
        noise: of the coils, and where that is from.
        measured: whether noise scans tell it.
        axes: of y.
        region: as in `Measurement`.
        places: a number per item; items of one number show one place at different times.
        notes: one line each.
    """

    name: str
    size: tuple[int, ...]
    read: Callable[[int], np.ndarray]
    shape: tuple[int, ...]
    items: int
    coils: int
    parameters: Callable[[int], dict[str, Any]]
    centre: Callable[[Sequence[int], Whitening, Make], np.ndarray]
    noise: tuple[CoilNoise, str]
    measured: bool
    axes: str
    region: tuple[tuple[int, int], ...] | None
    places: Sequence[int]
    notes: list[str] = field(default_factory=list)


def told(lines: Lines) -> list[str]:
    """What is noted of lines: those left out, and what tells images apart."""
    notes = []
    if lines.skipped:
        notes.append(
            f"{lines.skipped} of {len(lines.head)} lines are noise, navigator or correction scans, or of others"
        )
    if len(lines.keys) > 1:
        varied = [n for k, n in enumerate(COUNTERS) if len({key[k] for key in lines.keys}) > 1]
        notes.append(f"{len(lines.keys)} images, told apart by {', '.join(varied)}")
    return notes


def averaged(averages: np.ndarray) -> str:
    """What is noted where lines were repeated."""
    return f"lines that were measured {averages.min()} to {averages.max()} times are averaged"


def noise_of_mean(noise: CoilNoise, averages: np.ndarray) -> CoilNoise:
    """The noise of averages: one level for all, that of the mean variance where some points have fewer averages."""
    return CoilNoise(noise.covariance * float((1 / averages).mean()), noise.count)


def chosen(layout: KSpaceLayout, path: Path, items: int) -> tuple[int, int]:
    """[start, stop) of the items that the options ask for.

    Raises:
        UserError: outside of those there are.
    """
    start, stop = (0, items) if layout.slices is None else (layout.slices if len(layout.slices) == 2 else (-1, -1))
    if not 0 <= start < stop <= items:
        raise UserError(f"{path}: slices={layout.slices} must be [start, stop) within the {items} items")
    return start, stop


def middle(size: Sequence[int], kept: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """(first, last + 1) along each axis of the middle of an image of `size` that is kept; None where that is all of it."""
    if tuple(kept) == tuple(size):
        return None
    return tuple(((n - k) // 2, (n - k) // 2 + k) for n, k in zip(size, kept, strict=True))


@dataclass(frozen=True)
class _Items:
    """What was measured of each item, (items, coils, *shape), read when sliced; white."""

    scan: Encoded
    start: int
    stop: int
    white: Whitening = AS_THEY_ARE

    def __len__(self) -> int:
        return self.stop - self.start

    # What is not finite is looked for in the outcome.
    @np.errstate(all="ignore")
    def __getitem__(self, rows: slice, /) -> Tensor:
        picked = range(*rows.indices(len(self)))
        coils = self.scan.coils if self.white.matrix is None else len(self.white.matrix)
        if not picked:
            return torch.empty(0, coils, *self.scan.shape, dtype=torch.complex64)
        return to_tensor(np.stack([self.white(self.scan.read(self.start + item)) for item in picked]))


@np.errstate(all="ignore")
def encoded(layout: KSpaceLayout, path: Path, make: Make, scan: Encoded) -> Measurement:
    """The measurement of a scan, by the options of a layout."""
    start, stop = chosen(layout, path, scan.items)
    notes, missing = scan.notes, []
    noise, how = scan.noise
    white = whitening(noise) if layout.whiten else left_alone(noise)
    y = _Items(scan, start, stop)
    if layout.coils is not None:
        looked_at = np.unique(np.linspace(start, stop - 1, min(len(y), _LOOKED_AT)).round()).astype(int).tolist()
        try:
            white = compressed(white, (white(scan.read(item)) for item in looked_at), layout.coils)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
    y = replace(y, white=white)
    notes += [f"noise sigma {white.sigma:.4g}, {how}", *white.notes]
    if not scan.measured:
        missing.append(f"noise level: {how}, {white.sigma:.4g}; --noise gaussian:SIGMA fixes it")
    operators = _Operators(layout, path, make_for(path, make), scan, white, (start, stop))
    notes.append(operators.origin())
    if layout.coil_maps is None and scan.coils > 1:
        missing.append("coil maps: calibrated from the centre of k-space; --read coil_maps=MAPS.npy gives others")
    return Measurement(
        y=y,
        operator=operators(0),
        noise=Gaussian(white.sigma),
        unit="a.u.",
        source=str(path),
        fingerprint=layout.fingerprint(path),
        notes=notes,
        missing=missing,
        axes=scan.axes,
        operators=operators if len(y) > 1 else None,
        region=scan.region if layout.crop else None,
        image_shape=(1, *scan.size),
    )


class _Operators:
    """The operator of each item, with its coil maps; the last two are kept."""

    def __init__(
        self,
        layout: KSpaceLayout,
        path: Path,
        make: Make,
        scan: Encoded,
        white: Whitening,
        items: tuple[int, int],
    ) -> None:
        self.layout, self.path, self.make, self.scan, self.white, self.items = layout, path, make, scan, white, items
        self.made = lru_cache(_MAPS_KEPT)(self._made)
        self.maps = lru_cache(_MAPS_KEPT)(self._maps)
        given, allowed = layout.coil_maps, ((scan.coils, *scan.size), (scan.items, scan.coils, *scan.size))
        if given is not None and (not given.is_complex() or tuple(given.shape) not in allowed):
            raise UserError(
                f"{path}: coil_maps {given.dtype} {tuple(given.shape)}: expected complex {allowed[0]}, or with the {scan.items} "
                "items in front"
            )

    def __call__(self, item: int) -> Operator:
        return self.made(self.items[0] + item)

    def origin(self) -> str:
        """Where coil maps are from."""
        if self.layout.coil_maps is not None:
            return "coil maps given"
        if self.scan.coils > 1:
            return "coil maps calibrated from the centre of k-space (ESPIRiT)"
        return "one coil, its sensitivity taken as 1"

    def _made(self, item: int) -> Operator:
        owner = item
        if self.layout.dynamic and (
            self.layout.coil_maps is None or self.layout.coil_maps.ndim == len(self.scan.size) + 1
        ):
            owner = self._frames(item)[0]
        maps = self.maps(owner)
        told = {} if maps is None else {"coil_maps": torch.from_numpy(np.ascontiguousarray(maps, np.complex64))}
        return self.make(self.scan.name, **told, **self.scan.parameters(item))

    def _frames(self, item: int) -> list[int]:
        """The items that share coil maps with one, itself included."""
        if not self.layout.dynamic:
            return [item]
        return [k for k in range(*self.items) if self.scan.places[k] == self.scan.places[item]]

    def _maps(self, item: int) -> np.ndarray | None:
        given, scan, white = self.layout.coil_maps, self.scan, self.white
        maps: np.ndarray | None = None
        if given is not None:
            maps = white(everywhere((given if given.ndim == len(scan.size) + 1 else given[item]).numpy()))
        elif scan.coils == 1:
            if not self.layout.real:
                return None
            maps = np.ones((1, *scan.size), np.complex64)
        if maps is not None and not self.layout.real:
            return maps
        centre = scan.centre(self._frames(item), white, self.make)
        if maps is None:
            if len(scan.size) == 2:
                maps = espirit(centre, (scan.size[0], scan.size[1]), white.sigma, crop=0.0).maps
            else:
                maps = espirit_volume(centre, scan.size, white.sigma)
            # The image is that of the coils as they are, whose root sum of squares it then has.
            maps = maps / np.maximum(white.lengths(maps), np.finfo(np.float32).tiny)
        return absorb_phase(maps, centre) if self.layout.real else maps
