"""Strategies, one paper a file."""

from collections.abc import Mapping

from invsolve.contracts.plugin import collect, hookimpl
from invsolve.contracts.strategy import Strategy


@hookimpl
def invsolve_strategies() -> Mapping[str, type]:
    return collect(__name__, Strategy)
