"""What the operators of this folder ask of image sizes."""

from __future__ import annotations

from collections.abc import Sequence

from invsolve.errors import UserError


def rows_and_columns(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """An image size, N for N x N pixels or [rows, columns], as (rows, columns).

    Raises:
        UserError: not one or two whole numbers above zero.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise UserError(f"operator {name!r}: image_size must be N or [rows, columns], above 0, got {size}")
    return pair[0], pair[1]
