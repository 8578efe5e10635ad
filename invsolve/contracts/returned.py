"""What an author's code returned, held against its contract: a shape or type that would be broadcast in silence is named."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invsolve.errors import UserError


def called(kind: str, plugin: object) -> str:
    """A plugin as messages name it, such as "prior 'ct-128'"."""
    return f"{kind} {getattr(plugin, 'name', '') or type(plugin).__name__!r}"


def check_tensor(value: Any, shape: tuple[int, ...], who: str, what: str) -> Tensor:
    """Refuse what is no tensor of this shape.

    Args:
        value: as it was returned.
        shape: that the contract asks for.
        who: as `called` says it.
        what: the method, such as "denoise".

    Raises:
        UserError: says what was returned and what is expected.
    """
    if not isinstance(value, Tensor):
        raise UserError(f"{who}: {what} returned {type(value).__name__}, expected a tensor of shape {shape}")
    if tuple(value.shape) != shape:
        raise UserError(
            f"{who}: {what} returned a tensor of shape {tuple(value.shape)}, expected {shape}, one row per row of x"
        )
    return value


def check_rows(value: Any, x: Tensor, who: str, what: str) -> Tensor:
    """Refuse what is no tensor of numbers with a row for each of x.

    Raises:
        UserError: says what was returned and what is expected.
    """
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        got = _plain(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{who}: {what} returned {got}, expected a tensor of floating-point or complex numbers")
    if not value.ndim or len(value) != len(x):
        raise UserError(
            f"{who}: {what} returned a tensor of shape {tuple(value.shape)} for {len(x)} rows {tuple(x.shape)}, expected as many"
        )
    return value


def check_images(value: Any, like: Tensor, who: str, what: str) -> Tensor:
    """Refuse what is no batch of real images like those that were handed in: as many rows, as large, as precise.

    Raises:
        UserError: says what was returned and what is expected.
    """
    images = check_tensor(value, tuple(like.shape), who, what)
    if images.dtype != like.dtype:
        raise UserError(
            f"{who}: {what} returned {_plain(images.dtype)}, expected {_plain(like.dtype)}, as it was given"
        )
    return images


def check_spread(value: Any, y: Tensor, who: str) -> Tensor:
    """Refuse what is no real standard deviation of each number of y.

    Raises:
        UserError: no real tensor, or of a shape that is not broadcast to y's.
    """
    if not isinstance(value, Tensor) or value.is_complex():
        got = "complex numbers" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{who}: std returned {got}, expected a real tensor")
    fits = value.ndim <= y.ndim and all(a in (1, b) for a, b in zip(value.shape[::-1], y.shape[::-1], strict=False))
    if not fits:
        raise UserError(
            f"{who}: std returned a tensor of shape {tuple(value.shape)}, expected one that is broadcast to {tuple(y.shape)}"
        )
    return value


def check_schedule(levels: Any, who: str) -> Tensor:
    """Refuse noise levels that are no schedule.

    Raises:
        UserError: no tensor of one axis, no level, one that is negative or not finite, or the first is not the largest and the
            last the smallest; between them a strategy may travel back up.
    """
    if not isinstance(levels, Tensor) or levels.ndim != 1:
        got = f"a tensor of shape {tuple(levels.shape)}" if isinstance(levels, Tensor) else type(levels).__name__
        raise UserError(f"{who}: schedule returned {got}, expected a tensor (steps + 1,) of noise levels")
    if not len(levels):
        raise UserError(f"{who}: its schedule is empty; expected the level to begin with, and one for each step")
    if not bool((levels.isfinite() & (levels >= 0)).all()) or bool(
        (levels > levels[0]).any() | (levels < levels[-1]).any()
    ):
        raise UserError(f"{who}: schedule returned levels that rise, are negative or not finite; expected them to fall")
    return levels


def check_state(state: Any, rows: int, who: str, what: str) -> dict[str, Tensor]:
    """Refuse what is no state: tensors by name, `x` among them, each with the batch as its first axis.

    Raises:
        UserError: says which entry is wrong.
    """
    if not isinstance(state, dict) or not isinstance(state.get("x"), Tensor):
        got = ", ".join(map(repr, state)) if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{who}: {what} returned {got}, expected a dictionary of tensors with the iterate under 'x'")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{who}: {what} returned {type(value).__name__} under {name!r}, expected a tensor")
        if not value.ndim or len(value) != rows:
            shape = tuple(value.shape)
            raise UserError(
                f"{who}: {what} returned {name!r} of shape {shape}, expected {rows} along its first axis, the batch"
            )
    residual = state.get("residual")
    if residual is not None and tuple(residual.shape) != (rows,):
        raise UserError(f"{who}: {what} returned 'residual' of shape {tuple(residual.shape)}, expected ({rows},)")
    return state


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
