"""What users hand over, brought into the form that the rest works with: arrays, operators, devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.api.loading import noise, operator
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.errors import UserError


def resolve_operator(given: Operator | str | None) -> Operator:
    """An operator, from itself or from its name."""
    if isinstance(given, str):
        return operator(given)
    if not isinstance(given, Operator):
        raise UserError(f"operator must be an invsolve.Operator or a name, got {type(given).__name__}")
    return given


def resolve_noise(given: Noise | str | None) -> Noise | None:
    """A noise, from itself or from text such as "gaussian:0.01"; None stays None."""
    if given is None or isinstance(given, Noise):
        return given
    if isinstance(given, str):
        return noise(given)
    got = repr(given) if isinstance(given, int | float) else getattr(given, "__name__", type(given).__name__)
    raise UserError(
        f"noise must be an invsolve.Noise or text NAME:VALUE, got {got}, which does not say of what kind it is; Gaussian "
        "noise of standard deviation 0.05 is noise=invsolve.Gaussian(0.05)"
    )


def as_rows(value: Any, name: str) -> Tensor:
    array = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
    if not isinstance(array, Tensor) or array.ndim < 2:
        raise UserError(
            f"{name} must be a tensor or array with the items along its first axis, got {type(value).__name__}"
        )
    return array


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of this name, once it has proved to work here."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return place
