"""Forward operators, one physical system a file."""

from collections.abc import Mapping

from invsolve.contracts.operator import Operator
from invsolve.contracts.plugin import collect, hookimpl


@hookimpl
def invsolve_operators() -> Mapping[str, type]:
    return collect(__name__, Operator)
