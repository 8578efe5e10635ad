"""The lines of an ISMRMRD file: which belongs where in k-space, and their samples and trajectories when asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from invsolve.datasets.hdf5 import check_stored, open_readonly
from invsolve.datasets.mri.header import Header
from invsolve.datasets.mri.noise import CoilNoise, sample_covariance
from invsolve.errors import UserError

# Bits of head.flags (ismrmrd.h counts them from 1).
_NOISE, _CALIBRATION, _REVERSE = 1 << 18, 1 << 19, 1 << 21
_NO_IMAGE = sum(1 << (bit - 1) for bit in (19, 23, 24, 26, 27, 28, 29, 30, 31))
#: Counters that tell images apart, beside the phase-encoding steps.
COUNTERS = ("slice", "contrast", "phase", "repetition", "set")
#: Those that count time.
_TIMES = ("phase", "repetition")
# More noise lines than these tell nothing new.
_NOISE_LINES = 256

#: HDF5 2.0 remembers, with the type of a dataset, the handle that opened it first, and where lists of varying length are
#: fields of a record it goes on using it when that handle is closed: the process ends (h5py issue 2920). So a file of lines
#: is opened, read and closed by one thread at a time.
one_handle = threading.RLock()


def heads(group: h5py.Group, path: Path) -> np.ndarray:
    """The heads of all lines, without their samples.

    Raises:
        UserError: they cannot be read, or there are none.
    """
    check_stored(group["data"], f"{path}: {group.name}/data {group['data'].shape}")
    try:
        head = group["data"].fields("head")[()]
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path}: {group.name}/data cannot be read ({' '.join(str(error).split())}); copy or write the file again"
        ) from None
    if not len(head):
        raise UserError(f"{path}: {group.name}/data holds no lines; write it again")
    return head


@dataclass
class Lines:
    """The lines of one encoding. Items are its images; axes of k-space are (depth, readout, phase).

    Args:
        path, name: of the file and the dataset in it.
        header: of the encoding.
        head: of every line.
        encoding: its number.
    """

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
        counters = np.stack([index[name] for name in COUNTERS], 1)
        self.counters = counters
        self.keys = [tuple(int(v) for v in key) for key in np.unique(counters[self.image], axis=0)]
        rows, columns, depth = self.header.encoded
        centre = columns // 2 if self.header.step is None else self.header.step[2]
        self.column = index["kspace_encode_step_1"].astype(int) + columns // 2 - centre
        middle_partition = depth // 2 if self.header.partition is None else self.header.partition[2]
        self.partition = index["kspace_encode_step_2"].astype(int)
        if depth > 1:
            self.partition += depth // 2 - middle_partition
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

    @property
    def where(self) -> str:
        """File and dataset, for messages."""
        return f"{self.path}: {self.name}"

    @property
    def matrix(self) -> tuple[int, int, int]:
        """Of k-space: depth, readout, phase."""
        readout, phase, depth = self.header.encoded
        return depth, readout, phase

    @property
    def along_trajectories(self) -> bool:
        """Whether samples lie along trajectories, by the header, or where it says nothing by the lines."""
        carried = bool((self.head["trajectory_dimensions"][self.image] > 0).any())
        return self.header.trajectory not in ("cartesian", "") or (self.header.trajectory == "" and carried)

    def check(self) -> None:
        """Refuse what no layout can place.

        Raises:
            UserError: no lines, or coils that change.
        """
        if not self.image.any():
            raise UserError(
                f"{self.where} holds no line of an image of encoding {self.encoding}; choose another with encoding="
            )
        if len(channels := np.unique(self.head["active_channels"][self.image])) > 1:
            raise UserError(
                f"{self.where}: the number of coils changes from line to line ({channels.tolist()}); write it again"
            )

    def check_cartesian(self) -> None:
        """Refuse what has no place on the grid.

        Raises:
            UserError: lines with a trajectory, or beyond the encoded matrix.
        """
        depth, rows, columns = self.matrix
        if (self.head["trajectory_dimensions"][self.image] > 0).any():
            raise UserError(
                f"{self.where}: its lines carry a trajectory, but the header says {self.header.trajectory or 'nothing'!r}; "
                "write the kind of trajectory (radial, spiral, other) into the header, or leave the trajectories out"
            )
        start, stop = self.row + self.first, self.row + self.stop
        bad = (start < 0) | (stop > rows) | (self.column < 0) | (self.column >= columns) | (start >= stop)
        bad = self.image & (bad | (self.partition < 0) | (self.partition >= depth))
        if bad.any():
            line = int(np.flatnonzero(bad)[0])
            partition = f" of partition {self.partition[line]}" if depth > 1 or self.partition[line] else ""
            size = f"{rows} x {columns}" + (f" x {depth}" if depth > 1 or partition else "")
            raise UserError(
                f"{self.where}: line {line} covers samples {start[line]} to {stop[line] - 1} of column {self.column[line]}"
                f"{partition}, outside the encoded matrix {size} of the header ({int(bad.sum())} such lines); mend the header"
            )

    def places(self) -> list[int]:
        """A number per image, the same for those that differ in time alone."""
        still = [tuple(v for name, v in zip(COUNTERS, key, strict=True) if name not in _TIMES) for key in self.keys]
        numbers = {key: k for k, key in enumerate(dict.fromkeys(still))}
        return [numbers[key] for key in still]

    def chosen(self, item: int, calibration: bool = False) -> np.ndarray:
        """The numbers of an image's lines, in the order of the file, with those that serve calibration alone or without."""
        among = self.image | self.for_calibration if calibration else self.image
        return np.flatnonzero(among & (self.counters == self.keys[item]).all(1))

    def times(self, item: int, calibration: bool = False) -> np.ndarray:
        """How often each point of the encoded matrix is measured, (depth, readout, phase)."""
        times = np.zeros(self.matrix, np.int32)
        for line in self.chosen(item, calibration).tolist():
            times[self._at(line)] += 1
        return times

    def read(self, item: int, calibration: bool = False) -> np.ndarray:
        """K-space of an image, (coils, depth, readout, phase) complex64; repeated lines are averaged."""
        kspace = np.zeros((self.coils, *self.matrix), np.complex64)
        with one_handle, open_readonly(self.path) as file:
            stored = file[self.name]
            for line in self.chosen(item, calibration).tolist():
                samples = self.samples(stored, line)
                if self.turn[line]:
                    samples = samples[:, ::-1]
                kspace[(slice(None), *self._at(line))] += samples[:, self.first[line] : self.stop[line]]
        return kspace / np.maximum(self.times(item, calibration), 1).astype(np.float32)

    def _at(self, line: int) -> tuple[int, slice, int]:
        first = self.row[line]
        along = slice(first + self.first[line], first + self.stop[line])
        return int(self.partition[line]), along, int(self.column[line])

    def samples(self, stored: h5py.Dataset, line: int) -> np.ndarray:
        """One line as it was measured, (coils, samples)."""
        coils, samples = int(self.head["active_channels"][line]), int(self.head["number_of_samples"][line])
        values = self._numbers(stored, line, "data", 2 * coils * samples, f"{coils} coils x {samples} complex samples")
        return values.view(np.complex64).reshape(coils, samples)

    def trajectory(self, stored: h5py.Dataset, line: int) -> np.ndarray:
        """Where it was measured, (samples, dimensions), in the order of the samples."""
        samples, dimensions = int(self.head["number_of_samples"][line]), int(self.head["trajectory_dimensions"][line])
        expected = f"a trajectory of {samples} samples x {dimensions}"
        return self._numbers(stored, line, "traj", samples * dimensions, expected).reshape(samples, dimensions)

    def _numbers(self, stored: h5py.Dataset, line: int, field: str, count: int, expected: str) -> np.ndarray:
        try:
            values = np.asarray(stored[line][field], np.float32)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self.where}: line {line} cannot be read ({' '.join(str(error).split())}); copy the file again"
            ) from None
        if values.size != count:
            what = f"{values.size} numbers" if field == "data" else f"a trajectory of {values.size} numbers"
            raise UserError(f"{self.where}: line {line} has {what}, but its head says {expected}; write it again")
        return values

    def noise_of(self, stored: h5py.Dataset) -> CoilNoise | None:
        """The noise of the coils, of the real and imaginary part each, from noise scans; None without them.

        A noise scan sampled faster or slower than the image has another bandwidth: its variance goes as 1 / dwell time. It
        covers all of the receiver's bandwidth, whose ends let less through: what the header says of that is made up for.
        """
        lines = np.flatnonzero(self.noise & (self.head["active_channels"] == self.coils))[:_NOISE_LINES].tolist()
        if not lines or not self.image.any():
            return None
        values = np.concatenate([self.samples(stored, line) for line in lines], 1).astype(np.complex128)
        own, image = (float(np.median(self.head["sample_time_us"][which])) for which in (self.noise, self.image))
        dwell = own / image if own > 0 and image > 0 else 1.0
        noise = sample_covariance(values)
        covariance = noise.covariance * dwell / self.header.noise_bandwidth
        usable = bool(np.isfinite(covariance).all()) and float(covariance.diagonal().real.max(initial=0.0)) > 0
        return CoilNoise(covariance, noise.count) if usable else None
