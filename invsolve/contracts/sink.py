"""Where finished items go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Sink(Protocol):
    """Where finished items go; what it has accepted survives a kill."""

    def is_done(self, item: int) -> bool: ...

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None: ...
