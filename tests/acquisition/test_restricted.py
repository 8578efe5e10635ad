"""Operators of which only some groups are measured: each maskable one against its own whole measurement, masked."""

from __future__ import annotations

import pytest
import torch

import invsolve
from invsolve import registry
from invsolve.contracts.maskable import MaskableOperator, Restricted
from invsolve.numerics.krylov import CG
from invsolve.registry.parameters import parameters

CASES = [
    pytest.param(name, number, id=f"{name}-{number}")
    for name, cls in registry.available("operator").items()
    if issubclass(cls, MaskableOperator)
    for number in range(len(cls.examples))
]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_part_is_the_whole_masked(name: str, number: int) -> None:
    cls = registry.find("operator", name)
    assert parameters(cls)
    whole = invsolve.operator(name, **cls.examples[number])  # type: ignore[attr-defined]
    assert isinstance(whole, MaskableOperator)
    generator = torch.Generator().manual_seed(0)
    selected = torch.rand(whole.groups, generator=generator) < 0.5
    part, plain = whole.restricted(selected), Restricted(whole, selected)
    blank = whole.blank(2, dtype=torch.float64)
    x = torch.randn(blank.shape, generator=generator, dtype=blank.dtype)
    mask = whole.group_mask(selected[None])[0]
    y = whole(x)
    assert torch.equal(part(x), mask * y)
    assert torch.allclose(part.adjoint(y), whole.adjoint(mask * y), rtol=1e-6, atol=1e-9)
    measured, expected = part.measured(), plain.measured()
    assert measured is not None
    assert expected is not None
    assert torch.equal(*torch.broadcast_tensors(measured.bool(), expected.bool()))
    # Closed form or not, the solve is that of the masked measurement; relative to its size, at the solver's tolerance.
    solver = CG(1e-10, 500)
    exact = solver.solve(
        lambda v: whole.adjoint(mask * whole(v)) + 0.3 * v, whole.adjoint(mask * y) + 0.3 * x, torch.zeros_like(x)
    ).x
    solved = part.prox(x, mask * y, 0.3, solver)
    # Maps and projectors are stored in single precision.
    assert float((solved - exact).norm()) < 1e-5 * float(exact.norm())
