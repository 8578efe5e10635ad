"""Making the operator that a file names, through the door that the engine opens for layouts."""

from __future__ import annotations

from typing import Any

from invsolve.contracts.layout import Layout
from invsolve.contracts.operator import Operator
from invsolve.errors import UserError


def make_operator(layout: Layout, name: str, parameters: dict[str, Any], where: str) -> Operator:
    """Make a registered operator for a layout; its errors say which file they come from.

    Raises:
        UserError: unknown operator or parameters.
        RuntimeError: `Layout.make_operator` was not set.
    """
    make = type(layout).make_operator
    if make is None:
        raise RuntimeError(
            "Layout.make_operator is not set; the engine does that, outside it set it to invsolve.operator"
        )
    try:
        return make(name, parameters)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
