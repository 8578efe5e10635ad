"""The operator of each slice of k-space, with its coil maps: given, the file's, or calibrated from the data."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.layout import Make
from invsolve.contracts.operator import Operator
from invsolve.datasets.mri.acquired import Slices
from invsolve.datasets.mri.coil_maps import absorb_phase, calibration_region, espirit, everywhere
from invsolve.errors import UserError

_MAPS_KEPT = 2
#: Frames whose mean coil maps are calibrated from; more tell little more.
_FRAMES = 64
# Part of the object that may see two places of it, as near an edge.
_FOLDED = 0.05


class Operators:
    """The operator "mri" of each item, with its coil maps; the last two are kept."""

    def __init__(
        self,
        path: Path,
        make: Make,
        y: Slices,
        notes: list[str],
        missing: list[str],
        coil_maps: Tensor | None,
        calibration: int,
        real: bool,
        dynamic: bool = False,
    ) -> None:
        """
        Args:
            path: for messages.
            make: makes the operator "mri".
            y: the slices.
            notes, missing: lines are added on where the maps are from.
            coil_maps, calibration, real, dynamic: as `KSpaceLayout` takes them.

        Raises:
            UserError: the given maps are of another size.
        """
        self.path, self.make, self.given, self.calibration, self.real = path, make, coil_maps, calibration, real
        self.y, self.notes, self.dynamic = y, notes, dynamic
        coils = y.acquisition.coils
        self.size = (y.rows, y.acquisition.matrix[1])
        self.kept: OrderedDict[int, Operator] = OrderedDict()
        self.shared: OrderedDict[int, Tensor | None] = OrderedDict()
        self.mean: tuple[list[int], tuple[np.ndarray, np.ndarray, float]] | None = None
        maps = coil_maps
        if maps is not None:
            notes.append("coil maps given")
            allowed = ((coils, *self.size), (y.acquisition.items, coils, *self.size))
            if not maps.is_complex() or tuple(maps.shape) not in allowed:
                raise UserError(
                    f"{path}: coil_maps {maps.dtype} {tuple(maps.shape)}: expected complex {allowed[0]}, or with the "
                    f"{y.acquisition.items} slices in front"
                )
        elif y.acquisition.maps is not None:
            notes.append("coil maps from the file")
        elif coils > 1:
            notes.append("coil maps calibrated from the centre of k-space (ESPIRiT)")
            missing.append("coil maps: calibrated from the centre of k-space; --read coil_maps=MAPS.npy gives others")
        if dynamic:
            notes.append(f"the {len(y.frames(0))} frames of a place share its coil maps")

    @np.errstate(all="ignore")
    def __call__(self, item: int) -> Operator:
        if item not in self.kept:
            mask = self.y.mask(item)
            parameters: dict[str, Any] = {"mask": torch.from_numpy(mask)}
            maps = self._kept_maps(self._owner(item))
            if maps is None:
                parameters["mask"] = torch.from_numpy(np.broadcast_to(mask, self.size).copy())
            else:
                parameters["coil_maps"] = maps
            self.kept[item] = self.make("mri", **parameters)
            while len(self.kept) > _MAPS_KEPT:
                self.kept.popitem(last=False)
        return self.kept[item]

    def _owner(self, item: int) -> int:
        """The item whose maps are used: of frames the first, unless each is given its own."""
        own = self.given.ndim == 4 if self.given is not None else self.y.acquisition.maps is not None
        return self.y.frames(item)[0] if self.dynamic and not own else item

    def _kept_maps(self, item: int) -> Tensor | None:
        """Those of an item; frames ask for those of their first."""
        if item not in self.shared:
            maps = self._maps(item)
            self.shared[item] = None if maps is None else torch.from_numpy(np.ascontiguousarray(maps, np.complex64))
            while len(self.shared) > _MAPS_KEPT:
                self.shared.popitem(last=False)
        return self.shared[item]

    def _maps(self, item: int) -> np.ndarray | None:
        coil_maps, acquisition, white = self.given, self.y.acquisition, self.y.white
        maps: np.ndarray | None = None
        if coil_maps is not None:
            maps = white(everywhere((coil_maps if coil_maps.ndim == 3 else coil_maps[self.y.start + item]).numpy()))
        elif acquisition.maps is not None:
            maps = white(everywhere(self.y.middle(acquisition.maps(self.y.start + item))))
        elif acquisition.coils == 1:
            if not self.real:
                return None
            maps = np.ones((1, *self.size), np.complex64)
        if maps is not None and not self.real:
            return maps
        kspace, mask, averages = self._calibrating(item)
        centre = calibration_region(kspace, mask, self.calibration, str(self.path))
        if maps is None:
            calibrated = espirit(centre, self.size, white.sigma / averages**0.5, crop=0.0)
            self._tell_folded(calibrated.folded(), item)
            maps = calibrated.maps
            # The image is that of the coils as they are, whose root sum of squares it then has.
            maps = maps / np.maximum(white.lengths(maps), np.finfo(np.float32).tiny)
        return absorb_phase(maps, centre) if self.real else maps

    def _calibrating(self, item: int) -> tuple[np.ndarray, np.ndarray, float]:
        """White k-space to calibrate with, its mask (rows, columns), and how often a point of it was measured.

        Of frames it is the mean over time of each point, in which the mask of one frame fills the gaps of the others.
        """
        if not self.dynamic:
            return *self._calibrating_one(item), 1.0
        frames = self.y.frames(item)[:_FRAMES]
        if self.mean is None or self.mean[0] != frames:
            total = np.zeros((self.y.coils, *self.size), np.complex64)
            times = np.zeros(self.size, np.int32)
            for frame in frames:
                kspace, mask = self._calibrating_one(frame)
                total += kspace * mask
                times += mask
            total /= np.maximum(times, 1).astype(np.float32)
            self.mean = frames, (total, times > 0, float(np.median(times[times > 0])))
        return self.mean[1]

    def _calibrating_one(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        kspace, mask = self.y[item : item + 1][0].numpy(), np.broadcast_to(self.y.mask(item), self.size)
        acquisition = self.y.acquisition
        if acquisition.calibration is not None:
            kspace, mask = acquisition.calibration(self.y.start + item)
            if self.y.rows != len(mask):
                kspace, mask = self.y.cut(kspace), np.asarray(mask.all(0))
            kspace, mask = self.y.white(kspace), np.broadcast_to(mask, self.size)
        return kspace, mask

    def _tell_folded(self, part: float, item: int) -> None:
        # Only what is found when the file is opened gets into the record.
        if part > _FOLDED and item == 0:
            self.notes.append(
                f"the object is larger than the field of view: {part:.0%} of its pixels see two places of it (they need two sets "
                "of coil maps, here is one), so the image is wrong where it folds over; encode a larger field of view"
            )
