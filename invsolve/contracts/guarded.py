"""What an operator is called with, guarded: images and measurements that it was not made for are one line, whatever its code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invsolve.errors import UserError

#: What torch and Python raise where shapes or kinds of numbers do not fit.
_MISFITS = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)


def calculates_with(value: object) -> bool:
    """Whether a value is a tensor of numbers that operators calculate with: float32 or wider, half precision on a GPU alone."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return False
    return value.device.type != "cpu" or torch.finfo(value.dtype).bits >= 32


def kind_of(value: object) -> str:
    """What a value is, for a message."""
    return f"{value.dtype} on the {value.device.type}" if isinstance(value, Tensor) else type(value).__name__


def check_image(operator: Any, x: Any) -> None:
    """Refuse numbers that operators do not calculate with, images of a size that this one was not made for, and empty ones.

    Raises:
        UserError: says what is taken.
    """
    if not calculates_with(x):
        raise UserError(
            f"operator {_name(operator)} takes tensors of float32 or float64, got {kind_of(x)}; give x.float()"
        )
    if operator.image_shape is not None and tuple(x.shape[1:]) != tuple(operator.image_shape):
        raise UserError(
            f"operator {_name(operator)} takes images (channels, *size) of "
            f"{tuple(operator.image_shape)}, got {tuple(x.shape[1:])}"
        )
    if 0 in x.shape[1:]:
        raise UserError(
            f"operator {_name(operator)} takes images (items, channels, *size), got {tuple(x.shape)}: no pixels"
        )


def guarded(adjoint: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An `adjoint` method that refuses what is no measurement of its operator.

    Nothing is looked at beforehand but the kind of numbers; a shape is judged where the method fails, or gives no image.
    """

    @functools.wraps(adjoint)
    def call(self: Any, y: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if not calculates_with(y):
            raise UserError(
                f"operator {_name(self)}: adjoint takes tensors of float32 or float64, got {kind_of(y)}; give y.float()"
            )
        try:
            image = adjoint(self, y, *arguments, **options)
        except UserError:
            raise
        except _MISFITS as error:
            if told := _misfit(self, y):
                raise UserError(told) from error
            raise
        wanted = self.image_shape
        if wanted is not None and tuple(image.shape[1:]) != tuple(wanted) and (told := _misfit(self, y)):
            raise UserError(told)
        return image

    return call


def _misfit(operator: Any, y: Tensor) -> str:
    """Why y is no measurement of an operator; empty where it is one."""
    shape = tuple(y.shape[1:])
    if y.ndim < 2 or 0 in y.shape:
        return f"operator {_name(operator)}: adjoint takes measurements (items, ...), got {tuple(y.shape)}"
    if operator.image_shape is not None:
        wanted = tuple(operator.measurement_shape(operator.image_shape))
        return (
            "" if shape == wanted else f"operator {_name(operator)}: adjoint takes measurements {wanted}, got {shape}"
        )
    try:
        known = operator.image_shape_for(shape) is not None
    except _MISFITS:
        known = False
    return "" if known else f"operator {_name(operator)}: adjoint got {shape}, which is the measurement of no image"


def _name(operator: Any) -> str:
    return repr(operator.name or type(operator).__name__)
