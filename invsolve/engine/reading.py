"""Reading items of a measurement, with a check that they can be used."""

from __future__ import annotations

from torch import Tensor

from invsolve.contracts.measurement import Measurement
from invsolve.errors import UserError


def read_rows(measurement: Measurement, start: int, stop: int) -> Tensor:
    """Read items of a measurement and refuse what is not finite.

    Raises:
        UserError: NaN or infinity in y, with the item and how many.
    """
    y = measurement.y[start:stop]
    if not bool(y.isfinite().all()):
        item = int((~y.isfinite()).flatten(1).any(1).nonzero()[0]) + start
        count = int((~y.isfinite()).sum())
        where = f"{measurement.source}: " if measurement.source else ""
        raise UserError(
            f"{where}y has {count} NaN or infinite values in item {item}; replace them, or mark them as unmeasured in the "
            "operator's mask"
        )
    return y
