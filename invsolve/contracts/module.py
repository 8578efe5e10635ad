"""The base of operators and priors: an `nn.Module` without its pitfalls for authors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class Module(nn.Module):
    """An `nn.Module` whose tensor attributes are buffers, and which needs no call of `super().__init__()`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Initialised here so that an author who forgets super().__init__() still gets a working module.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    def __init__(self) -> None:
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and name not in self._buffers:
            self.__dict__.pop(name, None)
            self.register_buffer(name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # nn.Module would drop the imaginary part of complex buffers on .to(torch.float64).
        def on_real(t: Tensor) -> Tensor:
            return torch.view_as_complex(fn(torch.view_as_real(t))) if t.is_complex() else fn(t)

        return super()._apply(on_real, recurse)
