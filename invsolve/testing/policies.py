"""Conformance of a policy: what it asks for is there, open and the same each time, on small instruments of every kind."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from invsolve.contracts.acquisition import Knowledge, Policy
from invsolve.contracts.maskable import MaskableOperator
from invsolve.errors import UserError
from invsolve.testing.log import Log
from invsolve.testing.report import Report

_PARTICLES = 5


class _Instrument(MaskableOperator):
    """Measures the image itself, whose entries belong to groups in one way or another."""

    def __init__(self, index: Tensor, layout: Literal["grid", "circle", "none"]) -> None:
        super().__init__()
        self.group_index = index
        self.group_layout = layout  # type: ignore[misc]
        self.image_shape = tuple(index.shape)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.group_index >= 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)


def check_policy(policy: Policy) -> Report:
    """Check that a policy asks for groups that are there and were not measured, the same each time, and in the end for all.

    Columns, points, directions and patterns in no order are tried, real and complex, with entries that cannot be measured. What
    a policy refuses with a `UserError` is not held against it, if it takes one of them.

    Args:
        policy: an instance.

    Returns:
        Report: one line a property. `assert check_policy(policy)` in a test shows them all when one fails.
    """
    report = Log(f"policy {policy.name or type(policy).__name__}")
    report.attempt("record", lambda: _record(report, policy))
    taken = []
    for name, operator in _instruments():
        for values in ("real", "complex"):
            label = f"{name}, {values}"
            try:
                policy.ask(_knowledge(policy, operator, values == "complex"), 1)
            except UserError as error:
                report.holds(f"refused in one line, {label}", "\n" not in str(error), "the refusal has several lines")
                continue
            except Exception as error:
                report.holds(f"asks, {label}", False, f"{type(error).__name__}: {error}")
            taken.append(label)
            report.attempt(label, lambda o=operator, n=label, c=values == "complex": _look(report, policy, o, c, n))  # type: ignore[misc]
    report.holds("takes one of the instruments", bool(taken), "every kind of groups is refused")
    return report


def _instruments() -> Iterator[tuple[str, MaskableOperator]]:
    yield "columns", _Instrument(torch.arange(7).expand(1, 4, 7).contiguous(), "grid")
    holes = torch.arange(20).view(1, 4, 5) // 2 * 2
    yield "points", _Instrument(torch.arange(20).view(1, 4, 5), "grid")
    yield "columns with holes", _Instrument(torch.where(holes % 4 == 0, holes // 4, -1), "grid")
    yield "directions", _Instrument(torch.arange(9).view(1, 9, 1).expand(1, 9, 3).contiguous(), "circle")
    yield "patterns", _Instrument(torch.arange(6).view(1, 1, 6), "none")
    yield "one group", _Instrument(torch.zeros(1, 2, 2, dtype=torch.int64), "grid")


def _knowledge(policy: Policy, operator: MaskableOperator, complex_: bool, taken: Sequence[int] = ()) -> Knowledge:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.complex128 if complex_ else torch.float64

    def rows(count: int) -> Tensor:
        return operator(torch.randn(count, *operator.group_index.shape, generator=generator, dtype=dtype))

    acquired = torch.zeros(operator.groups, dtype=torch.bool)
    acquired[list(taken)] = True
    costs = 1 + torch.arange(operator.groups, dtype=torch.float64) % 3
    predicted = rows(_PARTICLES) if policy.particles else None
    root = rows(operator.group_index.numel()) if policy.covariance else None
    return Knowledge(operator, acquired, costs, 3, predicted, root)


def _look(report: Log, policy: Policy, operator: MaskableOperator, complex_: bool, label: str) -> None:
    groups = operator.groups
    open_ = True
    order: list[int] = []
    before = torch.get_rng_state()
    while len(order) < groups:
        knowledge = _knowledge(policy, operator, complex_, order)
        picks = [int(g) for g in policy.ask(knowledge, 3)]
        left = set(range(groups)) - set(order)
        fits = 1 <= len(picks) <= 3 and len(set(picks)) == len(picks) and set(picks) <= left
        open_ &= fits
        if not fits:
            break
        order += picks
    remedy = (
        f"asked for {picks} of {sorted(left)}: up to `count` groups that were not acquired, one at least, each once"
    )
    report.holds(f"asks for open groups, {label}", open_, remedy)
    if open_:
        last = list(policy.ask(_knowledge(policy, operator, complex_, order), 1))
        report.holds(f"ends, {label}", not last, f"asks for {last} when everything was acquired")
    untouched = torch.equal(before, torch.get_rng_state())
    report.holds(
        f"torch's own generator untouched, {label}", untouched, "draw from a generator seeded with knowledge.seed"
    )
    knowledge, blank = (_knowledge(policy, operator, complex_, order[:1]) for _ in range(2))
    if groups == 1:
        return
    first, again = (list(policy.ask(knowledge, 2)) for _ in range(2))
    report.holds(f"the same each time, {label}", first == again, f"asked for {first}, then for {again}")
    same = all(_equal(a, b) for a, b in zip(_tensors(knowledge), _tensors(blank), strict=True))
    report.holds(f"leaves what it is handed, {label}", same, "ask changed a tensor of its Knowledge; clone it first")
    twin = copy.deepcopy(policy)
    report.holds(
        f"a copy asks for the same, {label}", list(twin.ask(blank, 2)) == first, "keep what it needs in its fields"
    )


def _record(report: Log, policy: Policy) -> None:
    text = json.dumps(dict(policy.parameters()), sort_keys=True)
    remedy = "its fields must be numbers, texts and lists, which a session's file can hold"
    report.holds("its parameters can be recorded", bool(text), remedy)


def _tensors(knowledge: Knowledge) -> list[Any]:
    return [knowledge.acquired, knowledge.costs, knowledge.predicted, knowledge.root]


def _equal(one: Any, other: Any) -> bool:
    return one is None or torch.equal(one, other)
