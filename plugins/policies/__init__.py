"""Policies, which choose what an instrument measures next: fixed orders, and those that follow the particles."""

from collections.abc import Mapping

from invsolve.contracts.acquisition import Policy
from invsolve.contracts.plugin import collect, hookimpl


@hookimpl
def invsolve_policies() -> Mapping[str, type]:
    return collect(__name__, Policy)
