"""Layout "lodopab": the LoDoPaB-CT collection (Leuschner et al. 2021), whose files say nothing about themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from invsolve.contracts.layout import Layout, Make, make_for
from invsolve.contracts.measurement import Images, Measurement, Rows
from invsolve.contracts.noise import Gaussian
from invsolve.datasets.hdf5 import LazyRows, WithChannel, doubles, fingerprint
from invsolve.datasets.tomography.counts import kept
from invsolve.datasets.tomography.projections import option_hash
from invsolve.errors import UserError

#: Attenuation of 3071 HU in 1/m: what images and line integrals were divided by.
MU_MAX = 81.35858
_SIZE, _ANGLES, _DETECTORS = 362, 1000, 513
#: Side of the image and width of the detector, m; the detector covers the image's diagonal.
_FIELD = 0.26
_DETECTOR = _FIELD * 2**0.5
_PHOTONS = 4096
_LOOKED_AT = 4


class LoDoPaB(Layout):
    """`observation_*.hdf5` as measurement, `ground_truth_*.hdf5` as images; must be asked for by name.

    Parallel beam, 1000 angles (k + 1/2) pi / 1000, 513 detector pixels over 2 x 0.1838 m, image of 0.26 m, values
    mu / (81.35858 / m), so 0 to 1. Image rows run along x, columns along y of that geometry. The ground truth that lies
    beside an observation under its own name comes along as truth. The noise is Gaussian with the root mean square, over
    rays, of what 4096 photons per detector pixel scatter by.

    Args:
        thin: keep the first of each complete group of so many angles.
        items: [start, stop) of the images; default all.
    """

    name = "lodopab"

    def __init__(self, thin: int = 1, items: list[int] | None = None) -> None:
        if not thin > 0:
            raise UserError(f"layout 'lodopab': thin must be > 0, got {thin}")
        self.thin, self.items = thin, items

    @classmethod
    def resembles(cls, file: Any) -> bool:
        shape = getattr(file.get("data"), "shape", ())
        return shape[1:] in ((_SIZE, _SIZE), (_ANGLES, _DETECTORS))

    @classmethod
    def beside(cls, path: Path) -> list[Path]:
        truth = path.with_name(path.name.replace("observation", "ground_truth"))
        return [truth] if truth != path and truth.exists() else []

    @np.errstate(all="ignore")
    def open(self, path: Path, make: Make) -> Measurement:
        path = Path(path)
        rows = self._rows(path, (_ANGLES, _DETECTORS), "an observation")
        y = _Thinned(rows, self.thin)
        notes: list[str] = []
        sigma = _sigma(rows)
        notes.append(f"noise sigma {sigma:.4g}, from {_PHOTONS} photons a detector pixel")
        middles = (np.arange(_ANGLES) + 0.5) * 180 / _ANGLES
        # Their x runs along rows and their y along columns: a quarter turn from x to the right and y up.
        degrees = (middles - 90)[kept(_ANGLES, self.thin)]
        notes.append(f"{len(degrees)} of {_ANGLES} angles kept")
        truth: Rows | None = None
        for beside in self.beside(path):
            truth = WithChannel(self._rows(beside, (_SIZE, _SIZE), "a ground truth"))
            notes.append(f"truth from {beside.name}")
        parameters = {
            "image_size": _SIZE,
            "angles": degrees.tolist(),
            "detectors": _DETECTORS,
            "detector_spacing": _DETECTOR / _DETECTORS,
            "pixel_size": _FIELD / _SIZE,
        }
        return Measurement(
            y=y,
            operator=make_for(path, make)("ct", **parameters),
            noise=Gaussian(sigma),
            truth=truth,
            unit=f"{MU_MAX:.2f}/m",
            source=str(path),
            fingerprint=f"{fingerprint(path)}+options:{option_hash(self)}",
            notes=notes,
            axes="item angle detector",
        )

    def images(self, path: Path) -> Images:
        return Images(
            WithChannel(self._rows(Path(path), (_SIZE, _SIZE), "a ground truth")),
            unit=f"{MU_MAX:.2f}/m",
            spacing=(_FIELD / _SIZE * 1e3,) * 2,
            spacing_unit="mm",
            source=str(path),
            fingerprint=f"{fingerprint(path)}+options:{option_hash(self)}",
        )

    def _rows(self, path: Path, shape: tuple[int, int], kind: str) -> LazyRows:
        rows = LazyRows(path, "data")
        if rows.dtype.is_complex:
            raise UserError(f"{path}: data {rows.shape} holds complex numbers, expected real ones; write it again")
        if rows.shape[1:] != shape:
            other = {(_SIZE, _SIZE): "; it is a ground truth: images", (_ANGLES, _DETECTORS): "; it is an observation"}
            raise UserError(
                f"{path}: data {rows.shape}: expected (items, {shape[0]}, {shape[1]}), as {kind} of LoDoPaB has"
                f"{other.get(rows.shape[1:], '')}"
            )
        if self.items is None:
            return rows
        start, stop = self.items if len(self.items) == 2 else (-1, -1)
        if not 0 <= start < stop <= len(rows):
            raise UserError(f"{path}: items={self.items} must be [start, stop) within the {len(rows)} items")
        return LazyRows(path, "data", range(start, stop))


class _Thinned:
    """Sinograms (N, angles, detectors) with some of their angles."""

    def __init__(self, rows: LazyRows, thin: int) -> None:
        self.rows, self.thin = rows, thin

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice, /) -> Tensor:
        return self.rows[rows][:, kept(_ANGLES, self.thin)]


def _sigma(rows: LazyRows) -> float:
    """Counts scatter by their square root: var(-log(counts / photons)) is about 1 / counts."""
    picked = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).round().astype(int)).tolist()
    values = doubles(np.concatenate([rows[i : i + 1].numpy().ravel() for i in picked]))
    counts = _PHOTONS * np.exp(-MU_MAX * values[np.isfinite(values)])
    return float(np.sqrt(np.mean(1 / np.maximum(counts, 1.0))) / MU_MAX) if len(counts) else 1.0
