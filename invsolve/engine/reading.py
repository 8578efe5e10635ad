"""Reading items of a measurement, with a check that they can be used."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.contracts.measurement import Measurement
from invsolve.errors import UserError


def read_rows(measurement: Measurement, start: int, stop: int) -> Tensor:
    """Read items of a measurement, zero where its operator says that nothing is measured, and refuse what is not finite.

    Raises:
        UserError: NaN or infinity among what is measured, with the item and how many.
    """
    y = measurement.y[start:stop]
    mask = _measured(measurement, range(start, start + len(y)))
    if mask is not None:
        # Whatever a file holds there is no data; left in, it would count as residual.
        y = torch.where(mask.to(y.device), y, torch.zeros((), dtype=y.dtype, device=y.device))
    if not bool(y.isfinite().all()):
        item = int((~y.isfinite()).flatten(1).any(1).nonzero()[0]) + start
        count = int((~y.isfinite()).sum())
        where = f"{measurement.source}: " if measurement.source else ""
        raise UserError(
            f"{where}y has {count} NaN or infinite values in item {item}; replace them, or mark them as unmeasured in the "
            "operator's mask"
        )
    return y


def _measured(measurement: Measurement, items: range) -> Tensor | None:
    """Which entries of these items carry data, boolean, broadcasts to y; None where all do, or a layout has seen to it."""
    if measurement.operators is not None:
        return None
    if measurement.operator.items is None:
        mask = measurement.operator.measured()
        return None if mask is None else mask.bool()
    masks = [measurement.operator_for(item).measured() for item in items]
    shape = measurement.y[:0].shape[1:]
    known = [torch.ones(shape, dtype=torch.bool) if m is None else m.bool().cpu().expand(shape) for m in masks]
    return torch.stack(known) if any(m is not None for m in masks) else None
