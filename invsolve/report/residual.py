"""What the mean leaves of the measured data: y - A(mean), where the scan can be opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invsolve.api.provenance import noise_record, operator_record
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Noise
from invsolve.contracts.problem import real_view
from invsolve.datasets.hdf5 import fingerprint
from invsolve.errors import UserError
from invsolve.files.opening import open_measurement
from invsolve.report.record import noise_of

_LARGEST = 128


@dataclass(frozen=True)
class Measured:
    """The scan of a result, or why there is none.

    Attributes:
        measurement: None where it cannot be used.
        noise: as the run took it; None where the record does not say.
        why: a sentence on what is missing.
    """

    measurement: Measurement | None
    noise: Noise | None = None
    why: str = ""


def open_scan(path: Path, result: Any, layout: str | None = None, read: Mapping[str, Any] | None = None) -> Measured:
    """Open the scan that a result was made from.

    Args:
        path: the scan.
        result: a `ResultView`.
        layout, read: as they were for the run.

    Raises:
        UserError: it cannot be read, or is not the one that the result was made from, read as it was then.
    """
    origin = str((result.config.get("input") or {}).get("fingerprint") or "")
    measurement = open_measurement(path, layout, read)
    if origin and measurement.fingerprint != origin:
        if _file_part(measurement.fingerprint) == _file_part(origin):
            raise UserError(f"{path}: was read in another way for the run: give --layout and --read as they were then")
        raise UserError(f"{path}: is not the scan that {result.path} was made from; give that one, or leave --scan out")
    return _usable(measurement, result)


def find_scan(result: Any, layout: str | None = None, read: Mapping[str, Any] | None = None) -> Measured:
    """Open the scan where the record says it was, or beside the result; not finding it is no mistake."""
    entry = result.config.get("input") or {}
    origin, name = str(entry.get("fingerprint") or ""), str(entry.get("file") or "")
    how = "invsolve report --scan SCAN.h5 adds it"
    if not origin or not name:
        return Measured(None, why=f"The result does not say from which file it was made; {how}.")
    for path in (Path(name), result.path.parent / Path(name).name):
        try:
            # What a file holds is compared before a layout makes anything of it.
            if path.is_dir() or (path.is_file() and _file_part(origin).startswith(fingerprint(path))):
                return open_scan(path, result, layout, read)
        except (UserError, OSError) as error:
            return Measured(None, why=f"Without the residual of the mean: {error}.")
    return Measured(None, why=f"The scan is not where it was for the run; {how}.")


def _file_part(whole: str) -> str:
    """A fingerprint without that of a layout's options."""
    return whole.partition("+options:")[0]


def _usable(measurement: Measurement, result: Any) -> Measured:
    if len(measurement.y) != result.input_items:
        return Measured(None, why=f"The scan has {len(measurement.y)} items, the run had {result.input_items}.")
    entry = result.config.get("operator")
    if entry and operator_record(measurement.operator) != entry:
        return Measured(
            None, why="The scan reads as another one than it was for the run: give --layout and --read as then."
        )
    if measurement.region is not None:
        return Measured(None, why="The result is a part of what the data see, so A(mean) cannot be computed from it.")
    if len(result.mean.shape) > 4:
        return Measured(None, why="Residuals are drawn of images with one or two spatial axes.")
    noise, known = noise_of(result.config), measurement.noise
    # Of a large array the record has the hash alone.
    if noise is None and known is not None and noise_record(known) == result.config.get("noise", noise_record(known)):
        noise = known
    return Measured(measurement, noise)


@dataclass(frozen=True)
class Residual:
    """A residual as a picture.

    Attributes:
        picture: (rows, columns), at most 128 each; NaN where nothing was measured.
        signed: False for root mean squares.
        relative: whether it is in units of the noise's standard deviation; else in those of y.
    """

    picture: np.ndarray
    signed: bool
    relative: bool

    @property
    def step(self) -> float:
        """What it is rounded to."""
        return 0.25 if self.relative else self.reach / 64

    @property
    def reach(self) -> float:
        """What is shown in the brightest colour."""
        known = np.abs(self.picture[np.isfinite(self.picture)])
        return 4.0 if self.relative else float(known.max(initial=0.0)) or 1.0


def standardised(measured: Measured, mean: torch.Tensor, item: int) -> Residual:
    """The residual y - A(mean) over the noise's standard deviation, where that is known and nowhere zero.

    Args:
        measured: with a measurement.
        mean: (C, *spatial), physical units.
        item: of the scan.

    Of large ones blocks are added up, so that white noise stays white and of standard deviation 1. Complex numbers, and axes
    before the last two, are brought to their root mean square.

    Raises:
        UserError: the operator does not take the image.
    """
    measurement = measured.measurement
    assert measurement is not None
    operator = measurement.operator_for(item)
    if operator.complex_image:
        operator = real_view(operator, mean.shape[0])
    y = measurement.y[item : item + 1]
    with torch.no_grad():
        predicted, noise = operator(mean[None].to(y.real.dtype)), measured.noise
        noise = None if noise is None else noise.rows([item], y.ndim)
        rest = y - (predicted if noise is None else noise.mean(predicted))
        std = torch.zeros(()) if noise is None else noise.std_from(y)
        relative = bool((std > 0).all())
        if relative:
            rest = rest / std
        mask = operator.measured()
        if mask is not None:
            rest = torch.where(mask.expand(rest.shape), rest, torch.nan)
    rest = rest[0]
    real = not rest.is_complex()
    flat = rest.reshape(-1, *(rest.shape[-2:] if rest.ndim > 1 else (1, *rest.shape)))
    factor = -(-max(flat.shape[1:]) // _LARGEST)
    if real and len(flat) == 1:
        total, count = _blocks(flat[0].numpy(), factor)
        # So that white noise keeps its standard deviation.
        return Residual(total / np.sqrt(count), True, relative)
    total, count = _blocks((flat.abs().square() / (1 if real else 2)).nanmean(0).numpy(), factor)
    return Residual(np.sqrt(total / count), False, relative)


def _blocks(picture: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums over blocks of factor x factor pixels, and how many of each are known; NaN where none is."""
    rows, columns = (-(-size // factor) for size in picture.shape)
    pad = [(0, rows * factor - picture.shape[0]), (0, columns * factor - picture.shape[1])]
    whole = np.pad(picture, pad, constant_values=np.nan).reshape(rows, factor, columns, factor)
    count = np.isfinite(whole).sum((1, 3)).astype(np.float32)
    count[count == 0] = np.nan
    return np.nansum(whole, (1, 3)), count
