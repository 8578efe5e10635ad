"""Layouts, one instrument a file."""

from collections.abc import Mapping

from invsolve.contracts.layout import Layout
from invsolve.contracts.plugin import collect, hookimpl


@hookimpl
def invsolve_layouts() -> Mapping[str, type]:
    return collect(__name__, Layout)
