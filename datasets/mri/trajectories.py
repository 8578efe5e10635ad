"""Lines with a trajectory each, radial, spiral or any other: samples of "mri-noncartesian" or "mri-noncartesian-3d"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from invsolve.contracts.layout import Make
from invsolve.datasets.hdf5 import open_readonly
from invsolve.datasets.mri.encoded import Encoded, chosen, middle, told
from invsolve.datasets.mri.kspace import KSpaceLayout
from invsolve.datasets.mri.lines import Lines, one_handle
from invsolve.datasets.mri.noise import CoilNoise, Whitening, sample_covariance
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG

#: Frames whose samples coil maps are calibrated from.
_FRAMES = 16
_TRAJECTORIES_KEPT = 64
#: Cells of k-space around the centre that hold a sample, in parts of all, of which coil maps can be calibrated; the least
#: block of them.
_COVERED, _LEAST = 0.75, 8
#: Of the distance of the farthest sample: beyond, there is least signal.
_EDGE = 0.9


class Options(Protocol):
    """The options of a layout that are for trajectories."""

    trajectory_unit: str
    spokes: int | None


def trajectories(layout: Any, lines: Lines, noise: CoilNoise | None) -> Encoded:
    """What a file of lines with trajectories holds.

    Args:
        layout: the options, a `KSpaceLayout` with `Options`.
        lines: of the file.
        noise: of the coils, where noise scans tell.

    Raises:
        UserError: trajectories are missing, differ in number or length, or options are for Cartesian lines.
    """
    start, stop = chosen(layout, lines.path, len(lines.keys))
    scan = _Samples(layout, layout, lines, (start, stop))
    notes = told(lines)
    spokes, samples = scan.shape
    notes.append(
        f"{spokes} lines of {samples} samples along a trajectory ({lines.header.trajectory or 'in the file'}), "
        f"{lines.coils} coils; density compensation by the trajectory"
    )
    if scan.weights:
        notes.append(
            "the third number of each sample is taken for a density compensation of the scanner's, and left out"
        )
    how = (
        "from the noise scans"
        if noise
        else "at the edge of k-space, where there is least signal; noise scans are not there"
    )
    depth, rows, columns = lines.matrix
    kept = lines.header.kept((rows, columns))
    kept_size = kept if scan.dimensions == 2 else (lines.header.kept_depth(depth), *kept)
    return Encoded(
        name=scan.name,
        size=scan.size,
        read=scan.read,
        shape=scan.shape,
        items=len(lines.keys),
        coils=lines.coils,
        parameters=scan.parameters,
        centre=scan.centre,
        noise=(noise or scan.noise(start), how),
        measured=noise is not None,
        axes="item coil spoke sample",
        region=middle(scan.size, kept_size),
        places=lines.places(),
        notes=notes,
    )


class _Samples:
    """Samples of each item, and where they were measured."""

    def __init__(self, layout: KSpaceLayout, options: Options, lines: Lines, items: tuple[int, int]) -> None:
        self.layout, self.options, self.lines = layout, options, lines
        where = lines.where
        if layout.acceleration is not None or layout.mask is not None:
            raise UserError(f"{where}: acceleration= and mask= are for Cartesian lines; keep fewer with spokes=N")
        used = np.concatenate([lines.chosen(item) for item in range(*items)])
        dimensions = np.unique(lines.head["trajectory_dimensions"][used]).tolist()
        if dimensions == [0]:
            raise UserError(
                f"{where}: the header says {lines.header.trajectory!r}, but its lines carry no trajectory; write one with each "
                "line, (samples, 2 or 3) in cycles per pixel"
            )
        if len(dimensions) != 1 or dimensions[0] not in (2, 3):
            raise UserError(
                f"{where}: trajectories have {' and '.join(map(str, dimensions))} numbers per sample, expected 2 (x, y) or "
                "3 (x, y, z) in all; write it again"
            )
        depth, rows, columns = lines.matrix
        self.stored: int = dimensions[0]
        #: With one partition, x and y are followed by a weight, if by anything.
        self.weights = self.stored == 3 and depth == 1
        self.dimensions = 3 if depth > 1 else 2
        self.name = "mri-noncartesian-3d" if depth > 1 else "mri-noncartesian"
        self.size = (depth, rows, columns) if depth > 1 else (rows, columns)
        lengths = np.unique((lines.stop - lines.first)[used]).tolist()
        counts = sorted({len(lines.chosen(item)) for item in range(*items)})
        if len(lengths) > 1 or lengths[0] < 1:
            raise UserError(
                f"{where}: lines have {lengths[0]} to {lengths[-1]} samples that are not discarded, expected one number in all; "
                "write it again"
            )
        if options.spokes is not None and not 1 <= options.spokes <= counts[0]:
            raise UserError(f"{where}: spokes={options.spokes} must be from 1 to {counts[0]}, the lines of an image")
        if options.spokes is None and len(counts) > 1:
            raise UserError(
                f"{where}: images have {counts[0]} to {counts[-1]} lines; take so many of each, spokes={counts[0]}, or images "
                "that have the same number, slices=START,STOP"
            )
        self.shape = (options.spokes or counts[0], int(lengths[0]))
        self.trajectory = lru_cache(_TRAJECTORIES_KEPT)(self._trajectory)

    def _lines(self, item: int) -> list[int]:
        lines: list[int] = self.lines.chosen(item)[: self.shape[0]].tolist()
        return lines

    def _used(self, line: int) -> slice:
        """Samples that are not discarded, as they were measured."""
        head = self.lines.head
        first, count = int(head["discard_pre"][line]), int(head["number_of_samples"][line])
        return slice(first, count - int(head["discard_post"][line]))

    def read(self, item: int) -> np.ndarray:
        with one_handle, open_readonly(self.lines.path) as file:
            stored = file[self.lines.name]
            spokes = [self.lines.samples(stored, line)[:, self._used(line)] for line in self._lines(item)]
        return np.stack(spokes, 1)

    def _trajectory(self, item: int) -> np.ndarray:
        """Cycles per encoded field of view along the axes of the image, (spokes, samples, dimensions) float64."""
        chosen_lines = self._lines(item)
        with one_handle, open_readonly(self.lines.path) as file:
            stored = file[self.lines.name]
            spokes = [self.lines.trajectory(stored, line)[self._used(line)] for line in chosen_lines]
        # The first axis of the encoded matrix, the readout of Cartesian lines, is that of the rows.
        k = np.stack(spokes).astype(np.float64)
        size = np.array(self.size, np.float64)
        factor = {"cycles/fov": np.ones_like(size), "cycles/pixel": size, "rad/pixel": size / (2 * math.pi)}
        scale = factor[self.options.trajectory_unit]
        if self.dimensions == 2:
            k = k[..., :2] * scale
        elif self.stored == 3:
            k = k[..., [2, 0, 1]] * scale
        else:
            partitions = self.lines.partition[chosen_lines] - self.size[0] // 2
            along = np.broadcast_to(partitions[:, None, None].astype(np.float64), (*k.shape[:2], 1))
            k = np.concatenate([along, k * scale[1:]], -1)
        if not np.isfinite(k).all():
            raise UserError(
                f"{self.lines.where}: trajectory of image {item} has {int((~np.isfinite(k)).sum())} NaN or infinite entries; "
                "write it again"
            )
        reach = np.abs(k).reshape(-1, len(size)).max(0)
        # Trajectories are kept in single precision.
        if (reach > size / 2 * (1 + 1e-6)).any():
            axis = int((reach / size).argmax())
            raise UserError(
                f"{self.lines.where}: trajectory reaches {reach[axis] / size[axis]:.4g} cycles per pixel, beyond 1/2, if it "
                f"is in {self.options.trajectory_unit}; say what it is in, --read trajectory_unit=cycles/fov or rad/pixel"
            )
        return k

    def parameters(self, item: int) -> dict[str, Any]:
        name = "image_size" if self.dimensions == 2 else "volume_size"
        return {name: list(self.size), "trajectory": torch.from_numpy(self.trajectory(item))}

    def centre(self, items: Sequence[int], white: Whitening, make: Make) -> np.ndarray:
        """K-space on a small grid around its centre, by least squares from the samples of these items that lie there."""
        items = items[:_FRAMES]
        k = np.concatenate([self.trajectory(item).reshape(-1, self.dimensions) for item in items])
        values = np.concatenate([white(self.read(item).reshape(self.lines.coils, -1)) for item in items], 1)
        side = self._side(k)
        near = (np.abs(k) <= side / 2).all(1)
        name = "image_size" if self.dimensions == 2 else "volume_size"
        grid = [side] * self.dimensions
        small: Any = make(self.name, **{name: grid}, trajectory=torch.from_numpy(k[near]))
        y = torch.from_numpy(np.ascontiguousarray(values[:, near]).astype(np.complex64))[:, None]
        rho = 1e-4 * float(small.norm()) ** 2
        image = small.prox(torch.zeros(len(y), 1, *grid, dtype=y.dtype), y, rho, CG(1e-4, 50))[:, 0].numpy()
        axes = tuple(range(1, image.ndim))
        spectrum = np.fft.fftn(np.fft.ifftshift(image, axes), axes=axes, norm="ortho")
        return np.asarray(np.fft.fftshift(spectrum, axes)).astype(np.complex64)

    def _side(self, k: np.ndarray) -> int:
        """Of the largest block around the centre whose cells hold samples."""
        side = 2 * (min(self.layout.calibration, *self.size) // 2)
        while side >= min(_LEAST, *self.size):
            cells = np.floor(k[(np.abs(k) < side / 2).all(1)] + side / 2).astype(int)
            count = len(np.unique(np.ravel_multi_index(tuple(cells.T), (side,) * self.dimensions))) if len(cells) else 0
            if count >= _COVERED * side**self.dimensions:
                return side
            side -= 2
        raise UserError(
            f"{self.lines.where}: too little around the centre of k-space is measured to calibrate coil maps, or the phase of "
            "the image; give coil_maps=MAPS.npy, complex (coils, *size), and real=false"
        )

    def noise(self, item: int) -> CoilNoise:
        """From the samples farthest from the centre."""
        values, k = self.read(item), self.trajectory(item) / np.array(self.size)
        if not np.isfinite(values).all():
            raise UserError(
                f"{self.lines.where}: image {item} has {int((~np.isfinite(values)).sum())} NaN or infinite values; leave it out "
                "with slices="
            )
        distance = np.linalg.norm(k, axis=-1)
        edge = values[:, distance >= _EDGE * distance.max()].astype(np.complex128)
        noise = sample_covariance(edge)
        if not (noise.covariance.diagonal().real > 0).any():
            raise UserError(
                f"{self.lines.where}: image {item} is zero at the edge of k-space; leave it out with slices="
            )
        return noise
