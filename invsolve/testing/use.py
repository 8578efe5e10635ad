"""An operator in long use: it keeps nothing of its calls, works in threads at once, and follows tensors that are replaced."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.numerics.linalg import norm
from invsolve.testing.cases import NotApplicable, below, holds
from invsolve.testing.report import Finding

#: Calls after which nothing but the last may be held, and threads that call at once.
_CALLS, _THREADS = 6, 4


class Tried(Protocol):
    """What is looked at: an operator as it was given, a copy of it, and images."""

    @property
    def given(self) -> Operator: ...

    @property
    def operator(self) -> Operator: ...

    @property
    def x(self) -> Tensor: ...

    @property
    def rounding(self) -> float: ...

    def images(self, seed: int) -> Tensor: ...


def keeps_nothing(p: Tried) -> Finding:
    """Inputs and outputs of calls are freed, and what the operator holds beside its buffers does not grow with calls."""
    references: list[weakref.ref[Tensor]] = []

    def call(seed: int) -> None:
        image = p.images(seed)[:1].requires_grad_()
        with torch.enable_grad():
            measurement = p.operator(image)
        references.extend((weakref.ref(image), weakref.ref(measurement)))
        if isinstance(p.operator, LinearOperator):
            p.operator.adjoint(measurement.detach())

    call(10)
    held = _tensors(p.operator, set())
    for k in range(_CALLS):
        call(11 + k)
    alive = sum(reference() is not None for reference in references)
    if alive > 2:
        gc.collect()
        alive = sum(reference() is not None for reference in references)
    if alive > 2:
        return holds(False, f"{alive} of the {len(references)} inputs and outputs of {_CALLS + 1} calls are still held")
    more = _tensors(p.operator, set()) - held
    return holds(
        more < _CALLS, f"holds {more} more tensors after {_CALLS} more calls; keep values by self.remembered(key, make)"
    )


def _tensors(value: Any, seen: set[int]) -> int:
    """How many tensors are reached from a value through modules, dictionaries and sequences."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return 1
    if isinstance(value, nn.Module):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(_tensors(part, seen) for part in value) if isinstance(value, list | tuple | set) else 0


def safe_in_threads(p: Tried) -> Finding:
    """Threads that share the operator, which has not been called before, measure what one thread does."""
    shared, alone = copy.deepcopy(p.given).to(p.x.device, p.x.real.dtype), p.operator
    images = p.x[:_THREADS].split(1)

    def measure(image: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [_both(shared, image) for _ in range(2)]

    with ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(measure, images))
    error = 0.0
    for image, measured in zip(images, results, strict=True):
        wanted = _both(alone, image)
        error = max(error, *(_difference(got, wanted) for got in measured))
    return below(error, p.rounding, "threads that share it disturb one another")


def follows_replaced(p: Tried) -> Finding:
    """A buffer that is replaced after a call counts in the next, as in an operator that had it from the start."""
    names = [n for n, b in p.given.named_buffers(recurse=False) if b.is_floating_point() or b.is_complex()]
    if not names:
        raise NotApplicable("no buffers of numbers")
    error = 0.0
    for name in names:
        warm, cold = (copy.deepcopy(p.given).to(p.x.device, p.x.real.dtype) for _ in range(2))
        _answers(warm, p.x)
        for operator in (warm, cold):
            # Reversed and halved: another tensor of the same shape, as good for a kernel, a mask or weights.
            setattr(operator, name, 0.5 * getattr(operator, name).flip(-1))
        pairs = zip(_answers(warm, p.x), _answers(cold, p.x), strict=True)
        error = max(error, *(_difference(a, b) for a, b in pairs))
    return below(error, p.rounding, f"{' or '.join(names)} was replaced, and it went on with the old one")


def _answers(operator: Operator, x: Tensor) -> list[Tensor]:
    """The measurement; of a linear operator the adjoint and the proximal solve too, which may have a cache of their own."""
    y = operator(x)
    if not isinstance(operator, LinearOperator):
        return [y]
    return [y, operator.adjoint(y), operator.prox(x, y, 1.0)]


def _both(operator: Operator, x: Tensor) -> Tensor:
    """Forward, and adjoint of that where it is linear."""
    y = operator(x)
    return operator.adjoint(y) if isinstance(operator, LinearOperator) else y


def _difference(a: Tensor, b: Tensor) -> float:
    return float(norm(a - b).max() / norm(b).max().clamp_min(1e-30))


USE: dict[str, Callable[[Any], Finding]] = {
    "keeps nothing of a call": keeps_nothing,
    "safe in threads": safe_in_threads,
    "follows replaced tensors": follows_replaced,
}
