"""Counting operator calls from outside, so that no operator author has to think of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor

from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.problem import Calls
from invsolve.contracts.returned import called, check_rows
from invsolve.contracts.wrapped import Wrapped

A = TypeVar("A", bound=Operator)
T = TypeVar("T")


def metered(operator: A, calls: Calls) -> A:
    """An operator like this one that counts the rows through `forward` and `adjoint`; calls made inside one another count once.

    It shares all tensors and everything remembered with the operator, which is left as it is: runs in several threads may
    share one. Of a view the operator inside counts, so that solves which the view hands on count too.
    """
    counting = operator.twin()
    if isinstance(operator, Wrapped):
        counting._modules = operator._modules | {"inner": metered(operator.inner, calls)}
        return counting
    inside = False

    def counted(method: Callable[[Tensor], Tensor], name: str, *counters: str) -> Callable[[Tensor], Tensor]:
        def count(value: Tensor) -> Tensor:
            nonlocal inside
            if inside:
                return method(value)
            inside = True
            try:
                for counter in counters:
                    setattr(calls, counter, getattr(calls, counter) + len(value))
                return check_rows(method(value), value, called("operator", operator), name)
            finally:
                inside = False

        return count

    def remembered(key: Hashable, make: Callable[[], T]) -> T:
        # What is made once an operator is no cost of this run, else counts would tell which of two runs came first.
        nonlocal inside
        outside, inside = inside, True
        try:
            return operator.remembered(key, make)
        finally:
            inside = outside

    counting.__dict__["remembered"] = remembered
    # Methods of the instance go before those of its class, and solvers in the class then call them.
    methods: dict[str, tuple[str, ...]] = {"forward": ("forward",)}
    if isinstance(operator, LinearOperator):
        methods["adjoint"] = ("adjoint",)
        # A'A by a way of its own counts as both.
        if type(operator).normal is not LinearOperator.normal:
            methods["normal"] = ("forward", "adjoint")
    for name, counters in methods.items():
        counting.__dict__[name] = counted(getattr(counting, name), name, *counters)
    return counting
