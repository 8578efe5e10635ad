"""Which strategy is taken when none is named: the first of a fixed order whose needs the problem meets."""

from __future__ import annotations

import warnings

from invsolve import registry
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import Strategy
from invsolve.engine.needs import check_needs
from invsolve.errors import UserError

#: The name that asks for the choice.
AUTO = "auto"

#: `moment` is the closest to the exact posterior, and wants gradients through prior and operator. `red-diff` does without
#: those of the prior, and gives one estimate, not samples.
PREFERENCE = ("moment", "red-diff")


def default_strategy(problem: Problem) -> str:
    """The first name of `PREFERENCE` whose needs are met; warns with the reason when it is not the very first.

    Raises:
        UserError: none fits; says what the first one misses.
    """
    reason = ""
    for name in PREFERENCE:
        cls = registry.find("strategy", name)
        assert issubclass(cls, Strategy)
        try:
            check_needs(cls(), problem)
        except UserError as error:
            reason = reason or str(error)
            continue
        if reason:
            warnings.warn(f"{reason}: {name!r} is used instead", stacklevel=4)
        return name
    raise UserError(f"{reason}. That is the default; another can be named, strategy= (command line: --strategy)")
