"""Any plugin's properties as named cases, for `pytest.mark.parametrize`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.strategy import Strategy
from invsolve.errors import UserError
from invsolve.testing.cases import Case, expecting
from invsolve.testing.operators import operator_cases
from invsolve.testing.priors import prior_cases
from invsolve.testing.strategies import strategy_cases


def checks(
    subject: Operator | Prior | Strategy, expected: Mapping[str, str] | None = None, **options: Any
) -> list[Case]:
    """The properties that a plugin must hold, each as a case with a name, which a test calls:

        @pytest.mark.parametrize("case", checks(MyOperator()))
        def test_my_operator(case):
            case()

    A property that does not apply ("not maskable") or that is expected to fail is skipped with its reason; one that is
    expected to fail and holds is a failure. Nothing runs until a case is called.

    Args:
        subject: an instance of the plugin.
        expected: properties known not to hold, with the reason: {"differentiable": "wraps a compiled projector"}.
        options: those of `check_operator`, `check_prior` or `check_strategy`, such as device="cuda".

    Raises:
        UserError: no operator, prior or strategy; or `expected` names no property.
    """
    if isinstance(subject, Operator):
        cases = operator_cases(subject, **options)
    elif isinstance(subject, Prior):
        cases = prior_cases(subject, **options)
    elif isinstance(subject, Strategy):
        cases = strategy_cases(subject, **options)
    else:
        raise UserError(
            f"testing: checks takes an instance of an Operator, Prior or Strategy, got {type(subject).__name__}"
        )
    return expecting(cases, expected or {})
