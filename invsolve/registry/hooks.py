"""The six hooks by which operators, strategies, priors, layouts, noises and policies enter, built-in and foreign alike."""

from collections.abc import Mapping

import pluggy

from invsolve.contracts.plugin import PROJECT

hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def invsolve_operators() -> Mapping[str, type]:  # type: ignore[empty-body]
    """Return name -> subclass of `invsolve.Operator`."""


@hookspec
def invsolve_strategies() -> Mapping[str, type]:  # type: ignore[empty-body]
    """Return name -> subclass of `invsolve.Strategy`."""


@hookspec
def invsolve_priors() -> Mapping[str, type]:  # type: ignore[empty-body]
    """Return name -> subclass of `invsolve.Prior`."""


@hookspec
def invsolve_layouts() -> Mapping[str, type]:  # type: ignore[empty-body]
    """Return name -> subclass of `invsolve.Layout`."""


@hookspec
def invsolve_noises() -> Mapping[str, type]:  # type: ignore[empty-body]
    """Return name -> subclass of `invsolve.Noise`."""


@hookspec
def invsolve_policies() -> Mapping[str, type]:  # type: ignore[empty-body]
    """Return name -> subclass of `invsolve.Policy`."""
