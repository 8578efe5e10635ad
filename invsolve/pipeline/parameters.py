"""An option of the reconstruction as a parameter of its step: type, bounds, default and text."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, get_args

from pydantic import Field

from invsolve.engine.declaration import Option


def parameter(option: Option) -> tuple[Any, Any]:
    """The type that pydantic checks, and the field with the default and the text."""
    kind: Any = option.written
    if option.at_least is not None or option.at_most is not None:
        kinds = get_args(kind) or (kind,)
        bounds = Field(ge=option.at_least, le=option.at_most)
        bounded: list[Any] = [k if k is type(None) else Annotated[k, bounds] for k in kinds]
        kind = reduce(or_, bounded)
    return kind, Field(option.default, description=option.brief)
