"""The base of operators and priors: an `nn.Module` without its pitfalls for authors, and copies of it for a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from invsolve.errors import UserError

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
D = TypeVar("D", bound=Any)


class Module(nn.Module):
    """An `nn.Module` whose tensor attributes are buffers, and which needs no call of `super().__init__()`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Initialised here so that an author who forgets super().__init__() still gets a working module.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        self.__dict__.update(_changes=0, _remembered={})
        return self

    def __init__(self) -> None:
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__["_changes"] += 1
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and name not in self._buffers:
            self.__dict__.pop(name, None)
            self.register_buffer(name, value)
        else:
            super().__setattr__(name, value)

    @classmethod
    def spelled_out(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of an operator with those replaced that stand for others, such as a mask's name by the mask; here none.

        Called with the value of every parameter, before those for each item are told apart.
        """
        return dict(values)

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, kept for the next call with this key until the module changes.

        A change is any attribute that is assigned, here or in a module inside this one, and any tensor among parameters and
        buffers that is replaced, moved or written to in place (`copy_`, `load_state_dict`). Where autograd follows one of them,
        nothing is kept, because the graph is used up by its backward pass.

        Args:
            key: what else the value depends on, such as shape, dtype and device.
            make: computes the value from attributes of this module.
        """
        tensors, marks = _state(self)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return make()
        kept = self.__dict__["_remembered"].get(key)
        # The tensors themselves are kept and compared: a new one may lie where a freed one lay.
        if kept is None or kept[1] != marks or list(map(id, kept[0])) != list(map(id, tensors)):
            kept = tensors, marks, make()
            self.__dict__["_remembered"][key] = kept
        return kept[2]

    def twin(self) -> Self:
        """A second object with the same attributes, tensors and memory, whose own attributes may be replaced."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # What is remembered belongs to these tensors, not to those of a copy.
        return self.__dict__ | {"_remembered": {}}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # nn.Module would drop the imaginary part of complex buffers on .to(torch.float64).
        def on_real(t: Tensor) -> Tensor:
            return torch.view_as_complex(fn(torch.view_as_real(t))) if t.is_complex() else fn(t)

        return super()._apply(on_real, recurse)


def _state(module: nn.Module) -> tuple[list[Tensor], list[int]]:
    """The tensors of a module and of those inside it, and numbers that are different after any change."""
    tensors: list[Tensor] = []
    marks: list[int] = []
    waiting = [module]
    while waiting:
        part = waiting.pop()
        marks.append(part.__dict__.get("_changes", 0))
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                tensors.append(tensor)
                # Tensors made in inference mode have no version, and cannot be written to outside it.
                marks += (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        waiting += [child for child in part._modules.values() if child is not None]
    return tensors, marks


def placed(module: M, device: torch.device, frozen: bool = False) -> M:
    """The module on a device: itself where nothing has to change, else a copy that shares every tensor which need not move.

    Tensors that were made in inference mode, which no gradient may pass, are copied too.

    Args:
        module: left as it is.
        device: where its parameters and buffers are to be.
        frozen: for a network that is only evaluated: no parameter requires a gradient, all inside is in evaluation mode.

    Raises:
        UserError: the module would have to be copied and cannot be.
    """
    parameters, buffers = list(module.parameters()), list(module.buffers())
    moves = any(not _is_on(tensor, device) or tensor.is_inference() for tensor in (*parameters, *buffers))
    learns = any(p.requires_grad for p in parameters) or any(
        m.training for m in module.modules() if not isinstance(m, Module)
    )
    if not moves and not (frozen and learns):
        return module
    memo: dict[int, Any] = {id(buffer): _usable(buffer.to(device)) for buffer in buffers}
    for value in parameters:
        memo[id(value)] = nn.Parameter(_usable(value.detach().to(device)), value.requires_grad and not frozen)
    try:
        copied = copy.deepcopy(module, memo)
    except (TypeError, RuntimeError) as error:
        wanted = f".requires_grad_(False).eval().to({str(device)!r})" if frozen else f".to({str(device)!r})"
        raise UserError(
            f"{type(module).__name__} must be changed for the run and cannot be copied ({str(error).splitlines()[0]}); call "
            f"{wanted} on it yourself, or let it hold nothing that copy.deepcopy refuses"
        ) from None
    return copied.eval() if frozen else copied


def usable(settings: D) -> D:
    """A dataclass whose tensors gradients may pass: itself, or a copy where one was made in inference mode."""
    held = {f.name: getattr(settings, f.name) for f in fields(settings)}
    copies = {name: v.clone() for name, v in held.items() if isinstance(v, Tensor) and v.is_inference()}
    return replace(settings, **copies) if copies else settings


def _usable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)
