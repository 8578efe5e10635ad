"""What the conformance kit measures of every registered operator, as one table: `invsolve plugins check --markdown`."""

from __future__ import annotations

import math
from typing import Any

import torch

from invsolve import registry
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import size_of
from invsolve.registry.check import instances
from invsolve.testing.operators import Probe, dense, operator_cases

#: Columns that follow from the class and its first example alone, and those that are measured.
FACTS = ("operator", "image", "measurement", "kind", "maskable", "closed forms")
FIGURES = ("linearity", "adjoint", "autograd", "norm", "proximal solve", "keeps nothing")
#: The kit's property behind each figure.
_CASES = {
    "linearity": ("linear",),
    "adjoint": ("adjoint", "adjoint of its own data", "dense matrix"),
    "autograd": ("autograd equals adjoint", "gradient"),
    "norm": ("norm",),
    "keeps nothing": ("keeps nothing of a call",),
}
_LARGEST = 1200


def facts(name: str) -> list[str]:
    """The cells of an operator that no measurement is needed for."""
    cls: Any = registry.available("operator")[name]
    operator, shape = _first(name)
    y = operator(Probe(operator, shape, torch.float32, 1, "cpu").x)
    kind = "linear" if isinstance(operator, LinearOperator) else "nonlinear"
    kind += ", complex" if operator.complex_image else ""
    maskable = "by groups" if isinstance(operator, MaskableOperator) else ""
    return [f"`{name}`", _shape(shape), _shape(tuple(y.shape[1:])), kind, maskable, cls.closed_forms]


def figures(name: str) -> list[str]:
    """The largest error of each property over the operator's examples, sizes and, where it is told, both precisions."""
    cls: Any = registry.available("operator")[name]
    errors: dict[str, list[float]] = {column: [] for column in FIGURES}
    broken: dict[str, bool] = dict.fromkeys(FIGURES, False)
    for operator in instances(cls, "operator", name):
        for case in operator_cases(operator):
            column = next((c for c, names in _CASES.items() if case.property in names), "")
            # Errors of single precision say nothing beside those of double.
            if not column or case.name.endswith("float32"):
                continue
            finding = case.finding()
            broken[column] |= not finding.ok
            if not finding.skipped:
                errors[column].append(0.0 if finding.figure is None else finding.figure)
        solved = _proximal_error(operator)
        if solved is not None:
            errors["proximal solve"].append(solved)
    return [_cell(errors[column], broken[column], column) for column in FIGURES]


def markdown() -> str:
    """One row per registered operator."""
    names = sorted(registry.available("operator"))
    rows = [[*FACTS, *FIGURES], ["---"] * len(FACTS + FIGURES), *([*facts(n), *figures(n)] for n in names)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page() -> str:
    """The page `docs/operators_table.md`."""
    return f"""# Operators: what was measured

Written by `invsolve plugins check --markdown`, which measures what the conformance kit holds every operator to, on the examples
that each class gives (the shapes are those of the first). Errors are relative, in double precision, to the next power of ten, the
largest of all examples.

- linearity: A(2a - 0.7b) against 2A(a) - 0.7A(b).
- adjoint: <Ax, y> against <x, A'y> over |Ax| |y|, and the dense matrices of both against one another.
- autograd: the gradient against the adjoint; of nonlinear operators `gradcheck` (ok where it passes).
- norm: what `norm()` says (power iteration, or in closed form) against the largest singular value of the dense matrix.
- proximal solve: `prox(z, y, rho)` with rho a tenth of the squared norm against the solution of the dense matrix; conjugate
  gradients to a residual of 1e-8 where there is no closed form.
- keeps nothing: after repeated calls no input or output is held and memory does not grow.

{markdown()}
"""


def _first(name: str) -> tuple[Operator, tuple[int, ...]]:
    cls: Any = registry.available("operator")[name]
    operator = instances(cls, "operator", name)[0]
    return operator, tuple(operator.image_shape or operator.shapes_tried[0])


def _proximal_error(operator: Operator) -> float | None:
    """Of `prox` against the solution of the dense system; None where there is none of a size to solve."""
    shape = tuple(operator.image_shape or operator.shapes_tried[0])
    if not isinstance(operator, LinearOperator) or size_of(shape) > _LARGEST:
        return None
    probe = Probe(operator, shape, torch.float64, 2, "cpu")
    matrix = dense(probe.linear, shape)[0]
    y, z = probe.y.flatten(1), probe.x.flip(0).flatten(1)
    if y.is_complex() and not matrix.is_complex():
        y = torch.view_as_real(probe.y).flatten(1)
    rho = 0.1 * float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    normal = matrix.mH @ matrix + rho * torch.eye(matrix.shape[1], dtype=matrix.dtype)
    wanted = torch.linalg.solve(normal, matrix.mH @ y.T + rho * z.T).T
    found = probe.linear.prox(probe.x.flip(0), probe.y, rho, CG(1e-8, 500)).flatten(1)
    return float((found - wanted).norm() / wanted.norm())


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _cell(errors: list[float], broken: bool, column: str) -> str:
    if broken:
        return "BROKEN"
    if not errors:
        return ""
    largest = max(errors)
    if largest == 0:
        return {"keeps nothing": "yes", "autograd": "ok"}.get(column, "exact")
    # To the order of magnitude: digits of rounding differ from machine to machine.
    return f"1e{math.ceil(math.log10(largest)):+03d}"
