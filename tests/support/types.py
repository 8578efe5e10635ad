"""The types of what fixtures hand over, and a narrowing that is checked when it runs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any, TypeVar

import invsolve
from invsolve.contracts.operator import LinearOperator

#: The command line in this process: arguments to (exit code, standard output, standard error).
Cli = Callable[..., tuple[int, str, str]]
#: The command line as a process of its own: arguments to the process.
CliProcess = Callable[..., "subprocess.Popen[str]"]

T = TypeVar("T")


def narrow(kind: type[T], value: object) -> T:
    """The value itself, known to be of this kind: for what a contract types more widely than the case at hand.

    Raises:
        AssertionError: it is of another kind.
    """
    assert isinstance(value, kind), f"{type(value).__name__}, not {kind.__name__}"
    return value


def offered(plugin: object) -> Any:
    """A plugin with all that it offers beyond its contract, which its name does not tell: maps, a mask, a geometry."""
    return plugin


def linear_operator(name: str, **settings: Any) -> LinearOperator:
    """`invsolve.operator`, for the operators that are linear."""
    return narrow(LinearOperator, invsolve.operator(name, **settings))
