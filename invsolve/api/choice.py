"""Which strategy is taken when none is named, and which would do where one does not: asked of the registry."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from invsolve import registry
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import Strategy
from invsolve.engine.needs import check_needs
from invsolve.errors import Unsuited, UserError

#: The name that asks for the choice.
AUTO = "auto"
_LISTED = 4


def strategies(suits: Callable[[type[Strategy]], bool] = lambda cls: True) -> list[str]:
    """Names of the registered strategies that suit, the preferred first, then those that draw samples, then by name."""
    known = [(name, cls) for name, cls in registry.available("strategy").items() if issubclass(cls, Strategy)]
    last = len(known)

    def place(name: str, cls: type[Strategy]) -> tuple[int, bool, str]:
        return (last if cls.preference is None else cls.preference), not cls.draws, name

    return [name for name, cls in sorted(known, key=lambda pair: place(*pair)) if suits(cls)]


def preferred() -> list[str]:
    """Names of the strategies that may be taken where none is named, in the order of `Strategy.preference`.

    Raises:
        UserError: no registered strategy has one.
    """
    names = strategies(lambda cls: cls.preference is not None)
    if not names:
        raise UserError("no registered strategy has a preference; name one, strategy= (command line: --strategy)")
    return names


def other_modes(strategy: type[Strategy]) -> str:
    """What to add about a strategy that takes posteriors for one mode, with what weighs several; empty for others."""
    if not strategy.unimodal:
        return ""
    names = strategies(lambda cls: cls.weighs_modes and set(cls.needs) <= set(strategy.needs))
    named = " or ".join(map(repr, names))
    return f"; {strategy.name!r} takes a posterior for one mode and is overconfident" + (
        f": {named} weighs several" if names else ""
    )


def default_strategy(problem: Problem) -> str:
    """The first strategy, in the order of `Strategy.preference`, whose needs are met; warns when it is not the very first.

    Raises:
        UserError: none fits; says what the first one misses, and what would do.
    """
    first: Unsuited | None = None
    for name in preferred():
        cls = registry.find("strategy", name)
        assert issubclass(cls, Strategy)
        try:
            check_needs(cls(), problem, scaled=False)
        except Unsuited as error:
            first = first or error
            continue
        if first is not None:
            warnings.warn(f"{first}: {name!r} is used instead", stacklevel=4)
        caution = "" if isinstance(problem.operator, LinearOperator) else other_modes(cls)
        if caution:
            operator = problem.operator.name or type(problem.operator).__name__
            warnings.warn(f"operator {operator!r} is not linear, so that several images may fit{caution}", stacklevel=4)
        return name
    assert first is not None
    raise Unsuited(
        f"{first}. That is the default; another can be named, strategy= (command line: --strategy)", first.suits
    )


@contextmanager
def alternatives() -> Iterator[None]:
    """Add to an error about an unsuited strategy the names of registered ones that would do."""
    try:
        yield
    except Unsuited as error:
        names = strategies(error.suits)
        listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        raise UserError(
            f"{error}; {listed} would do" if names else f"{error}; no registered strategy would do"
        ) from None
