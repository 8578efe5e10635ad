"""What users hand over, brought into the form that the rest works with: arrays, operators, devices."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index as operator_index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.api.loading import load_prior, noise, operator, strategy
from invsolve.contracts.arguments import from_array
from invsolve.contracts.module import usable
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.strategy import Strategy
from invsolve.errors import UserError


def resolve_operator(given: Operator | str | None) -> Operator:
    """An operator, from itself or from its name."""
    if isinstance(given, str):
        return operator(given)
    if not isinstance(given, Operator):
        _refuse_class(given, Operator, "operator")
        raise UserError(
            f"operator must be an invsolve.Operator or the name of one, got {_kind(given)}; subclass invsolve.LinearOperator or "
            "invsolve.Operator, whose forward(x) is y"
        )
    return given


def resolve_prior(given: Prior | str | Path | None) -> Prior | None:
    """A prior, from itself, from its name or from a checkpoint file; None stays None."""
    if isinstance(given, str | Path):
        return load_prior(given)
    if given is not None and not isinstance(given, Prior):
        _refuse_class(given, Prior, "prior")
        remedy = "give a registered name, a checkpoint file or invsolve.load_prior(...)"
        if callable(given):
            remedy = (
                "make one of a network: invsolve.prior_from(module, parametrisation='epsilon', schedule='linear', "
                "event_shape=(1, None, None))"
            )
        raise UserError(f"prior must be an invsolve.Prior, a name or a file, got {_kind(given)}; {remedy}")
    return given


def prior_of(given: Prior | str | Path) -> Prior:
    """A prior, from itself, from its name or from a checkpoint file."""
    prior = resolve_prior(given)
    if prior is None:
        raise UserError("prior must be an invsolve.Prior, a name or a file, got None; give one")
    return prior


def resolve_strategy(given: Strategy | str, parameters_: Mapping[str, Any]) -> Strategy:
    """A strategy, from itself or from its name and parameters."""
    if isinstance(given, str):
        return strategy(given, **parameters_)
    if not isinstance(given, Strategy):
        _refuse_class(given, Strategy, "strategy")
        raise UserError(
            f"strategy must be an invsolve.Strategy or the name of one, got {_kind(given)}; give one, or leave it out"
        )
    return given


def _refuse_class(given: Any, kind: type, what: str) -> None:
    """Refuse a class where an instance of it is wanted."""
    if isinstance(given, type) and issubclass(given, kind):
        name = str(getattr(given, "name", "") or "")
        made = (
            f"invsolve.{'load_prior' if what == 'prior' else what}({name!r}, ...)" if name else f"{given.__name__}(...)"
        )
        raise UserError(f"{what} is the class {given.__name__}, expected one made of it: {made}")


def _kind(given: Any) -> str:
    return repr(given) if given is None or isinstance(given, int | float | bool) else type(given).__name__


def whole(value: Any, name: str, least: int = 0) -> int:
    """A whole number, such as a seed.

    Raises:
        UserError: it is none, or below the least.
    """
    try:
        number = operator_index(value)
    except TypeError:
        raise UserError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise UserError(f"{name} must be at least {least}, got {number}")
    return number


def resolve_noise(given: Noise | str | None) -> Noise | None:
    """A noise, from itself or from text such as "gaussian:0.01"; None stays None."""
    if given is None:
        return None
    if isinstance(given, Noise):
        return usable(given)
    if isinstance(given, str):
        return noise(given)
    _refuse_class(given, Noise, "noise")
    got = repr(given) if isinstance(given, int | float) else getattr(given, "__name__", type(given).__name__)
    raise UserError(
        f"noise must be an invsolve.Noise or text NAME:VALUE, got {got}, which does not say of what kind it is; Gaussian "
        "noise of standard deviation 0.05 is noise=invsolve.Gaussian(0.05)"
    )


def as_rows(value: Any, name: str) -> Tensor:
    """Items along the first axis, from an array or a tensor of any numbers: floating point or complex, single precision at least.

    Raises:
        UserError: no numbers, none at all, or no axis beside that of the items.
    """
    array = from_array(value, name) if isinstance(value, np.ndarray) else value
    if not isinstance(array, Tensor):
        raise UserError(f"{name} must be a tensor or array with the items along its first axis, got {_kind(value)}")
    shape = tuple(array.shape)
    if array.layout != torch.strided or array.is_meta:
        raise UserError(
            f"{name} is a {'meta' if array.is_meta else 'sparse'} tensor; give a dense one with its numbers"
        )
    if array.ndim < 2:
        raise UserError(
            f"{name} must have the items along its first axis and at least one more, got shape {shape}; one item is {name}[None]"
        )
    if 0 in shape:
        raise UserError(f"{name} {shape} is empty; give at least one item, and no axis of length 0")
    if not array.is_floating_point() and not array.is_complex():
        # Single precision holds whole numbers of 16 bits; y is brought to the run's precision later.
        array = array.to(torch.float32 if array.element_size() < 4 else torch.float64)
    if array.real.element_size() < 4:
        array = array.to(torch.complex64 if array.is_complex() else torch.float32)
    return array.detach()


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of this name, once it has proved to work here."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return place
