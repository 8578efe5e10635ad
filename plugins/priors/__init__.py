"""Priors, one checkpoint family a file."""

from collections.abc import Mapping

from invsolve.contracts.plugin import collect, hookimpl
from invsolve.contracts.prior import Prior


@hookimpl
def invsolve_priors() -> Mapping[str, type]:
    return collect(__name__, Prior)
