"""Which axis of a dataset is the item, which the channel, which are space: named, never guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from invsolve.errors import UserError

_ITEM = {"item", "items", "n", "slice", "sample", "image", "frame"}
_CHANNEL = {"channel", "channels", "c"}
_WAY_OUT = "name them, such as --axes item:channel:row:column"
_MANY = 8


@dataclass(frozen=True)
class Axes:
    """Positions in the stored array.

    Attributes:
        item: of the items (images, or volumes), None for a single volume.
        cut: of the axis along which volumes are cut into images, None where they are not.
        channel: None for grey images.
        space: of what is left.
    """

    item: int | None
    cut: int | None
    channel: int | None
    space: tuple[int, ...]


def find_axes(where: str, shape: Sequence[int], stored: str, given: str | None, cut: int | None, is_x: bool) -> Axes:
    """Settle the axes of a dataset.

    Args:
        where: file and dataset, for messages.
        shape: of the array.
        stored: its attribute `axes`, or empty.
        given: the user's names for them, which go first.
        cut: slice axis; counts along the array for a single volume, else along its spatial axes.
        is_x: whether it is the dataset `x`, whose first two axes are item and channel by convention.

    Raises:
        UserError: they are not known, do not fit the shape, or look permuted.
    """
    text = given if given is not None else stored
    names = re.split(r"[\s:,]+", text.strip().lower()) if text.strip() else []
    if names and len(names) != len(shape):
        origin = "--axes" if given is not None else "its attribute axes"
        raise UserError(f"{where}: {origin} names {len(names)} axes ({text}), the array has {len(shape)}; {_WAY_OUT}")
    if not names:
        names = _by_convention(where, shape, cut, is_x)
    axes = _positions(where, names, cut)
    if not 1 <= len(axes.space) <= 3:
        raise UserError(
            f"{where}: {len(axes.space)} spatial axes in {':'.join(names)}, expected 1 to 3; {_WAY_OUT}"
            + (", or cut a volume with --slice-axis" if axes.item is None else "")
        )
    channels = shape[axes.channel] if axes.channel is not None else 1
    if given is None and channels > _MANY:
        last = len(shape) - 1
        if shape[last] <= 4:
            hint = (
                f"it looks as if the channels came last: --axes item:{'row:column' if last == 3 else 'z:y:x'}:channel"
            )
        else:
            hint = "are these volumes or grey images without a channel axis? --axes item:row:column, or --slice-axis"
        raise UserError(f"{where}: axis {axes.channel} would be {channels} channels; {hint}")
    return axes


def _by_convention(where: str, shape: Sequence[int], cut: int | None, is_x: bool) -> list[str]:
    """Names of axes that nothing names: x is (item, channel, *spatial); three axes with a slice axis are a volume."""
    if cut is not None and len(shape) == 3:
        return ["z", "y", "x"]
    if is_x and len(shape) >= 4:
        return ["item", "channel", *[f"axis{k}" for k in range(len(shape) - 2)]]
    if len(shape) == 3:
        raise UserError(
            f"{where}: its three axes have no names: give --slice-axis 0 for slices of a volume or grey images along the "
            "first axis, or --axes item:channel:position for signals"
        )
    raise UserError(f"{where}: its axes have no names; {_WAY_OUT}")


def _positions(where: str, names: Sequence[str], cut: int | None) -> Axes:
    items = [k for k, name in enumerate(names) if name in _ITEM]
    channels = [k for k, name in enumerate(names) if name in _CHANNEL]
    space = [k for k, name in enumerate(names) if name not in _ITEM | _CHANNEL]
    if len(items) > 1 or len(channels) > 1:
        raise UserError(f"{where}: axes {':'.join(names)} name the item or the channel twice; {_WAY_OUT}")
    item, channel = next(iter(items), None), next(iter(channels), None)
    if cut is None:
        if item is None:
            raise UserError(
                f"{where}: axes {':'.join(names)} are one volume; cut it into images with --slice-axis 0, 1 or 2"
            )
        return Axes(item, None, channel, tuple(space))
    if item is not None and len(space) < 3:
        if cut == item and len(space) == 2:
            return Axes(item, None, channel, tuple(space))
        raise UserError(f"{where}: axes {':'.join(names)} are images already; leave --slice-axis out")
    candidates = space if item is not None else list(range(len(names)))
    if not 0 <= cut < len(candidates) or candidates[cut] not in space:
        raise UserError(f"{where}: --slice-axis {cut}: expected one of the {len(space)} spatial axes, counted from 0")
    axis = candidates[cut]
    return Axes(item, axis, channel, tuple(k for k in space if k != axis))
