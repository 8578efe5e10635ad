"""Layout "bart": pairs .cfl and .hdr of the BART toolbox, as Cartesian k-space or as images."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from invsolve.contracts.layout import Make
from invsolve.contracts.measurement import Images, Measurement
from invsolve.datasets.hdf5.reading import fingerprint
from invsolve.datasets.hdf5.rows import OneByOne
from invsolve.datasets.mri.acquired import Acquired
from invsolve.datasets.mri.cfl import DIMENSIONS, is_cfl, read_cfl
from invsolve.datasets.mri.kspace import KSpaceLayout
from invsolve.datasets.mri.masks import where_not_zero
from invsolve.datasets.mri.readout import AlongReadout, whole_readouts
from invsolve.datasets.tomography.projections import option_hash
from invsolve.errors import UserError
from invsolve.operators.mri.masks import Pattern

_READ, _PHS1, _PHS2, _COIL, _MAPS = range(5)
_VOLUMES_KEPT = 64
_TIMES = (DIMENSIONS.index("TIME"), DIMENSIONS.index("TIME2"))


class BART(KSpaceLayout):
    """Cartesian k-space (READ, PHS1, COIL), centred as BART's own, or images; what else has a length makes items.

    K-space with a second phase encoding, PHS2, is transformed along the readout: its planes (PHS1, PHS2) are the items.

    A file with several coils is k-space; one without is images, unless `kspace` says otherwise. Points that are zero in
    every coil of an item are not measured. BART's `fft -u` scales as the k-space here; without -u its images are larger.

    Args:
        kspace: whether the numbers are k-space; default whether there are several coils.
        sensitivities: coil maps of BART (ecalib), the .cfl or .hdr; of several sets the first.
        slices: [start, stop) of the items; default all.
        coil_maps: complex (coils, rows, columns); default `sensitivities`, else calibrated from the centre of k-space.
        calibration: points along each side of that centre that are used, if measured.
        real: put the image's phase into the coil maps, as priors of one channel want it.
        unit: of images.
        whiten: bring coils of unequal or correlated noise to white noise of one level.
        acceleration: keep 1 in so many of the measured columns, at random, to try sparser scans.
        centre_fraction: part of the columns around the centre that is kept then.
        seed: of the random columns.
        mask: keep the points of a pattern with that acceleration instead, such as "poisson-disc"
            (`invsolve.kspace_mask`); frames of a dynamic scan interleave.
        coils: compress the coils, once they are white, to so many virtual ones.
        dynamic: items along TIME and TIME2 are frames of a moving object: those of one place share coil maps, calibrated from
            all of them.
    """

    name = "bart"

    def __init__(
        self,
        kspace: bool | None = None,
        sensitivities: str | None = None,
        slices: list[int] | None = None,
        coil_maps: Tensor | None = None,
        calibration: int = 24,
        real: bool = True,
        unit: str = "",
        whiten: bool = True,
        acceleration: float | None = None,
        centre_fraction: float = 0.08,
        seed: int = 0,
        mask: Pattern | None = None,
        coils: int | None = None,
        dynamic: bool = False,
    ) -> None:
        thinning = (acceleration, centre_fraction, seed)
        super().__init__(slices, coil_maps, calibration, real, True, *thinning, whiten, mask, coils, dynamic)
        self.kspace, self.sensitivities, self.unit = kspace, sensitivities, unit

    @classmethod
    def opens(cls, path: Path) -> bool:
        return is_cfl(path)

    def open(self, path: Path, make: Make) -> Measurement:
        path = Path(path)
        array = read_cfl(path)
        if not (array.shape[_COIL] > 1 if self.kspace is None else self.kspace):
            raise UserError(
                f"{path}: {_sizes(array)} without coils are taken as images, not a measurement; simulate one (invsolve "
                "simulate), or say kspace=true if they are k-space of one coil"
            )
        return super().open(path, make)

    def find(self, path: Path) -> Acquired:
        array = read_cfl(path)
        if array.shape[_MAPS] > 1:
            raise UserError(
                f"{path}: {_sizes(array)}: expected k-space (READ, PHS1, PHS2, COIL) and further dimensions without MAPS; "
                "give coil maps as sensitivities="
            )
        if array.shape[_PHS2] > 1:
            return self._find_volumes(path, array)
        others = [k for k in range(_MAPS, len(DIMENSIONS)) if array.shape[k] > 1]
        items = int(np.prod([array.shape[k] for k in others], dtype=int))

        def read(item: int) -> np.ndarray:
            plane = _plane(array, others, item)[:, :, 0]
            return np.ascontiguousarray(plane.transpose(2, 0, 1))

        zero = int((read(0) == 0).all(0).sum())
        notes = [f"points that are zero in every coil count as not measured, item by item ({zero} in the first)"]
        return Acquired(
            read=read,
            items=items,
            coils=array.shape[_COIL],
            matrix=(array.shape[_READ], array.shape[_PHS1]),
            mask=lambda item: where_not_zero(read(item)),
            maps=self._maps(path, array, others, notes),
            notes=notes,
            places=_places(array, others),
        )

    def _find_volumes(self, path: Path, array: np.ndarray) -> Acquired:
        """3-D k-space as planes along the readout."""
        others = [k for k in range(_MAPS, len(DIMENSIONS)) if array.shape[k] > 1]
        count = int(np.prod([array.shape[k] for k in others], dtype=int))
        length = array.shape[_READ]

        @lru_cache(_VOLUMES_KEPT)
        def mask(volume: int) -> np.ndarray:
            lines = whole_readouts((_plane(array, others, volume) != 0).any(_COIL))
            if lines is None:
                raise UserError(
                    f"{path}: {_sizes(array)}: the readouts of volume {volume} are measured in part, so that it cannot be cut "
                    "into planes along them; leave partial echoes out, or reconstruct it from Python with operator 'mri-3d'"
                )
            return lines

        def coil(volume: int, number: int) -> np.ndarray:
            return _plane(array, others, volume)[..., number]

        planes = AlongReadout(coil, (length, array.shape[_COIL], array.shape[_PHS1], array.shape[_PHS2]))
        notes = [
            f"3-D k-space transformed along the readout: {length} planes (PHS1, PHS2) of each of {count} volumes",
            f"phase encodings that are zero in every coil count as not measured ({int((~mask(0)).sum())} in the first volume)",
        ]
        at_volume = self._maps(path, array, others, notes, planes=True)
        places = [place * length + k for place in _places(array, others) for k in range(length)]
        return Acquired(
            read=lambda item: planes.plane(*divmod(item, length)),
            items=count * length,
            coils=array.shape[_COIL],
            matrix=(array.shape[_PHS1], array.shape[_PHS2]),
            mask=lambda item: mask(item // length),
            maps=at_volume,
            notes=notes,
            volumes=[volume for volume in range(count) for _ in range(length)],
            places=places,
        )

    def _maps(self, path: Path, array: np.ndarray, others: list[int], notes: list[str], planes: bool = False) -> Any:
        """Coil maps of one item, a slice or a plane along the readout, from a file of their own, if one was given."""
        if self.sensitivities is None:
            return None
        maps = read_cfl(Path(self.sensitivities))
        wrong = [k for k in (_READ, _PHS1, _PHS2, _COIL) if maps.shape[k] != array.shape[k]]
        wrong += [k for k in others if maps.shape[k] not in (1, array.shape[k])]
        if wrong:
            raise UserError(
                f"{path}: sensitivities={self.sensitivities} are {_sizes(maps)}, but the k-space {_sizes(array)}; give maps "
                "of the same size"
            )
        if maps.shape[_MAPS] > 1:
            notes.append(_other_sets(maps))
        notes.append(f"coil maps from {Path(self.sensitivities).name}")
        whole = [array.shape[k] for k in others]

        def read(item: int) -> np.ndarray:
            volume, position = divmod(item, array.shape[_READ]) if planes else (item, 0)
            where = np.unravel_index(volume, whole, order="F") if others else ()
            at: list[Any] = [slice(None)] * 4 + [0] * (len(DIMENSIONS) - 4)
            for k, position in zip(others, where, strict=True):
                at[k] = int(position) if maps.shape[k] > 1 else 0
            part = np.asarray(maps[tuple(at)])
            return np.ascontiguousarray((part[position] if planes else part[:, :, 0]).transpose(2, 0, 1))

        return read

    def images(self, path: Path) -> Images:
        path = Path(path)
        array = read_cfl(path)
        if array.shape[_COIL] > 1 or self.kspace:
            raise UserError(f"{path}: {_sizes(array)} are k-space, not images; reconstruct it (invsolve reconstruct)")
        others = [k for k in range(_PHS2, len(DIMENSIONS)) if array.shape[k] > 1]
        items = int(np.prod([array.shape[k] for k in others], dtype=int))
        start, stop = (0, items) if self.slices is None else (self.slices if len(self.slices) == 2 else (-1, -1))
        if not 0 <= start < stop <= items:
            raise UserError(f"{path}: slices={self.slices} must be [start, stop) within the {items} items")

        def read(item: int) -> np.ndarray:
            return _plane(array, others, start + item).reshape(array.shape[:2])[None]

        notes = [f"BART {_sizes(array)}: {items} items of {array.shape[_READ]} x {array.shape[_PHS1]}, complex"]
        return Images(
            OneByOne(stop - start, (1, *array.shape[:2]), read, complex_=True),
            unit=self.unit,
            source=str(path),
            fingerprint=self.fingerprint(path),
            notes=notes,
            missing=[] if self.unit else ["unit of the values: --read unit=NAME"],
        )

    @classmethod
    def beside(cls, path: Path) -> list[Path]:
        return [p for p in (path.with_suffix(ending) for ending in (".cfl", ".hdr")) if p != path]

    def fingerprint(self, path: Path) -> str:
        return "+".join([*(fingerprint(p) for p in (path, *self.beside(path))), f"options:{option_hash(self)}"])


def _other_sets(maps: np.ndarray) -> str:
    """What is said of a file with several sets of maps (soft SENSE), of which one image has use for the first alone."""
    seen = []
    for k in range(maps.shape[_MAPS]):
        at: list[Any] = [slice(None)] * 4 + [k] + [0] * (len(DIMENSIONS) - _MAPS - 1)
        seen.append((np.abs(maps[tuple(at)]) > 0).any(axis=_COIL))
    text = f"the first of {len(seen)} sets of coil maps is used"
    twice = seen[0] & np.any(seen[1:], axis=0)
    if not twice.any():
        return text
    return (
        f"{text}: {twice.sum() / seen[0].sum():.0%} of the pixels that it sees are seen by another, too, since the object is "
        "larger than the field of view; the image is wrong where it folds over: encode a larger field of view"
    )


def _plane(array: np.ndarray, others: list[int], item: int) -> np.ndarray:
    """The first four axes of one item; items run along BART's dimensions, the first fastest."""
    at: list[Any] = [slice(None)] * 4 + [0] * (len(DIMENSIONS) - 4)
    where = np.unravel_index(item, [array.shape[k] for k in others], order="F") if others else ()
    for k, position in zip(others, where, strict=True):
        at[k] = slice(int(position), int(position) + 1) if k < 4 else int(position)
    return np.asarray(array[tuple(at)])


def _places(array: np.ndarray, others: list[int]) -> list[int]:
    """A number per item, the same for those that differ in time alone."""
    if not others:
        return [0]
    sizes = [array.shape[k] for k in others]
    indices = np.indices(sizes).reshape(len(sizes), -1, order="F")
    still = [at for k, at in zip(others, indices, strict=True) if k not in _TIMES]
    places: list[int] = np.unique(np.stack(still), axis=1, return_inverse=True)[1].ravel().tolist() if still else []
    return places or [0] * indices.shape[1]


def _sizes(array: np.ndarray) -> str:
    return (
        " x ".join(f"{size} {name}" for size, name in zip(array.shape, DIMENSIONS, strict=True) if size > 1)
        or "one number"
    )
