"""Conformance of an operator: linearity, exact adjoint, gradients, batches, shapes, precisions, moves and copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.numerics.linalg import inner, norm, size_of
from invsolve.testing.report import Report

#: Largest image for which the dense matrix is formed.
_DENSE = 1200
_LIMIT = {torch.float32: 1e-5, torch.float64: 1e-12}


def check_operator(
    operator: Operator, image_shape: Sequence[int] | None = None, probes: int = 16, device: str = "cpu"
) -> Report:
    """Check that an operator is what it says it is.

    Args:
        operator: the operator; it is left as it was, the checks run on copies.
        image_shape: (C, *spatial) to test with, for operators of free size; default (1, 12, 13) and odd sizes.
        probes: random pairs for the dot test. One alone would call an adjoint that is 12 % wrong 3e-4.
        device: where to run, such as "cuda".

    Returns:
        Report: one line a property. `assert check_operator(A)` in a test shows them all when one fails.
    """
    report = Report(f"operator {operator.name or type(operator).__name__}")
    fixed = operator.image_shape or image_shape
    shapes = [tuple(fixed)] if fixed else [(1, 12, 13), (1, 11, 11)]
    for shape in shapes:
        for dtype in (torch.float32, torch.float64):
            place = copy.deepcopy(operator).to(device=device, dtype=dtype)
            label = f"{'x'.join(map(str, shape[1:]))} {str(dtype).removeprefix('torch.')}"
            x = _random(place, shape, probes, dtype, device, seed=1)
            before = len(report.findings)
            report.attempt(f"forward runs, {label}", lambda p=place, x=x, n=label: _forward(report, p, x, n))  # type: ignore[misc]
            if not all(f.ok for f in report.findings[before:]):
                continue
            if isinstance(place, LinearOperator):
                report.attempt(f"linear, {label}", lambda p=place, x=x, n=label: _linear(report, p, x, n))  # type: ignore[misc]
                report.attempt(f"adjoint, {label}", lambda p=place, x=x, n=label: _adjoint(report, p, x, n))  # type: ignore[misc]
            else:
                report.attempt(f"gradient, {label}", lambda p=place, x=x, n=label: _gradient(report, p, x, n))  # type: ignore[misc]
        single = copy.deepcopy(operator).to(device)
        x = _random(single, shape, 3, torch.float32, device, seed=2)
        if isinstance(single, LinearOperator):
            report.attempt("dense matrix", lambda a=single, s=shape: _dense(report, a, s))  # type: ignore[misc]
            report.attempt("proximal solve", lambda a=single, x=x: _prox(report, a, x))  # type: ignore[misc]
            report.attempt("singular system", lambda a=single, x=x: _svd(report, a, x))  # type: ignore[misc]
            report.attempt("baseline", lambda a=single, x=x: _baseline(report, a, x))  # type: ignore[misc]
        if isinstance(single, MaskableOperator):
            report.attempt("groups", lambda a=single, x=x: _groups(report, a, x))  # type: ignore[misc]
        report.attempt("copies", lambda a=single, x=x: _copies(report, a, x))  # type: ignore[misc]
    if operator.image_shape is not None:
        _wrong_shape(report, copy.deepcopy(operator).to(device), device)
    return report


def _random(operator: Operator, shape: Sequence[int], count: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    wide = torch.complex128 if operator.complex_image else torch.float64
    drawn = torch.randn(count, *shape, dtype=wide, generator=torch.Generator().manual_seed(seed))
    if not isinstance(operator, LinearOperator):
        drawn = drawn.abs() + 0.1
    return drawn.to(device, dtype.to_complex() if operator.complex_image else dtype)


def _relative(a: Tensor, b: Tensor) -> float:
    return float(norm(a - b).max() / norm(b).max().clamp_min(1e-30))


def _forward(report: Report, operator: Operator, x: Tensor, label: str) -> None:
    y = operator(x)
    real = x.real.dtype
    report.holds(f"precision kept, {label}", y.real.dtype == real, f"forward of {real} images gives {y.dtype}")
    report.holds(f"batch axis kept, {label}", len(y) == len(x), f"{len(x)} images give {len(y)} measurements")
    report.holds(f"finite, {label}", bool(y.isfinite().all()), "forward gives NaN or infinity")
    alone = torch.cat([operator(x[i : i + 1]) for i in range(3)])
    tolerance = 1e-5 if real == torch.float32 else 1e-12
    remedy = "an image's measurement depends on the others in its batch"
    report.below(f"batch independence, {label}", _relative(alone, y[:3]), tolerance, remedy)
    report.below(
        f"repeatable, {label}", _relative(operator(x), y), 0.0 if x.device.type == "cpu" else 1e-6, "forward is random"
    )


def _linear(report: Report, operator: LinearOperator, x: Tensor, label: str) -> None:
    a, b = x[:4], x[4:8]
    error = _relative(operator(2.0 * a - 0.7 * b), 2.0 * operator(a) - 0.7 * operator(b))
    report.below(
        f"linear, {label}", error, 1e-5 if x.real.dtype == torch.float32 else 1e-12, "A(2a - b) is not 2A(a) - A(b)"
    )


def _adjoint(report: Report, operator: LinearOperator, x: Tensor, label: str) -> None:
    y = operator(x)
    v = torch.randn(
        y.shape, dtype=torch.complex128 if y.is_complex() else torch.float64, generator=torch.Generator().manual_seed(3)
    )
    v = v.to(y)
    back = operator.adjoint(v)
    shape_ok = back.shape == x.shape and back.dtype == x.dtype
    report.holds(
        f"adjoint's shape, {label}",
        shape_ok,
        f"adjoint gives {tuple(back.shape)} {back.dtype}, images are {tuple(x.shape)}",
    )
    if not shape_ok:
        return
    size = (norm(y) * norm(v)).clamp_min(1e-30)
    error = float(((inner(y, v) - inner(x, back)).abs() / size).max())
    limit = _LIMIT[x.real.dtype]
    remedy = "<Ax, y> differs from <x, A'y>: adjoint is not the transpose of forward; delete it to have it derived"
    report.below(f"adjoint, {len(x)} probes, {label}", error, limit, remedy)
    probe = x[:2].clone().requires_grad_()
    with torch.enable_grad():
        predicted = operator(probe)
    if predicted.requires_grad:
        (gradient,) = torch.autograd.grad(predicted, probe, v[:2])
        remedy = "autograd's gradient is not the adjoint"
        report.below(f"autograd equals adjoint, {label}", _relative(gradient, back[:2]), max(limit, 1e-12) * 10, remedy)
    else:
        report.holds(
            f"differentiable, {label}", False, "forward is not torch code; wrap forward and adjoint in linear_map()"
        )


def _gradient(report: Report, operator: Operator, x: Tensor, label: str) -> None:
    if x.real.dtype != torch.float64:
        return
    probe = x[:1].clone().requires_grad_()
    with torch.enable_grad():
        ok = torch.autograd.gradcheck(operator, (probe,), raise_exception=False, fast_mode=True)
    report.holds(f"gradient, {label}", bool(ok), "autograd's gradient differs from finite differences")


def _dense(report: Report, operator: LinearOperator, shape: Sequence[int]) -> None:
    if size_of(shape) > _DENSE:
        return
    operator = copy.deepcopy(operator).to(torch.float64)
    forward, backward = dense(operator, shape)
    error = float((forward - backward.mH).norm() / forward.norm().clamp_min(1e-30))
    remedy = "the dense matrix of adjoint is not the transpose of forward's"
    report.below("dense matrix, Frobenius", error, 1e-12, remedy)
    largest = float(torch.linalg.matrix_norm(forward, 2))
    probe = operator(operator.blank(1, shape, torch.float64))
    error = abs(operator.norm(probe) - largest) / max(largest, 1e-30)
    report.below("norm() against the dense matrix", error, 2e-2, "norm() is not the largest singular value")


def dense(operator: LinearOperator, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The matrices of forward and adjoint, in the precision and on the device of the operator's domain."""
    basis = torch.eye(size_of(shape), dtype=torch.float64)
    blank = operator.blank(1, shape, torch.float64)
    basis = basis.to(blank).view(-1, *shape)
    columns = operator(basis)
    rows = torch.eye(size_of(columns.shape[1:]), dtype=columns.dtype, device=columns.device).view(
        -1, *columns.shape[1:]
    )
    return columns.flatten(1).T, operator.adjoint(rows).flatten(1).T


def _prox(report: Report, operator: LinearOperator, x: Tensor) -> None:
    y, z, rho = operator(x), x.flip(0), 0.1 * operator.norm(operator(x)) ** 2
    solution = operator.prox(z, y, rho)
    right = operator.adjoint(y) + rho * z
    error = _relative(operator.normal(solution) + rho * solution, right)
    report.below(
        "proximal solve, residual", error, 1e-4, "prox(z, y, rho) does not minimise |Ax - y|^2 + rho |x - z|^2"
    )
    short = operator.tikhonov(y, rho)
    if short is not None:
        error = _relative(short, operator.prox(torch.zeros_like(z), y, rho))
        report.below("Tikhonov solution", error, 1e-4, "tikhonov(r, rho) is not prox(0, r, rho)")


def _svd(report: Report, operator: LinearOperator, x: Tensor) -> None:
    y = operator(x)
    system = operator.svd(x.shape[1:], y)
    if system is None:
        return
    coefficients = system.to_basis(x)
    error = _relative(system.measurement_to_basis(y), system.values * coefficients)
    report.below("singular system, data", error, 1e-4, "U'A x is not S V'x for the system that svd() gives")
    back = system.from_basis(coefficients)
    error = max(_relative(operator(back), y), _relative(system.to_basis(back), coefficients))
    report.below("singular system, basis", error, 1e-5, "V V'x has not the measurement of x, or V'V is not 1")


def _baseline(report: Report, operator: LinearOperator, x: Tensor) -> None:
    image = operator.baseline(operator(x), 0.01)
    good = image.shape == x.shape and bool(image.isfinite().all())
    report.holds(
        "baseline gives finite images", good, f"baseline gives {tuple(image.shape)} for images {tuple(x.shape)}"
    )


def _groups(report: Report, operator: MaskableOperator, x: Tensor) -> None:
    y, groups = operator(x), operator.groups
    whole = torch.ones(1, groups, dtype=torch.bool, device=y.device)
    error = _relative(operator.group_mask(whole) * y, y)
    report.below("groups cover the measurement", error, 0.0, "entries outside all groups carry data")
    energy = y.abs() ** 2
    total = operator.group_sum(energy, groups).sum(1)
    error = float(((total - energy.flatten(1).sum(1)).abs() / total.clamp_min(1e-30)).max())
    report.below("groups do not overlap", error, 1e-5, "group_sum over all groups is not the whole")


def _copies(report: Report, operator: Operator, x: Tensor) -> None:
    y = operator(x)
    clone = pickle.loads(pickle.dumps(operator))
    report.below(
        "survives pickling", _relative(clone(x), y), 0.0 if x.device.type == "cpu" else 1e-6, "a pickled copy differs"
    )
    double = copy.deepcopy(operator).to(torch.float64)(x.to(torch.complex128 if x.is_complex() else torch.float64))
    report.below(
        "moves to float64 and agrees", _relative(double.to(y.dtype), y), 1e-5, "float64 gives another measurement"
    )
    state = operator.state_dict()
    clone.load_state_dict(state)
    report.below(
        "state_dict round trip",
        _relative(clone(x), y),
        0.0 if x.device.type == "cpu" else 1e-6,
        "load_state_dict changes it",
    )


def _wrong_shape(report: Report, operator: Operator, device: str) -> None:
    assert operator.image_shape is not None
    wrong = (*operator.image_shape[:-1], operator.image_shape[-1] + 1)
    try:
        operator(_random(operator, wrong, 1, torch.float32, device, seed=4))
    except Exception:
        report.holds("refuses another image size", True)
    else:
        report.holds(
            "refuses another image size", False, f"takes images {wrong} although it is made for {operator.image_shape}"
        )
