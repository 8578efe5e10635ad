"""Layout "ismrmrd": raw MRI data one acquired line after another, with an XML header (ISMRMRD version 1, Cartesian)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from invsolve.datasets.hdf5 import check_stored, dataset, members, open_readonly, stored_text
from invsolve.datasets.mri.acquired import Acquired
from invsolve.datasets.mri.header import Header, parse_header
from invsolve.datasets.mri.kspace import KSpaceLayout
from invsolve.datasets.mri.masks import in_columns
from invsolve.datasets.mri.noise import CoilNoise, sample_covariance
from invsolve.errors import UserError
from invsolve.operators.mri.masks import Pattern

# Bits of head.flags (ismrmrd.h counts them from 1).
_NOISE, _CALIBRATION, _REVERSE = 1 << 18, 1 << 19, 1 << 21
_NO_IMAGE = sum(1 << (bit - 1) for bit in (19, 23, 24, 26, 27, 28, 29, 30, 31))
# Counters that tell images apart, beside the phase-encoding step.
_COUNTERS = ("slice", "contrast", "phase", "repetition", "set")
#: Those that count time.
_TIMES = ("phase", "repetition")
# More noise lines than these tell nothing new.
_NOISE_LINES = 256


#: HDF5 2.0 remembers, with the type of a dataset, the handle that opened it first, and where lists of varying length are
#: fields of a record it goes on using it when that handle is closed: the process ends (h5py issue 2920). So a file of lines
#: is opened, read and closed by one thread at a time.
_one_handle = threading.RLock()


class ISMRMRD(KSpaceLayout):
    """Cartesian lines of an ISMRMRD file; items are its images (slices, contrasts, phases, repetitions, sets).

    Noise scans give the noise of the coils and, like navigator and correction lines, are no part of k-space. Lines acquired
    backwards are turned, discarded samples left out, repeated lines averaged. Lines go to their encoding step relative to
    the centre in the header, samples to their place relative to center_sample.
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
    ) -> None:
        """Reading options.

        Args:
            slices: [start, stop) of the images (items); default all.
            coil_maps: complex (coils, rows, columns), or (slices, coils, rows, columns); default calibrated from the centre
                of k-space (ESPIRiT).
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
        """
        thinning = (acceleration, centre_fraction, seed)
        super().__init__(slices, coil_maps, calibration, real, crop, *thinning, whiten, mask, coils, dynamic)
        self.group, self.encoding = group, encoding

    @classmethod
    def recognises(cls, file: Any) -> bool:
        with _one_handle:
            return bool(_groups(file))

    def find(self, path: Path) -> Acquired:
        notes: list[str] = []
        with _one_handle, open_readonly(path) as file:
            group = self._group(file, path)
            header = parse_header(stored_text(group, "xml"), f"{path}: {group.name}/xml", self.encoding)
            if header.trajectory not in ("cartesian", ""):
                raise UserError(f"{path}: its trajectory is {header.trajectory!r}; this layout reads cartesian ones")
            lines = _Lines(path, f"{group.name}/data", header, _heads(group, path), self.encoding)
            noise = lines.noise_of(group["data"])
        lines.check()
        if lines.skipped:
            notes.append(
                f"{lines.skipped} of {len(lines.head)} lines are noise, navigator or correction scans, or of others"
            )
        if len(lines.keys) > 1:
            varied = [n for k, n in enumerate(_COUNTERS) if len({key[k] for key in lines.keys}) > 1]
            notes.append(f"{len(lines.keys)} images, told apart by {', '.join(varied)}")
        averages = lines.averages()
        if averages.max() > 1:
            notes.append(f"lines that were measured {averages.min()} to {averages.max()} times are averaged")
            if noise is not None:
                # One level for all: that of the mean variance where some points have fewer averages.
                noise = CoilNoise(noise.covariance * float((1 / averages).mean()), noise.count)
        masks = lines.masks()
        # Readout lines that are measured whole can be cut; where one image has others, none is.
        whole = in_columns(masks)
        if any(not np.array_equal(mask, masks[0]) for mask in masks):
            notes.append("images differ in what is measured of k-space; each has a mask of its own")
        return Acquired(
            read=lines.read,
            items=len(lines.keys),
            coils=lines.coils,
            matrix=(header.encoded[0], header.encoded[1]),
            mask=lambda item: np.asarray(masks[item][0]) if whole else masks[item],
            recon=header.kept((header.encoded[0], header.encoded[1])),
            noise=noise,
            calibration=lines.calibration if lines.for_calibration.any() else None,
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


def _heads(group: h5py.Group, path: Path) -> np.ndarray:
    """The heads of all lines, without their samples."""
    check_stored(group["data"], f"{path}: {group.name}/data {group['data'].shape}")
    try:
        heads = group["data"].fields("head")[()]
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path}: {group.name}/data cannot be read ({' '.join(str(error).split())}); copy or write the file again"
        ) from None
    if not len(heads):
        raise UserError(f"{path}: {group.name}/data holds no lines; write it again")
    return heads


@dataclass
class _Lines:
    """The lines of one encoding: which belongs where, and their samples when asked for."""

    path: Path
    name: str
    header: Header
    head: np.ndarray
    encoding: int

    def __post_init__(self) -> None:
        flags = self.head["flags"]
        ours = self.head["encoding_space_ref"] == self.encoding
        self.noise = (flags & _NOISE) != 0
        usable = ours & ((flags & _NO_IMAGE) == 0)
        self.for_calibration = usable & ((flags & _CALIBRATION) != 0)
        self.image = usable & ~self.for_calibration
        self.skipped = int((~usable).sum())
        index = self.head["idx"]
        counters = np.stack([index[name] for name in _COUNTERS], 1)
        self.counters = counters
        self.keys = [tuple(int(v) for v in key) for key in np.unique(counters[self.image], axis=0)]
        rows, columns = self.header.encoded[:2]
        centre = columns // 2 if self.header.step is None else self.header.step[2]
        self.column = index["kspace_encode_step_1"].astype(int) + columns // 2 - centre
        self.first = self.head["discard_pre"].astype(int)
        self.stop = self.head["number_of_samples"].astype(int) - self.head["discard_post"].astype(int)
        reverse = (flags & _REVERSE) != 0
        middle = self.head["center_sample"].astype(int)
        # Of a line read backwards, sample i lies at number - 1 - i.
        self.turn = reverse
        last = self.head["number_of_samples"].astype(int) - 1
        middle = np.where(reverse, last - middle, middle)
        self.first, self.stop = (
            np.where(reverse, last + 1 - self.stop, self.first),
            np.where(reverse, last + 1 - self.first, self.stop),
        )
        self.row = rows // 2 - middle
        used = self.head["active_channels"][self.image]
        self.coils = int(used[0]) if len(used) else 0

    def check(self) -> None:
        """Refuse what this layout cannot place.

        Raises:
            UserError: no lines, 3-D encoding, coils that change, or lines beyond the encoded matrix.
        """
        where, (rows, columns, depth) = f"{self.path}: {self.name}", self.header.encoded
        if not self.image.any():
            raise UserError(
                f"{where} holds no line of an image of encoding {self.encoding}; choose another with encoding="
            )
        partitions = np.unique(self.head["idx"]["kspace_encode_step_2"][self.image])
        if depth > 1 or len(partitions) > 1:
            raise UserError(
                f"{where} is encoded in 3-D ({max(depth, len(partitions))} partitions), this layout reads 2-D slices; "
                "transform it along the third direction first"
            )
        if len(channels := np.unique(self.head["active_channels"][self.image])) > 1:
            raise UserError(
                f"{where}: the number of coils changes from line to line ({channels.tolist()}); write it again"
            )
        if (self.head["trajectory_dimensions"][self.image] > 0).any():
            raise UserError(f"{where}: its lines carry a trajectory, this layout reads cartesian ones; grid it first")
        start, stop = self.row + self.first, self.row + self.stop
        bad = self.image & (
            (start < 0) | (stop > rows) | (self.column < 0) | (self.column >= columns) | (start >= stop)
        )
        if bad.any():
            line = int(np.flatnonzero(bad)[0])
            raise UserError(
                f"{where}: line {line} covers samples {start[line]} to {stop[line] - 1} of column {self.column[line]}, "
                f"outside the encoded matrix {rows} x {columns} of the header ({int(bad.sum())} such lines); mend the header"
            )

    def places(self) -> list[int]:
        """A number per image, the same for those that differ in time alone."""
        still = [tuple(v for name, v in zip(_COUNTERS, key, strict=True) if name not in _TIMES) for key in self.keys]
        numbers = {key: k for k, key in enumerate(dict.fromkeys(still))}
        return [numbers[key] for key in still]

    def _chosen(self, item: int, among: np.ndarray) -> np.ndarray:
        return np.flatnonzero(among & (self.counters == self.keys[item]).all(1))

    def masks(self) -> list[np.ndarray]:
        """Which points are measured, (readout, phase), of each image."""
        return [self._covered(self._chosen(item, self.image)) for item in range(len(self.keys))]

    def _covered(self, lines: np.ndarray) -> np.ndarray:
        return self._times(lines) > 0

    def _times(self, lines: np.ndarray) -> np.ndarray:
        """How often each point of the encoded matrix is measured by these lines."""
        times = np.zeros(self.header.encoded[:2], np.int32)
        for line in lines.tolist():
            times[self.row[line] + self.first[line] : self.row[line] + self.stop[line], self.column[line]] += 1
        return times

    def averages(self) -> np.ndarray:
        """How often each measured point of the first image was measured, and averaged; (points,)."""
        times = self._times(self._chosen(0, self.image))
        return times[times > 0]

    def read(self, item: int) -> np.ndarray:
        """K-space of an image, (coils, readout, phase) complex64; repeated lines are averaged."""
        return self._assemble(self._chosen(item, self.image))

    def calibration(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """The same with the lines that serve calibration alone, and which points that covers."""
        lines = self._chosen(item, self.image | self.for_calibration)
        return self._assemble(lines), self._covered(lines)

    def _assemble(self, lines: np.ndarray) -> np.ndarray:
        rows, columns = self.header.encoded[:2]
        kspace = np.zeros((self.coils, rows, columns), np.complex64)
        with _one_handle, open_readonly(self.path) as file:
            stored = file[self.name]
            for line in lines.tolist():
                samples = self._samples(stored, line)
                at = slice(self.row[line] + self.first[line], self.row[line] + self.stop[line])
                kspace[:, at, self.column[line]] += samples[:, self.first[line] : self.stop[line]]
        return kspace / np.maximum(self._times(lines), 1).astype(np.float32)

    def _samples(self, stored: h5py.Dataset, line: int) -> np.ndarray:
        """One line, (coils, samples), turned if it was read backwards."""
        try:
            values = np.asarray(stored[line]["data"], np.float32)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self.path}: {self.name}: line {line} cannot be read ({' '.join(str(error).split())}); copy the file again"
            ) from None
        coils, samples = int(self.head["active_channels"][line]), int(self.head["number_of_samples"][line])
        if values.size != 2 * coils * samples:
            raise UserError(
                f"{self.path}: {self.name}: line {line} has {values.size} numbers, but its head says {coils} coils x "
                f"{samples} complex samples; write it again"
            )
        readout = values.view(np.complex64).reshape(coils, samples)
        return readout[:, ::-1] if self.turn[line] else readout

    def noise_of(self, stored: h5py.Dataset) -> CoilNoise | None:
        """The noise of the coils, of the real and imaginary part each, from noise scans; None without them.

        A noise scan sampled faster or slower than the image has another bandwidth: its variance goes as 1 / dwell time. It
        covers all of the receiver's bandwidth, whose ends let less through: what the header says of that is made up for.
        """
        lines = np.flatnonzero(self.noise & (self.head["active_channels"] == self.coils))[:_NOISE_LINES].tolist()
        if not lines or not self.image.any():
            return None
        values = np.concatenate([self._samples(stored, line) for line in lines], 1).astype(np.complex128)
        own, image = (float(np.median(self.head["sample_time_us"][which])) for which in (self.noise, self.image))
        dwell = own / image if own > 0 and image > 0 else 1.0
        noise = sample_covariance(values)
        covariance = noise.covariance * dwell / self.header.noise_bandwidth
        usable = bool(np.isfinite(covariance).all()) and float(covariance.diagonal().real.max(initial=0.0)) > 0
        return CoilNoise(covariance, noise.count) if usable else None
