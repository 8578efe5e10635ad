"""Split conformal intervals: factors of the standard deviation, by pixel and by image, whose coverage is guaranteed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from invsolve.datasets.hdf5 import check_name, open_readonly
from invsolve.errors import UserError

FORMAT = "invsolve-calibration/1"
#: What of the record must be alike for calibration and use: the guarantee is for exchangeable items.
_ALIKE = ("operator", "noise", "prior", "strategy", "samples", "image_shape")


@dataclass(frozen=True)
class Calibrated:
    """Factors of the samples' standard deviation, from items whose truth is known.

    For a new item that is exchangeable with the n calibration items, mean - f std .. mean + f std holds

    - with f = `pixel`, at each pixel the truth with probability >= level;
    - with f = `image`, with probability >= level the truth of at least a share `share` of the image's pixels.

    The probability is over calibration and new items together. Of one calibration the coverage of new items varies: it is a
    draw from Beta(k, n + 1 - k), k = ceil((n + 1) level) (Vovk 2012), so that of m new items the number covered is
    beta-binomial. Infinite where n is too small for the level (k > n). Nothing is promised of an image by itself, nor of
    another operator, noise, prior or strategy.

    Attributes:
        pixel: (C, *spatial), float64.
        image: a number.
        level, share: in (0, 1).
        items: n.
        made_with: what must be alike, from the record of the calibration run.
    """

    pixel: Tensor
    image: float
    level: float
    share: float
    items: int
    made_with: Mapping[str, Any]

    def intervals(self, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
        """`interval_low`, `interval_high` by pixel and `image_low`, `image_high` by image, each like mean (C, *spatial)."""
        pixel = self.pixel.to(mean) * std
        # No factor makes an interval of a spread that is zero, but an infinite one.
        image = torch.where(std > 0, self.image * std, math.inf if math.isinf(self.image) else 0.0)
        pixel = torch.where(pixel.isnan(), math.inf, pixel)
        return {
            "interval_low": mean - pixel,
            "interval_high": mean + pixel,
            "image_low": mean - image,
            "image_high": mean + image,
        }

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a run of another kind than that of the calibration.

        Raises:
            UserError: operator, noise, prior, strategy, number of samples or image size differ.
        """
        ours = made_with(config)
        different = [name for name in _ALIKE if self.made_with.get(name) != ours.get(name)]
        if different:
            raise UserError(
                f"the calibration was made with another {' and another '.join(different)}: its coverage says nothing of this "
                "run; calibrate with the same"
            )

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write a calibration file (HDF5).

        Raises:
            UserError: it exists, or cannot be written.
        """
        check_name(path)
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; give --overwrite to replace it")
        unfinished = path.with_name(f"{path.name}.partial")
        try:
            with h5py.File(unfinished, "w") as file:
                file["factor"] = self.pixel.numpy()
                file.attrs.update(
                    {"format": FORMAT, "factor_image": self.image, "level": self.level, "share": self.share}
                )
                file.attrs["items"] = self.items
                file.attrs["made_with"] = json.dumps(dict(self.made_with))
            os.replace(unfinished, path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written ({error}); choose another folder") from None


def load_calibration(path: Path) -> Calibrated:
    """Read what `Calibrated.save` wrote.

    Raises:
        UserError: it is no calibration file.
    """
    with open_readonly(path) as file:
        if file.attrs.get("format") != FORMAT or "factor" not in file:
            raise UserError(f"{path}: is no calibration file; invsolve evaluate --write-calibration makes one")
        entries = {k: float(file.attrs[k]) for k in ("factor_image", "level", "share", "items")}
        return Calibrated(
            torch.from_numpy(np.asarray(file["factor"][()], dtype=np.float64)),
            entries["factor_image"],
            entries["level"],
            entries["share"],
            int(entries["items"]),
            json.loads(file.attrs["made_with"]),
        )


def made_with(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be alike, of the record of a run."""
    return json.loads(json.dumps({name: config.get(name) for name in _ALIKE}))


def scores(mean: Tensor, std: Tensor, truth: Tensor) -> Tensor:
    """|truth - mean| over std, (C, *spatial), float64; zero where both are, infinite where the spread alone is zero."""
    error = (truth.double() - mean.double()).abs()
    return torch.where(error == 0, 0.0, error / std.double())


def image_score(pixel_scores: Tensor, share: float) -> float:
    """The smallest factor with which at least a share of the pixels is covered."""
    flat = pixel_scores.flatten()
    return float(flat.kthvalue(max(math.ceil(share * len(flat) - 1e-9), 1)).values)


def quantile_rank(items: int, level: float) -> int:
    """k = ceil((n + 1) level): the k-th smallest calibration score is the factor; none where k > n."""
    return math.ceil((items + 1) * level - 1e-9)


def calibrate_intervals(
    items: Iterable[tuple[Tensor, Tensor, Tensor]], config: Mapping[str, Any], level: float = 0.9, share: float = 0.9
) -> Calibrated:
    """Split conformal factors (Vovk 2005; Lei 2018) from the mean, standard deviation and truth of calibration items.

    Args:
        items: (mean, std, truth), each (C, *spatial).
        config: the record of their run.
        level, share: see `Calibrated`.

    Raises:
        UserError: a level out of (0, 1), or too few items for it.
    """
    if not (0 < level < 1 and 0 < share < 1):
        raise UserError(f"level and share must lie between 0 and 1, got {level:g} and {share:g}")
    each = [scores(*item) for item in items]
    count, k = len(each), quantile_rank(len(each), level)
    if k > count:
        least = math.ceil(level / (1 - level) - 1e-9)
        raise UserError(f"{count} items are too few to promise {level:g}: give at least {least}, or a lower --level")
    pixel = torch.stack(each).kthvalue(k, dim=0).values
    image = sorted(image_score(one, share) for one in each)[k - 1]
    return Calibrated(pixel, image, level, share, count, made_with(config))


def covered(intervals: Mapping[str, Tensor], truth: Tensor, share: float) -> dict[str, float]:
    """`in_pixel_intervals`: share of pixels in their interval; `image_held`: 1 where the image's intervals hold the share."""
    inside = (intervals["interval_low"] <= truth) & (truth <= intervals["interval_high"])
    within = (intervals["image_low"] <= truth) & (truth <= intervals["image_high"])
    held = float(within.double().mean()) >= share - 1e-12
    return {"in_pixel_intervals": float(inside.double().mean()), "image_held": float(held)}
