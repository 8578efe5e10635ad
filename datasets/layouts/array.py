"""Layout "array": a plain HDF5 dataset, .npy, TIFF, PNG or JPEG, or a folder, with axes and units given by the user."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.layout import Layout, Make, make_for
from invsolve.contracts.measurement import Images, Measurement
from invsolve.datasets.extras import check_regular
from invsolve.datasets.hdf5.arrays import Source, files_of, open_array, opens_array
from invsolve.datasets.hdf5.reading import doubles, fingerprint
from invsolve.datasets.hdf5.rows import OneByOne
from invsolve.datasets.mri.acquired import Acquired
from invsolve.datasets.mri.kspace import KSpaceLayout
from invsolve.datasets.mri.masks import where_not_zero
from invsolve.datasets.tomography.centre import find_centre
from invsolve.datasets.tomography.counts import kept
from invsolve.datasets.tomography.projections import option_hash
from invsolve.datasets.tomography.rings import suppress_rings
from invsolve.datasets.tomography.row_cache import RowCache, gather
from invsolve.datasets.tomography.sinograms import Beam, degrees_of, reader
from invsolve.errors import UserError

_ITEM, _CHANNEL, _ANGLE, _COIL = "item", "channel", "angle", "coil"
_ROW, _COLUMN = "row", "column"
_NAMES = {
    **dict.fromkeys(("item", "items", "n", "slice", "z", "sample", "image", "frame"), _ITEM),
    **dict.fromkeys(("channel", "channels", "c"), _CHANNEL),
    **dict.fromkeys(("theta", "angle", "angles", "view", "projection"), _ANGLE),
    **dict.fromkeys(("coil", "coils"), _COIL),
    **dict.fromkeys(("row", "rows", "y", "readout"), _ROW),
    **dict.fromkeys(("column", "columns", "col", "x", "phase", "detector"), _COLUMN),
}
#: Weights of red, green and blue in the brightness of a picture as it is stored (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114])
_EXAMPLES = "'item,row,column' for images, 'row,angle,detector' for sinograms, 'slice,coil,row,column' for k-space"


class Array(Layout):
    """Whatever its axes say: images (item, channel, row, column), sinograms (row, angle, detector), or k-space (coil ...).

    Axes that are not there count one. Sinograms are one per detector row; k-space is centred, and points that are zero in
    every coil of an item are not measured. PNG, JPEG and TIFF name the axes of images themselves; arrays (rows, columns), (items,
    rows, columns) and (items, channels, rows, columns) are taken as such where images are asked for and their shape leaves no
    doubt.

    Args:
        axes: names of the array's axes in their order, such as "z,y,x", "theta,y,x" or "coil,row,column"; default what the
            file says (TIFF, pictures, the attribute axes of an HDF5 dataset).
        dataset: name in an HDF5 file that holds several.
        unit: of the image; for sinograms default 1/length_unit.
        angles: of sinograms: a count of angles, equally spaced on [0, 180) degrees; a range such as 0:360 (the end left
            out), equally divided; or each angle in degrees (list or .npy).
        values: what sinograms hold: line integrals; transmissions between 0 and 1, or counts to be divided by flat or air,
            of which -log is taken.
        centre: detector pixel (0-based, may be fractional) onto which the rotation axis projects; default search it.
        pixel_size: width of a (detector) pixel, in length_unit; default 1 pixel.
        length_unit: such as "mm".
        thin: keep the first of each complete group of so many angles.
        coil_maps: of k-space: complex (coils, rows, columns); default calibrated from its centre.
        real: of k-space: put the image's phase into the coil maps, as priors of one channel want it.
        items: [start, stop) of the items; default all.
        rings: of sinograms: suppress ring artefacts, as in layout "dxchange": width in detector pixels, such as 9; 0 for none.
        angle_unit: of angles that are given one by one.
        flat, dark: of sinograms: files (.npy, TIFF) with frames of the beam without object, and without beam.
        air: of sinograms: so many outermost detector columns at each side see air in every projection.
        grey: of images: take the luma of red, green and blue (0.299, 0.587, 0.114) as one channel.
        coils: of k-space: compress the coils, once they are white, to so many virtual ones.
        dynamic: of k-space: items are frames of a moving object and share coil maps, calibrated from all of them.
    """

    name = "array"

    def __init__(
        self,
        axes: str | list[str] | None = None,
        dataset: str | None = None,
        unit: str = "",
        angles: int | str | Tensor | None = None,
        values: Literal["integrals", "transmissions", "counts"] | None = None,
        centre: float | None = None,
        pixel_size: float | None = None,
        length_unit: str = "pixel",
        thin: int = 1,
        coil_maps: Tensor | None = None,
        real: bool = True,
        items: list[int] | None = None,
        rings: int = 0,
        angle_unit: Literal["degrees", "radians"] | None = None,
        flat: str | None = None,
        dark: str | None = None,
        air: int = 0,
        grey: bool = False,
        coils: int | None = None,
        dynamic: bool = False,
    ) -> None:
        if pixel_size is not None and not pixel_size > 0:
            raise UserError(f"layout 'array': pixel_size must be > 0, got {pixel_size}")
        if (pixel_size is None) != (length_unit == "pixel"):
            raise UserError("layout 'array': give pixel_size= and length_unit= together, such as 0.5 and 'mm'")
        if not thin > 0:
            raise UserError(f"layout 'array': thin must be > 0, got {thin}")
        self.axes, self.dataset, self.unit, self.angles, self.values = axes, dataset, unit, angles, values
        self.centre, self.pixel_size, self.length_unit, self.thin = centre, pixel_size, length_unit, thin
        if rings and (rings < 3 or rings % 2 == 0):
            raise UserError(f"layout 'array': rings must be 0 or an odd width of 3 or more pixels, got {rings}")
        if angle_unit not in (None, "degrees", "radians"):
            raise UserError(f"layout 'array': angle_unit must be degrees or radians, got {angle_unit!r}")
        self.coil_maps, self.real, self.items, self.rings, self.angle_unit = coil_maps, real, items, rings, angle_unit
        self.flat, self.dark, self.air, self.grey = flat, dark, air, grey
        self.coils, self.dynamic = coils, dynamic
        if isinstance(angles, str) and angles.endswith(".npy"):
            self.angles = _loaded(angles)

    @classmethod
    def opens(cls, path: Path) -> bool:
        return opens_array(path)

    def open(self, path: Path, make: Make) -> Measurement:
        stack = _Stack(self, Path(path))
        if stack.has(_ANGLE):
            return self._sinograms(stack, make_for(path, make))
        if stack.has(_COIL) or stack.source.dtype.kind == "c":
            return _ArrayKSpace(stack, self).open(stack.path, make)
        raise UserError(
            f"{path}: axes {stack.names} are images, not a measurement; simulate one (invsolve simulate), or name an angle "
            f"or coil axis: {_EXAMPLES}"
        )

    def images(self, path: Path) -> Images:
        stack = _Stack(self, Path(path), images=True)
        if stack.has(_ANGLE) or stack.has(_COIL):
            raise UserError(
                f"{path}: axes {stack.names} are a measurement, not images; reconstruct it (invsolve reconstruct)"
            )
        channels = stack.length(_CHANNEL)
        if self.grey and channels not in (1, 3):
            raise UserError(f"{path}: grey=true takes red, green and blue, but there are {channels} channels")
        order, white, notes = (_CHANNEL, _ROW, _COLUMN), stack.source.white, list(stack.notes)
        if white is not None:
            notes.append("MINISWHITE (the least value is white): inverted, so that larger is brighter")
        if channels == 3 and not self.grey:
            notes.append("3 channels; grey=true makes one of red, green and blue")

        def read(item: int) -> np.ndarray:
            values = stack.item(item, order)
            if white is not None:
                values = white - doubles(values)
            return np.tensordot(_LUMA, values, 1)[None] if self.grey and channels == 3 else values

        shape = (1 if self.grey else channels, stack.length(_ROW), stack.length(_COLUMN))
        return Images(
            OneByOne(stack.count, shape, read, stack.source.dtype.kind == "c"),
            unit=self.unit,
            spacing=(self.pixel_size,) * 2 if self.pixel_size else None,
            spacing_unit=self.length_unit if self.pixel_size else "",
            source=str(path),
            fingerprint=stack.fingerprint(),
            notes=notes,
            missing=[] if self.unit else ["unit of the values: --read unit=NAME"],
        )

    def _sinograms(self, stack: _Stack, make: Make) -> Measurement:
        path, notes, missing = stack.path, list(stack.notes), []
        if self.values is None:
            raise UserError(
                f"{path}: say what the sinograms hold: values=integrals (line integrals, -log already taken), "
                "values=transmissions (between 0 and 1) or values=counts (with flat= or air=)"
            )
        if stack.source.white is not None:
            notes.append("MINISWHITE: the numbers are taken as they are stored")
        count = stack.length(_ANGLE)
        degrees = degrees_of(self.angles, count, path, self.angle_unit)
        picked = kept(count, self.thin)
        # A detector row is an item, and so is what else there are several of.
        order = (_ANGLE, _COLUMN)
        detectors = stack.length(_COLUMN)

        integrals = reader(stack.by_rows(order), self.values, self._beam(stack, notes), stack.row)

        def read(item: int, every: int = self.thin) -> np.ndarray:
            values = integrals(item)[kept(count, every)]
            return suppress_rings(values, self.rings) if self.rings else values

        if self.rings:
            notes.append(f"rings suppressed: sorted projections, median over {self.rings} detector pixels")

        y = OneByOne(stack.count, (len(degrees[picked]), detectors), read)
        if self.centre is None:
            looked = np.unique(np.linspace(0, stack.count - 1, min(stack.count, 8)).round().astype(int)).tolist()
            mean = np.mean([read(i, 1) for i in looked], axis=0)
            if not np.isfinite(mean).all():
                raise UserError(f"{path}: has NaN or infinite values in items {looked}; choose others with items=")
            centre, how = find_centre(mean, degrees, lambda parameters: make("ct", **parameters), str(path))
            notes.append(f"rotation centre {centre:.2f} found ({how}); centre= fixes it")
            missing.append(f"rotation centre: searched, {centre:.2f}; --read centre={centre:.2f} fixes it")
        else:
            centre = self.centre
        if self.pixel_size is None:
            missing.append(
                "pixel size: the image is in 1/pixel; give --read pixel_size=0.005 --read length_unit=mm (with your value)"
            )
        missing.append("noise level: give --noise gaussian:SIGMA")
        parameters = {
            "image_size": detectors,
            "angles": degrees[picked].tolist(),
            "detectors": detectors,
            "centre": centre,
            "pixel_size": self.pixel_size or 1.0,
        }
        return Measurement(
            y=y,
            operator=make("ct", **parameters),
            unit=self.unit or f"1/{self.length_unit}",
            source=str(path),
            fingerprint=stack.fingerprint(),
            notes=notes,
            missing=missing,
            axes="item angle detector",
        )

    def _beam(self, stack: _Stack, notes: list[str]) -> Beam | None:
        """What counts are divided by; None where nothing was given.

        Raises:
            UserError: counts without it, or line integrals with it.
        """
        given = self.flat is not None or self.dark is not None or self.air > 0
        if self.values == "counts" and self.flat is None and not self.air:
            raise UserError(
                f"{stack.path}: values=counts needs the beam without the object: flat=FILE (and dark=FILE), or air=COLUMNS at "
                "each side that see air in every projection"
            )
        if self.values == "integrals" and given:
            raise UserError(f"{stack.path}: flat=, dark= and air= are for counts and transmissions; say values=counts")
        if not given:
            return None
        return Beam(stack.path, self.flat, self.dark, self.air, stack.length(_ROW), stack.length(_COLUMN), notes)


class _Stack:
    """An array whose axes have names; items are what is no image or measurement axis."""

    def __init__(self, layout: Array, path: Path, images: bool = False) -> None:
        self.layout, self.path = layout, path
        self.source: Source = open_array(path, layout.dataset)
        shape, self.notes = self.source.shape, list(self.source.notes)
        axes = layout.axes or self.source.axes or None
        if axes is None and images and (axes := _images(shape, self.source.dtype.kind)):
            self.notes.append(f"axes {axes} by the shape {shape}, as nothing names them; axes= does")
        self.axes = _named(axes, shape, path)
        self.names = ",".join(self.axes)
        if not all(shape):
            raise UserError(f"{path}: the array {shape} is empty; write it again")
        # A sinogram per detector row: rows are items there.
        self.item_axes = [k for k, n in enumerate(self.axes) if n == _ITEM or (n == _ROW and _ANGLE in self.axes)]
        needed = [_COLUMN] if _ANGLE in self.axes else [_ROW, _COLUMN]
        for name in needed:
            if name not in self.axes:
                raise UserError(f"{path}: axes {self.names} name no {name}; expected such as {_EXAMPLES}")
        self.whole = int(np.prod([shape[k] for k in self.item_axes], dtype=int))
        span = [0, self.whole] if layout.items is None else layout.items
        self.start, stop = span if len(span) == 2 else (-1, -1)
        if not 0 <= self.start < stop <= self.whole:
            raise UserError(f"{path}: items={layout.items} must be [start, stop) within the {self.whole} items")
        self.count = stop - self.start

    def has(self, name: str) -> bool:
        return name in self.axes

    def length(self, name: str) -> int:
        return self.source.shape[self.axes.index(name)] if name in self.axes else 1

    def item(self, index: int, order: tuple[str, ...]) -> np.ndarray:
        """One item with its axes in this order; those that are not there have length 1."""
        where = np.unravel_index(index + self.start, [self.source.shape[k] for k in self.item_axes] or [1])
        selection: list[Any] = [slice(None)] * len(self.source.shape)
        for axis, position in zip(self.item_axes, where, strict=False):
            selection[axis] = int(position)
        values = self.source.read(tuple(selection))
        rest = [n for k, n in enumerate(self.axes) if k not in self.item_axes]
        values = values.transpose([rest.index(n) for n in order if n in rest])
        return values.reshape([self.length(n) for n in order])

    def by_rows(self, order: tuple[str, ...]) -> Callable[[int], np.ndarray]:
        """`item`, for an array of three axes that lies projection by projection: each is read once, not once per item."""
        chunks = self.source.chunks
        if len(self.axes) != 3 or len(self.item_axes) != 1 or chunks is None:
            return lambda index: self.item(index, order)
        axes = (self.axes.index(order[0]), self.item_axes[0], self.axes.index(order[1]))
        shape, size = self.source.shape, self.source.dtype.itemsize

        def load(rows: Sequence[int], frames: Sequence[int]) -> np.ndarray:
            return gather(self.source.read, shape, chunks, axes, rows, frames, size)

        frames = range(shape[axes[0]])
        row_bytes = len(frames) * shape[axes[2]] * size
        whole = chunks[axes[0]] >= len(frames)
        cache = RowCache(
            load,
            (self.start, self.start + self.count),
            frames,
            chunks[axes[1]],
            row_bytes,
            whole,
            [k // chunks[axes[0]] for k in frames],
        )
        return lambda index: cache.read(self.start + index, self.start + index + 1)[0]

    def row(self, index: int) -> int:
        """The detector row of an item of sinograms; 0 where there is one."""
        where = np.unravel_index(index + self.start, [self.source.shape[k] for k in self.item_axes] or [1])
        rows = [int(at) for k, at in zip(self.item_axes, where, strict=False) if self.axes[k] == _ROW]
        return rows[0] if rows else 0

    def fingerprint(self) -> str:
        files = files_of(self.path)
        return "+".join([*(fingerprint(f) for f in files[:64]), f"{len(files)}", f"options:{option_hash(self.layout)}"])


class _ArrayKSpace(KSpaceLayout):
    """K-space in a plain array."""

    name: ClassVar[str] = "array"
    picked_by: ClassVar[str] = "items"

    def __init__(self, stack: _Stack, given: Array) -> None:
        super().__init__(coil_maps=given.coil_maps, real=given.real, coils=given.coils, dynamic=given.dynamic)
        self.stack = stack

    def find(self, path: Path) -> Acquired:
        stack, order = self.stack, (_COIL, _ROW, _COLUMN)
        if stack.source.dtype.kind != "c":
            raise UserError(f"{path}: holds {stack.source.dtype}, expected complex numbers for k-space; write it again")
        zero = int((stack.item(0, order) == 0).all(0).sum())
        return Acquired(
            read=lambda item: stack.item(item, order).astype(np.complex64),
            items=stack.count,
            coils=stack.length(_COIL),
            matrix=(stack.length(_ROW), stack.length(_COLUMN)),
            mask=lambda item: where_not_zero(stack.item(item, order)),
            notes=[f"points that are zero in every coil count as not measured, item by item ({zero} in the first)"],
            missing=[],
        )

    def _fingerprint(self, path: Path) -> str:
        return self.stack.fingerprint()


def _images(shape: tuple[int, ...], kind: str) -> str | None:
    """Names of the axes of images that nothing names, where one reading alone makes sense."""
    few = 4  # as many channels as a picture has
    if len(shape) == 2:
        return "row,column"
    if len(shape) == 3 and kind != "c" and shape[0] > few and shape[2] > few:
        return "item,row,column"
    return "item,channel,row,column" if len(shape) == 4 and shape[1] <= few < shape[3] else None


def _loaded(file: str) -> Tensor:
    check_regular(Path(file))
    try:
        values = np.load(file, allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds on damaged headers
        raise UserError(f"layout 'array': angles={file}: cannot be read ({' '.join(str(error).split())})") from None
    if values.dtype.kind not in "fiu":
        raise UserError(f"layout 'array': angles={file} holds {values.dtype}, expected degrees")
    return torch.from_numpy(doubles(values))


def _named(axes: str | list[str] | None, shape: tuple[int, ...], path: Path) -> list[str]:
    if axes is None:
        raise UserError(f"{path}: the array {shape} has no names for its axes; give axes=, such as {_EXAMPLES}")
    words = axes if isinstance(axes, list) else [w for w in re.split(r"[\s,:]+", axes.strip()) if w]
    unknown = [w for w in words if w.lower() not in _NAMES]
    if unknown:
        raise UserError(f"{path}: axes={axes!r}: {unknown[0]!r} is no axis; expected such as {_EXAMPLES}")
    names = [_NAMES[w.lower()] for w in words]
    if len(names) != len(shape):
        raise UserError(f"{path}: axes={axes!r} names {len(names)} axes, but the array is {shape}")
    single = [n for n in names if n != _ITEM]
    if len(set(single)) != len(single):
        raise UserError(f"{path}: axes={axes!r} names one axis twice; expected such as {_EXAMPLES}")
    return names
