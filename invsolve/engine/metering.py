"""Counting operator calls from outside, so that no operator author has to think of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

from torch import Tensor

from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.problem import Calls


@contextmanager
def metered(operator: Operator, calls: Calls) -> Iterator[None]:
    """Count the rows that pass through `forward` and `adjoint`; calls made inside one another count once."""
    inside = False

    def counting(method: Callable[[Tensor], Tensor], counter: str) -> Callable[[Tensor], Tensor]:
        @wraps(method)
        def counted(value: Tensor) -> Tensor:
            nonlocal inside
            if inside:
                return method(value)
            inside = True
            try:
                setattr(calls, counter, getattr(calls, counter) + len(value))
                return method(value)
            finally:
                inside = False

        return counted

    # Instance attributes shadow the class's methods, and are removed again.
    names = ["forward", *(["adjoint"] if isinstance(operator, LinearOperator) else [])]
    for name in names:
        operator.__dict__[name] = counting(getattr(operator, name), name)
    try:
        yield
    finally:
        for name in names:
            del operator.__dict__[name]
