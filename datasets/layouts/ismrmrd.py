"""Layout "ismrmrd": raw MRI data one acquired line after another, with an XML header (ISMRMRD version 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from torch import Tensor

from invsolve.contracts.layout import Make
from invsolve.contracts.measurement import Measurement
from invsolve.datasets.hdf5 import dataset, members, open_readonly, stored_text
from invsolve.datasets.mri.acquired import Acquired
from invsolve.datasets.mri.encoded import averaged, encoded, noise_of_mean, told
from invsolve.datasets.mri.header import parse_header
from invsolve.datasets.mri.kspace import KSpaceLayout
from invsolve.datasets.mri.lines import Lines, heads, one_handle
from invsolve.datasets.mri.masks import in_columns
from invsolve.datasets.mri.noise import CoilNoise
from invsolve.datasets.mri.trajectories import trajectories
from invsolve.datasets.mri.volumes import volumes
from invsolve.errors import UserError
from invsolve.operators.mri.masks import Pattern


class ISMRMRD(KSpaceLayout):
    """Lines of an ISMRMRD file; items are its images or volumes (slices, contrasts, phases, repetitions, sets).

    Noise scans give the noise of the coils and, like navigator and correction lines, are no part of k-space. Discarded samples
    are left out. Cartesian lines that were acquired backwards are turned, repeated ones averaged; they go to their encoding
    steps relative to the centres in the header, samples to their place relative to center_sample. Encoded in 3-D they make
    volumes (depth, rows along the readout, columns), of operator "mri-3d". Lines with a trajectory (x, y along rows and
    columns; a partition, or z, along the depth) are samples of "mri-noncartesian" or "mri-noncartesian-3d".
    """

    name = "ismrmrd"

    def __init__(
        self,
        slices: list[int] | None = None,
        coil_maps: Tensor | None = None,
        calibration: int = 24,
        real: bool = True,
        crop: bool = True,
        acceleration: float | None = None,
        centre_fraction: float = 0.08,
        seed: int = 0,
        group: str | None = None,
        encoding: int = 0,
        whiten: bool = True,
        mask: Pattern | None = None,
        coils: int | None = None,
        dynamic: bool = False,
        trajectory_unit: Literal["cycles/pixel", "cycles/fov", "rad/pixel"] = "cycles/pixel",
        spokes: int | None = None,
    ) -> None:
        """Reading options.

        Args:
            slices: [start, stop) of the images (items); default all.
            coil_maps: complex (coils, rows, columns), or (slices, coils, rows, columns), of volumes with their depth before the
                rows; default calibrated from the centre of k-space (ESPIRiT).
            calibration: points along each side of that centre that are used, if measured.
            real: put the phase of the image, seen at low resolution, into the coil maps, so that the image is nearly real
                and positive, as priors of one channel want it.
            crop: cut readout oversampling off, and the result down to the scanner's reconstructed field of view.
            acceleration: keep 1 in so many of the measured columns, at random, to try sparser scans.
            centre_fraction: part of the columns around the centre that is kept then.
            seed: of the random columns.
            group: of the file, where it holds several measurements; default "dataset", or the only one.
            encoding: number of the encoding in the header; lines of others are left out.
            whiten: bring coils of unequal or correlated noise to white noise of one level.
            mask: keep the points of a pattern with that acceleration instead, such as "poisson-disc"
                (`invsolve.kspace_mask`); frames of a dynamic scan interleave.
            coils: compress the coils, once they are white, to so many virtual ones.
            dynamic: cardiac phases and repetitions are frames of a moving object: those of one slice (contrast, set) share coil
                maps, calibrated from all of them.
            trajectory_unit: of the trajectories: from -1/2 to 1/2 cycles per pixel of the encoded matrix, as is usual, cycles
                per encoded field of view, or radians per pixel.
            spokes: of each image with a trajectory the first so many lines, to try shorter scans.
        """
        thinning = (acceleration, centre_fraction, seed)
        super().__init__(slices, coil_maps, calibration, real, crop, *thinning, whiten, mask, coils, dynamic)
        self.group, self.encoding = group, encoding
        self.trajectory_unit, self.spokes = trajectory_unit, spokes

    @classmethod
    def recognises(cls, file: Any) -> bool:
        with one_handle:
            return bool(_groups(file))

    def open(self, path: Path, make: Make) -> Measurement:
        path = Path(path)
        lines, noise = self._lines(path)
        if lines.along_trajectories:
            return encoded(self, path, make, trajectories(self, lines, noise))
        lines.check_cartesian()
        if lines.matrix[0] > 1:
            return encoded(self, path, make, volumes(self, lines, noise))
        return self.sliced(path, make, self._planes(lines, noise))

    def _lines(self, path: Path) -> tuple[Lines, CoilNoise | None]:
        """The lines of the encoding, and what noise scans tell."""
        with one_handle, open_readonly(path) as file:
            group = self._group(file, path)
            header = parse_header(stored_text(group, "xml"), f"{path}: {group.name}/xml", self.encoding)
            lines = Lines(path, f"{group.name}/data", header, heads(group, path), self.encoding)
            noise = lines.noise_of(group["data"])
        lines.check()
        return lines, noise

    def _planes(self, lines: Lines, noise: CoilNoise | None) -> Acquired:
        notes = told(lines)
        times = [lines.times(item)[0] for item in range(len(lines.keys))]
        averages = times[0][times[0] > 0]
        if averages.max() > 1:
            notes.append(averaged(averages))
            if noise is not None:
                noise = noise_of_mean(noise, averages)
        masks = [one > 0 for one in times]
        # Readout lines that are measured whole can be cut; where one image has others, none is.
        whole = in_columns(masks)
        if any(not np.array_equal(mask, masks[0]) for mask in masks):
            notes.append("images differ in what is measured of k-space; each has a mask of its own")
        _, rows, columns = lines.matrix

        def calibration(item: int) -> tuple[np.ndarray, np.ndarray]:
            return lines.read(item, True)[:, 0], lines.times(item, True)[0] > 0

        return Acquired(
            read=lambda item: lines.read(item)[:, 0],
            items=len(lines.keys),
            coils=lines.coils,
            matrix=(rows, columns),
            mask=lambda item: np.asarray(masks[item][0]) if whole else masks[item],
            recon=lines.header.kept((rows, columns)),
            noise=noise,
            calibration=calibration if lines.for_calibration.any() else None,
            notes=notes,
            places=lines.places(),
        )

    def _group(self, file: h5py.File, path: Path) -> h5py.Group:
        names = _groups(file)
        if self.group is not None:
            if self.group.strip("/") not in names:
                raise UserError(f"{path}: has no ISMRMRD group {self.group!r}; it has {', '.join(names) or 'none'}")
            return file[self.group]
        if "dataset" in names:
            return file["dataset"]
        if not names:
            # Says what is wrong with a missing or broken one.
            dset = dataset(file, "/dataset/data")
            raise UserError(
                f"{path}: {dset.name} {dset.shape} {dset.dtype}: expected lines (head, traj, data) of ISMRMRD, with an xml "
                "beside them"
            )
        if len(names) != 1:
            raise UserError(f"{path}: holds {len(names)} ISMRMRD groups ({', '.join(names)}); choose with group=NAME")
        return file[names[0]]


def _groups(file: Any) -> list[str]:
    names = []
    for name, group in members(file):
        data = group.get("data") if isinstance(group, h5py.Group) and "xml" in group else None
        if isinstance(data, h5py.Dataset) and data.dtype.names == ("head", "traj", "data"):
            names.append(name)
    return names
