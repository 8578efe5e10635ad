"""Groups and values as an instrument hands them over, checked before anything of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as whole_number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.errors import UserError


def as_groups(given: Any, groups: int, order: Tensor, what: str = "groups") -> list[int]:
    """Groups by number.

    Args:
        given: whole numbers.
        groups: how many there are.
        order: (groups,), not negative where one was acquired.
        what: their name in messages.

    Raises:
        UserError: one that is no whole number, is not there, was acquired before, or stands twice.
    """
    try:
        numbers = [given] if isinstance(given, int | np.integer) else list(given)
    except TypeError:
        raise UserError(f"{what}: {str(given)[:40]!r} is no list of groups; give some from 0 to {groups - 1}") from None
    chosen: list[int] = []
    for number in numbers:
        try:
            # True counts as 1 in Python, and as no number anywhere else.
            group = whole_number(number if not isinstance(number, bool | np.bool_) else None)  # type: ignore[arg-type]
        except TypeError:
            raise UserError(
                f"{what}: {str(number)[:40]!r} is no whole number; give groups from 0 to {groups - 1}"
            ) from None
        if not 0 <= group < groups:
            raise UserError(f"{what}: group {group} is not there; give groups from 0 to {groups - 1}")
        if int(order[group]) >= 0:
            raise UserError(f"{what}: group {group} was acquired before; each is measured once")
        if group in chosen:
            raise UserError(f"{what}: group {group} stands twice; give each once")
        chosen.append(group)
    return chosen


def as_values(given: Any, groups: Sequence[int], index: Tensor, like: Tensor) -> Tensor:
    """Values of groups as a whole measurement, zero elsewhere.

    Args:
        given: (groups, entries per group) in any shape, one row per group, or a whole measurement; a list of rows where groups
            have different numbers of entries.
        groups: which they are of.
        index: group of each entry, broadcasts against one measurement.
        like: one measurement.

    Raises:
        UserError: another size, complex numbers for a real measurement, or values that are not finite.
    """
    try:
        rows = _uneven(given)
        array = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given if rows is None else rows[0]))
    except (TypeError, ValueError):
        raise UserError("values: no array of numbers; give (groups, entries per group)") from None
    if rows is None and (not array.ndim or array.dtype == torch.bool):
        raise UserError("values: no array of numbers; give (groups, entries per group)")
    complex_ = array.is_complex() if rows is None else any(row.is_complex() for row in rows)
    if complex_ and not like.is_complex():
        raise UserError("values: are complex, but this instrument measures real numbers; give their real part")
    array = array.detach().cpu().to(like.dtype)
    parts: Any = array if rows is None else [row.to(like.dtype) for row in rows]
    places = index.cpu().expand(like.shape)
    whole = torch.zeros_like(like)
    if (
        rows is None
        and tuple(array.shape) == tuple(like.shape)
        and not (len(groups) == len(like) and _fits(array, groups, places))
    ):
        for group in groups:
            whole[places == group] = array[places == group]
    else:
        if len(parts) != len(groups):
            raise UserError(f"values: {len(parts)} rows for {len(groups)} groups; give one row per group")
        for row, group in zip(parts, groups, strict=True):
            here = places == group
            if row.numel() != int(here.sum()):
                raise UserError(
                    f"values: group {group} has {int(here.sum())} entries, got {row.numel()} {tuple(row.shape)}; give them "
                    "in the order in which they stand in a measurement"
                )
            whole[here] = row.flatten()
    taken = torch.isin(places, torch.as_tensor(list(groups)))
    if not bool(
        torch.view_as_real(whole[taken]).isfinite().all() if whole.is_complex() else whole[taken].isfinite().all()
    ):
        raise UserError("values: hold NaN or infinity; nothing was taken: measure these groups again")
    return whole


def _uneven(given: Any) -> list[Tensor] | None:
    """Rows of different lengths, each as it is; None of anything else."""
    if not isinstance(given, list | tuple) or len({np.size(row) for row in given}) < 2:
        return None
    return [torch.as_tensor(np.asarray(row)).detach().cpu().flatten() for row in given]


def _fits(array: Tensor, groups: Sequence[int], places: Tensor) -> bool:
    """Whether the rows of an array can be those of groups, one each."""
    return all(row.numel() == int((places == group).sum()) for row, group in zip(array, groups, strict=True))
