"""Layout "invsolve": scan files as `invsolve simulate` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from invsolve.contracts.layout import Layout, Make, make_for
from invsolve.contracts.measurement import Measurement
from invsolve.datasets.hdf5 import (
    LazyRows,
    fingerprint,
    open_readonly,
    read_noise,
    read_parameters,
    read_volumes,
    text,
)
from invsolve.errors import UserError


class OwnLayout(Layout):
    """Scan files as `write_scan` and `invsolve simulate` write them: `y`, `operator`, `noise`, perhaps `truth`."""

    name = "invsolve"

    @classmethod
    def recognises(cls, file: Any) -> bool:
        group = file.get("operator")
        return isinstance(group, h5py.Group) and "name" in group.attrs

    def open(self, path: Path, make: Make) -> Measurement:
        with open_readonly(path) as file:
            group = file.get("operator")
            if not isinstance(group, h5py.Group) or "name" not in group.attrs:
                raise UserError(f"{path}: has no group 'operator' with an attribute 'name'; write it with write_scan")
            name, parameters = text(group.attrs["name"]), read_parameters(group)
            noise = read_noise(file, path, make)
            unit = text(file.attrs.get("image_unit", ""))
            has_truth = "truth" in file
        y = LazyRows(path, "y")
        if len(y.shape) < 2:
            raise UserError(f"{path}: dataset 'y' {y.shape}: expected (items, *measurement); one item is y[None]")
        truth = LazyRows(path, "truth") if has_truth else None
        if truth is not None and (len(truth.shape) < 3 or len(truth) != len(y)):
            raise UserError(
                f"{path}: dataset 'truth' {truth.shape}: expected ({len(y)}, channels, *spatial), as 'y' {y.shape}"
            )
        volumes = read_volumes(path, len(y))
        operator = make_for(f"{path}: group 'operator'", make)(name, **parameters)
        return Measurement(
            y=y,
            operator=operator,
            noise=noise,
            truth=truth,
            unit=unit or operator.image_unit,
            source=str(path),
            fingerprint=fingerprint(path),
            volumes=volumes,
            image_shape=None if truth is None else tuple(truth.shape[1:]),
        )
