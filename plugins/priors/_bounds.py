"""What a file may say of the size of its network: no more than its weights allow, so that no few bytes make a large one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from invsolve.errors import UserError, printable

#: In the names of settings: numbers of layers, of which each has a tensor or more.
_LAYERS = ("layers", "blocks")
#: Settings that are widths: a block of so many features has a convolution with their square.
_WIDTHS = ("block_out_channels", "nf", "model_channels", "num_channels", "width")
#: Of what else is a number, such as times of the schedule.
_OTHERS = 10**6


def check_bounds(settings: Any, weights: Mapping[str, Tensor], where: str, name: str = "") -> None:
    """Refuse settings of a network that is larger than its weights.

    Args:
        settings: of the network, as they were read: objects, lists and numbers in one another.
        weights: name -> tensor.
        where: the file, for messages.
        name: of the setting.

    Raises:
        UserError: more layers than there are tensors, or wider ones than there are numbers.
    """
    tensors, numbers = len(weights), sum(value.numel() for value in weights.values())
    _check(settings, tensors, numbers, where, name)


def _check(settings: Any, tensors: int, numbers: int, where: str, name: str) -> None:
    said = printable(name)
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            _check(value, tensors, numbers, where, str(key))
    elif isinstance(settings, list | tuple):
        if len(settings) > max(tensors, 16):
            raise UserError(f"{where}: {said} lists {len(settings)} values, but there are {tensors} weights")
        for value in settings:
            _check(value, tensors, numbers, where, name)
    elif isinstance(settings, int | float) and not isinstance(settings, bool):
        # A number with a decimal point is no count: the activations' limits of a training gone wild may be large.
        most: float = max(numbers, _OTHERS) if isinstance(settings, int) else sys.float_info.max
        if any(word in name for word in _LAYERS):
            most = tensors
        elif name in _WIDTHS:
            most = int(numbers**0.5)
        if not abs(settings) <= most:
            raise UserError(
                f"{where}: {said} is {settings:g}, but its {tensors} weights of {numbers} numbers are of a smaller network"
            )
