"""Whether calls of an operator make the host wait for a GPU; seen on the CPU too, by what is asked of tensors on the way."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from invsolve.contracts.operator import LinearOperator
from invsolve.testing.cases import NotApplicable, holds
from invsolve.testing.report import Finding
from invsolve.testing.use import Tried

#: Methods that hand a tensor's numbers to the host, which on the CPU run below what torch dispatches.
_HANDED_OVER = {"cpu", "numpy", "tolist", "__array__", "__complex__", "__index__"}


class Waits(TorchDispatchMode):
    """Counts what cannot be answered before the device has: numbers, and results whose shape depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith("index"):
            waits = any(_is_mask(index) for index in args[1]) if name in ("index", "index_put", "index_put_") else False
        else:
            waits = (
                name in _WORDS
                or torch.Tag.data_dependent_output in func.tags
                or torch.Tag.dynamic_output_shape in func.tags
            )
        if waits:
            self.seen[_WORDS.get(name, f"torch's {name}")] += 1
        return func(*args, **(kwargs or {}))


class HandedOver(TorchFunctionMode):
    """Counts the methods of `_HANDED_OVER`, and moves to the CPU by name; not in backward passes, where torch leaves the mode."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _HANDED_OVER:
            self.seen[f".{name}()"] += 1
        # A device that is the CPU by chance, as here, is an object: .to(x.device).
        elif name == "to" and "cpu" in (*map(_word, args[1:]), *map(_word, (kwargs or {}).values())):
            self.seen['.to("cpu")'] += 1
        return func(*args, **(kwargs or {}))


#: How an author wrote what torch calls otherwise.
_WORDS = {
    "_local_scalar_dense": "a number or a condition taken of a tensor (.item(), float(), if)",
    "_linalg_check_errors": "a check of the equations (torch.linalg.solve; solve_ex makes none)",
    "index": "indexing with a boolean mask",
    "index_put": "assignment to a boolean mask",
    "index_put_": "assignment to a boolean mask",
}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def never_waits(p: Tried) -> Finding:
    """Calls after the first take no number from a tensor: neither forward, nor adjoint, nor the gradient.

    A call that waits keeps the host from queueing the next ones, so that a GPU idles between them. The first call may wait:
    what it makes is kept.
    """
    if p.given.waits:
        raise NotApplicable(p.given.waits)
    operator = copy.deepcopy(p.given).to(p.x.device, p.x.real.dtype)
    told: list[str] = []
    for name, call in _calls(operator, p.x[:2]).items():
        call()
        waits = Waits()
        with waits, HandedOver(waits.seen):
            call()
        told += [f"{name}: {what}" for what in waits.seen]
    return holds(not told, f"a GPU would be waited for at every call, by {'; '.join(told)}")


def _calls(operator: Any, x: Tensor) -> dict[str, Callable[[], object]]:
    with torch.no_grad():
        y = operator(x)

    def forward() -> Tensor:
        with torch.no_grad():
            return operator(x)

    def adjoint() -> Tensor:
        with torch.no_grad():
            return operator.adjoint(y)

    def gradient() -> object:
        image = x.clone().requires_grad_()
        with torch.enable_grad():
            predicted = operator(image)
        return torch.autograd.grad(predicted, image, y) if predicted.requires_grad else None

    calls: dict[str, Callable[[], object]] = {"forward": forward, "gradient": gradient}
    return calls | ({"adjoint": adjoint} if isinstance(operator, LinearOperator) else {})


WAITING: dict[str, Callable[[Any], Finding]] = {"never waits for the device": never_waits}
