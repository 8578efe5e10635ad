"""Cartesian lines encoded in 3-D: volumes (depth, rows along the readout, columns) of operator "mri-3d"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from invsolve.contracts.layout import Make
from invsolve.datasets.mri.coil_maps import calibration_block
from invsolve.datasets.mri.encoded import Encoded, averaged, chosen, middle, noise_of_mean, told
from invsolve.datasets.mri.kspace import KSpaceLayout
from invsolve.datasets.mri.lines import Lines
from invsolve.datasets.mri.noise import CoilNoise, Whitening, estimate_noise
from invsolve.datasets.mri.readout import whole_readouts
from invsolve.errors import UserError
from invsolve.operators.mri.masks import kspace_mask

_MASKS_KEPT = 64
#: Frames whose mean coil maps are calibrated from.
_FRAMES = 16
#: Planes of k-space that noise is looked for in.
_PLANES = 3


def volumes(layout: KSpaceLayout, lines: Lines, noise: CoilNoise | None) -> Encoded:
    """What a file of Cartesian lines encoded in 3-D holds.

    Raises:
        UserError: a pattern that does not fit, or k-space that is zero or not finite where noise is looked for.
    """
    notes = told(lines)
    start, stop = chosen(layout, lines.path, len(lines.keys))
    times = lines.times(start)
    if (averages := times[times > 0]).max() > 1:
        notes.append(averaged(averages))
        noise = None if noise is None else noise_of_mean(noise, averages)
    scan = _Volumes(layout, lines, (start, stop))
    depth, rows, columns = scan.size
    if rows < lines.matrix[1]:
        notes.append(f"readout of {lines.matrix[1]} points cut to {rows}, the reconstructed field of view")
    measured = scan.lines_measured(start)
    notes.append(
        f"{int(measured.sum())} of {measured.size} phase encodings ({depth} x {columns}) measured, {lines.coils} coils"
    )
    if layout.acceleration is not None:
        kept = int(scan.mask(start).any(1).sum())
        notes.append(f"{kept} of these kept, for acceleration={layout.acceleration:g}")
    how = "from the noise scans" if noise else "where there is least signal; noise scans are not in the file"
    kept_size = (lines.header.kept_depth(depth), *lines.header.kept((rows, columns)))
    return Encoded(
        name="mri-3d",
        size=scan.size,
        read=scan.read,
        shape=scan.size,
        items=len(lines.keys),
        coils=lines.coils,
        parameters=scan.parameters,
        centre=scan.centre,
        noise=(noise or scan.noise(start), how),
        measured=noise is not None,
        axes="item coil depth readout phase",
        region=middle(scan.size, kept_size),
        places=lines.places(),
        notes=notes,
    )


class _Volumes:
    """K-space of volumes, cut along the readout where all of it is measured."""

    def __init__(self, layout: KSpaceLayout, lines: Lines, items: tuple[int, int]) -> None:
        self.layout, self.lines, self.items = layout, lines, items
        self.mask = lru_cache(_MASKS_KEPT)(self._mask)
        depth, rows, columns = lines.matrix
        self.whole = all(whole_readouts(lines.times(item).swapaxes(0, 1) > 0) is not None for item in range(*items))
        kept = lines.header.kept((rows, columns))[0]
        self.size = (depth, kept if layout.crop and self.whole else rows, columns)
        self.pattern: np.ndarray | None = None
        if layout.acceleration is not None:
            places = lines.places()
            self.frame = {k: sum(places[j] == places[k] for j in range(items[0], k)) for k in range(*items)}
            settings = (layout.acceleration, layout.centre_fraction, layout.seed)
            frames = 1 + max(self.frame.values()) if layout.dynamic else 1
            try:
                pattern = kspace_mask(layout.mask or "random", self.size, *settings, frames=frames)
            except UserError as error:
                raise UserError(f"{lines.path}: {error}") from None
            self.pattern = pattern.numpy()

    def lines_measured(self, item: int) -> np.ndarray:
        """Which phase encodings anything is measured of, (depth, columns)."""
        return np.asarray((self.lines.times(item) > 0).any(1))

    def _mask(self, item: int) -> np.ndarray:
        """(depth, 1, columns) where readouts are measured whole, else (depth, rows, columns)."""
        there = self.lines.times(item) > 0
        measured = np.asarray(there.any(1, keepdims=True)) if self.whole else there
        if self.pattern is not None:
            measured = measured & self.pattern[self.frame[item] if self.layout.dynamic else 0]
        if not measured.any():
            raise UserError(f"{self.lines.path}: nothing of volume {item} is measured; leave it out with slices=")
        return measured

    def parameters(self, item: int) -> dict[str, Any]:
        return {"mask": torch.from_numpy(np.broadcast_to(self.mask(item), self.size).copy())}

    def read(self, item: int, calibration: bool = False) -> np.ndarray:
        kspace = self._cut(self.lines.read(item, calibration))
        return kspace if calibration else kspace * self.mask(item)

    def _cut(self, kspace: np.ndarray) -> np.ndarray:
        rows, kept = kspace.shape[2], self.size[1]
        if rows == kept:
            return kspace
        along = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, 2), axis=2, norm="ortho"), 2)
        first = rows // 2 - kept // 2
        along = np.fft.ifftshift(along[:, :, first : first + kept], 2)
        return np.fft.fftshift(np.fft.fft(along, axis=2, norm="ortho"), 2).astype(np.complex64)

    def centre(self, items: Sequence[int], white: Whitening, make: Make) -> np.ndarray:
        """The block around the centre of k-space that is measured whole, in the mean of these items."""
        total = np.zeros((len(white(np.zeros((self.lines.coils, 1)))), *self.size), np.complex64)
        times = np.zeros(self.size, np.int32)
        for item in items[:_FRAMES]:
            if self.lines.for_calibration.any():
                measured = self.lines.times(item, True) > 0
                mask = measured.any(1, keepdims=True) if self.whole else measured
                kspace = self.read(item, True)
            else:
                mask, kspace = self.mask(item), self.read(item)
            total += white(kspace)
            times += mask
        mean = total / np.maximum(times, 1).astype(np.float32)
        return calibration_block(mean, times > 0, self.layout.calibration, str(self.lines.path))

    def noise(self, item: int) -> CoilNoise:
        """From planes of k-space at the ends of the readout, where there is least signal."""
        kspace, mask = self.read(item), np.broadcast_to(self.mask(item), self.size)
        where = f"{self.lines.path}: k-space of volume {item}"
        if not np.isfinite(kspace).all():
            raise UserError(
                f"{where} has {int((~np.isfinite(kspace)).sum())} NaN or infinite values; leave it out with slices="
            )
        number = mask.sum((0, 2))
        usable = np.flatnonzero(number >= number.max() / 2)
        distant = usable[np.argsort(-np.abs(usable - self.size[1] // 2), kind="stable")][:_PLANES].tolist()
        parts = [estimate_noise(kspace[:, :, row], mask[:, row]) for row in distant]
        count = sum(part.count for part in parts)
        if not count:
            raise UserError(f"{where} is zero; leave it out with slices=")
        doubt = next((part.doubt for part in parts if part.doubt), "")
        return CoilNoise(np.sum([part.count / count * part.covariance for part in parts], axis=0), count, doubt)
