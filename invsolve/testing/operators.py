"""Conformance of an operator: linearity, exact adjoint, gradients, batches, shapes, precisions, moves and copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.numerics.linalg import inner, norm, size_of
from invsolve.testing.cases import Case, NotApplicable, below, expecting, holds, report_of
from invsolve.testing.report import Finding, Report
from invsolve.testing.shapes import SHAPES
from invsolve.testing.use import USE
from invsolve.testing.waiting import WAITING

#: Largest image for which the dense matrix is formed.
_DENSE = 1200


class Probe:
    """An operator's copy in one precision on one device, images of one size, and their measurements."""

    def __init__(self, operator: Operator, shape: Sequence[int], dtype: torch.dtype, count: int, device: str) -> None:
        self.given, self.shape, self.dtype, self.count, self.device = operator, tuple(shape), dtype, count, device

    @cached_property
    def operator(self) -> Operator:
        """The copy; made when it is first looked at."""
        return copy.deepcopy(self.given).to(device=self.device, dtype=self.dtype)

    @property
    def linear(self) -> LinearOperator:
        assert isinstance(self.operator, LinearOperator)
        return self.operator

    @property
    def maskable(self) -> MaskableOperator:
        assert isinstance(self.operator, MaskableOperator)
        return self.operator

    def images(self, seed: int) -> Tensor:
        """Random images (count, C, *spatial); positive for nonlinear operators, which may count or take logarithms."""
        wide = torch.complex128 if self.given.complex_image else torch.float64
        drawn = torch.randn(self.count, *self.shape, dtype=wide, generator=torch.Generator().manual_seed(seed))
        if not isinstance(self.given, LinearOperator):
            drawn = drawn.abs() + 0.1
        return drawn.to(self.device, self.dtype.to_complex() if self.given.complex_image else self.dtype)

    @cached_property
    def x(self) -> Tensor:
        return self.images(1)

    @cached_property
    def y(self) -> Tensor:
        return self.operator(self.x)

    @cached_property
    def data(self) -> Tensor:
        """Random measurements, like y."""
        wide = torch.complex128 if self.y.is_complex() else torch.float64
        return torch.randn(self.y.shape, dtype=wide, generator=torch.Generator().manual_seed(3)).to(self.y)

    @property
    def rounding(self) -> float:
        """What sums of some hundred numbers in this precision may differ by, relative."""
        return 1e-5 if self.dtype == torch.float32 else 1e-12

    @property
    def again(self) -> float:
        """What the same sum may differ by when it is taken again: nothing, but for a GPU that adds in any order."""
        return 0.0 if self.device == "cpu" else 1e-6


def operator_cases(
    operator: Operator, image_shape: Sequence[int] | None = None, probes: int = 16, device: str = "cpu"
) -> list[Case]:
    """The properties of an operator, see `check_operator`."""
    fixed = operator.image_shape or image_shape
    linear = "" if isinstance(operator, LinearOperator) else "not linear"
    nonlinear = "" if linear else "linear"
    maskable = "" if isinstance(operator, MaskableOperator) else "not maskable"
    cases: list[Case] = []

    def add(where: str, probe: Probe, properties: Mapping[str, Callable[[Probe], Finding]], absent: str = "") -> None:
        cases.extend(Case(f"{name}, {where}", partial(check, probe), absent) for name, check in properties.items())

    colour = [(3, 10, 12)] if operator.channelwise else []
    for shape in [tuple(fixed)] if fixed else [*operator.shapes_tried, *colour]:
        size = "x".join(map(str, shape if shape[0] > 1 else shape[1:]))
        for dtype in (torch.float32, torch.float64):
            probe, where = Probe(operator, shape, dtype, probes, device), f"{size} {str(dtype).removeprefix('torch.')}"
            add(where, probe, _FORWARD)
            add(where, probe, _LINEAR, linear)
            if dtype == torch.float64:
                add(where, probe, {"gradient": _gradient}, nonlinear or operator.surrogate)
        probe = Probe(operator, shape, torch.float32, 3, device)
        large = f"{size_of(shape)} pixels, at most {_DENSE} for a dense matrix" if size_of(shape) > _DENSE else ""
        wide = Probe(operator, shape, torch.float64, 3, device)
        add(size, wide, {"dense matrix": _dense, "norm": _norm}, linear or large)
        add(size, probe, _SOLVES, linear)
        add(size, probe, _GROUPS, maskable)
        add(size, probe, _COPIES)
        add(size, probe, USE | WAITING)
    own = Probe(operator, operator.image_shape or (), torch.float32, 1, device)
    anywhere = Probe(operator, operator.shapes_tried[0], torch.float64, 3, device)
    add("of free size", anywhere, SHAPES, "made for images of one size" if fixed else "")
    cases.append(Case("refuses another image size", partial(_wrong_shape, own), "" if own.shape else "takes any size"))
    return cases


def check_operator(
    operator: Operator,
    image_shape: Sequence[int] | None = None,
    probes: int = 16,
    device: str = "cpu",
    expected: Mapping[str, str] | None = None,
) -> Report:
    """Check that an operator is what it says it is: the cases of `checks`, one line each.

    Args:
        operator: the operator; it is left as it was, the checks run on copies.
        image_shape: (C, *spatial) to test with, for operators of free size; default their `shapes_tried`, and three channels
            where it is `channelwise`.
        probes: random pairs for the dot test. One alone would call an adjoint that is 12 % wrong 3e-4.
        device: where to run, such as "cuda".
        expected: properties known not to hold, with the reason.

    Returns:
        Report: one line a property. `assert check_operator(A)` in a test shows them all when one fails.

    Raises:
        UserError: `expected` names no property.
    """
    cases = operator_cases(operator, image_shape, probes, device)
    return report_of(f"operator {operator.name or type(operator).__name__}", expecting(cases, expected or {}))


def dense(operator: LinearOperator, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The matrices of forward and adjoint, in the precision and on the device of the operator's domain.

    Of real images with complex measurements they are real, on real and imaginary parts: (2 m, pixels) and (pixels, 2 m).
    """
    basis = torch.eye(size_of(shape), dtype=torch.float64)
    blank = operator.blank(1, shape, torch.float64)
    basis = basis.to(blank).view(-1, *shape)
    columns = operator(basis)
    measurement, parts = columns.shape[1:], columns.is_complex() and not blank.is_complex()
    if parts:
        columns = torch.view_as_real(columns)
    numbers = size_of(columns.shape[1:])
    rows = torch.eye(numbers, dtype=columns.dtype, device=columns.device)
    rows = torch.view_as_complex(rows.view(numbers, -1, 2)) if parts else rows
    return columns.flatten(1).T, operator.adjoint(rows.view(numbers, *measurement)).flatten(1).T


def _relative(a: Tensor, b: Tensor) -> float:
    return float(norm(a - b).max() / norm(b).max().clamp_min(1e-30))


def _precision(p: Probe) -> Finding:
    return holds(p.y.real.dtype == p.dtype, f"forward of {p.dtype} images gives {p.y.dtype}")


def _batch_axis(p: Probe) -> Finding:
    return holds(len(p.y) == len(p.x), f"{len(p.x)} images give {len(p.y)} measurements")


def _finite(p: Probe) -> Finding:
    return holds(bool(p.y.isfinite().all()), "forward gives NaN or infinity")


def _independent(p: Probe) -> Finding:
    alone = torch.cat([p.operator(p.x[i : i + 1]) for i in range(3)])
    remedy = "an image's measurement depends on the others in its batch"
    return below(_relative(alone, p.y[:3]), p.rounding, remedy)


def _repeatable(p: Probe) -> Finding:
    return below(_relative(p.operator(p.x), p.y), p.again, "forward is random")


def _linear(p: Probe) -> Finding:
    a, b = p.x[:4], p.x[4:8]
    error = _relative(p.operator(2.0 * a - 0.7 * b), 2.0 * p.operator(a) - 0.7 * p.operator(b))
    return below(error, p.rounding, "A(2a - b) is not 2A(a) - A(b)")


def _adjoint_shape(p: Probe) -> Finding:
    back = p.linear.adjoint(p.data)
    remedy = f"adjoint gives {tuple(back.shape)} {back.dtype}, images are {tuple(p.x.shape)} {p.x.dtype}"
    return holds(back.shape == p.x.shape and back.dtype == p.x.dtype, remedy)


def _adjoint(p: Probe) -> Finding:
    size = (norm(p.y) * norm(p.data)).clamp_min(1e-30)
    error = ((inner(p.y, p.data) - inner(p.x, p.linear.adjoint(p.data))).abs() / size).max()
    remedy = "<Ax, y> differs from <x, A'y>: adjoint is not the transpose of forward; delete it to have it derived"
    return below(float(error), p.rounding, remedy)


def _own_data(p: Probe) -> Finding:
    # Random data meet little of an adjoint's error where there are many; A x meets all of it.
    energy = inner(p.y, p.y)
    error = ((energy - inner(p.x, p.linear.adjoint(p.y))).abs() / energy.clamp_min(1e-30)).max()
    remedy = "<Ax, Ax> differs from <x, A'Ax>: adjoint is not the transpose of forward; delete it to have it derived"
    return below(float(error), p.rounding, remedy)


def _differentiable(p: Probe) -> Finding:
    with torch.enable_grad():
        ok = p.operator(p.x[:2].clone().requires_grad_()).requires_grad
    return holds(ok, "forward is not torch code; wrap forward and adjoint in linear_map()")


def _autograd(p: Probe) -> Finding:
    image = p.x[:2].clone().requires_grad_()
    with torch.enable_grad():
        predicted = p.operator(image)
    if not predicted.requires_grad:
        raise NotApplicable("not differentiable")
    (gradient,) = torch.autograd.grad(predicted, image, p.data[:2])
    return below(
        _relative(gradient, p.linear.adjoint(p.data)[:2]), 10 * p.rounding, "autograd's gradient is not the adjoint"
    )


def _gradient(p: Probe) -> Finding:
    image = p.x[:1].clone().requires_grad_()
    with torch.enable_grad():
        ok = torch.autograd.gradcheck(p.operator, (image,), raise_exception=False, fast_mode=True)
    return holds(bool(ok), "autograd's gradient differs from finite differences")


def _dense(p: Probe) -> Finding:
    forward, backward = dense(p.linear, p.shape)
    error = float((forward - backward.mH).norm() / forward.norm().clamp_min(1e-30))
    return below(error, p.rounding, "the dense matrix of adjoint is not the transpose of forward's")


def _norm(p: Probe) -> Finding:
    largest = float(torch.linalg.matrix_norm(dense(p.linear, p.shape)[0], 2))
    error = abs(p.linear.norm(p.y) - largest) / max(largest, 1e-30)
    return below(error, 2e-2, "norm() is not the largest singular value of the dense matrix")


def _weight(p: Probe) -> float:
    """A weight for proximal solves that is neither nothing nor everything."""
    return 0.1 * p.linear.norm(p.y) ** 2


def _prox(p: Probe) -> Finding:
    z, rho = p.x.flip(0), _weight(p)
    solution = p.linear.prox(z, p.y, rho)
    error = _relative(p.linear.normal(solution) + rho * solution, p.linear.adjoint(p.y) + rho * z)
    return below(error, 1e-4, "prox(z, y, rho) does not minimise |Ax - y|^2 + rho |x - z|^2")


def _tikhonov(p: Probe) -> Finding:
    rho = _weight(p)
    short = p.linear.tikhonov(p.y, rho)
    if short is None:
        raise NotApplicable("no closed form")
    error = _relative(short, p.linear.prox(torch.zeros_like(p.x), p.y, rho))
    return below(error, 1e-4, "tikhonov(r, rho) is not prox(0, r, rho)")


def _svd_data(p: Probe) -> Finding:
    system = p.linear.svd(p.shape, p.y)
    if system is None:
        raise NotApplicable("no closed form")
    error = _relative(system.measurement_to_basis(p.y), system.values * system.to_basis(p.x))
    return below(error, 1e-4, "U'A x is not S V'x for the system that svd() gives")


def _svd_basis(p: Probe) -> Finding:
    system = p.linear.svd(p.shape, p.y)
    if system is None:
        raise NotApplicable("no closed form")
    coefficients = system.to_basis(p.x)
    back = system.from_basis(coefficients)
    error = max(_relative(p.operator(back), p.y), _relative(system.to_basis(back), coefficients))
    return below(error, 1e-5, "V V'x has not the measurement of x, or V'V is not 1")


def _baseline(p: Probe) -> Finding:
    image = p.linear.baseline(p.y, 0.01)
    good = image.shape == p.x.shape and bool(image.isfinite().all())
    return holds(good, f"baseline gives {tuple(image.shape)} for images {tuple(p.x.shape)}, or is not finite")


def _covering(p: Probe) -> Finding:
    whole = torch.ones(1, p.maskable.groups, dtype=torch.bool, device=p.y.device)
    error = _relative(p.maskable.group_mask(whole) * p.y, p.y)
    return below(error, 0.0, "entries outside all groups carry data")


def _apart(p: Probe) -> Finding:
    energy = p.y.abs() ** 2
    total = p.maskable.group_sum(energy, p.maskable.groups).sum(1)
    error = float(((total - energy.flatten(1).sum(1)).abs() / total.clamp_min(1e-30)).max())
    return below(error, 1e-5, "group_sum over all groups is not the whole")


def _pickled(p: Probe) -> Finding:
    clone = pickle.loads(pickle.dumps(p.operator))
    return below(_relative(clone(p.x), p.y), p.again, "a pickled copy differs")


def _moved(p: Probe) -> Finding:
    double = copy.deepcopy(p.operator).to(torch.float64)
    y = double(p.x.to(torch.complex128 if p.x.is_complex() else torch.float64))
    return below(_relative(y.to(p.y.dtype), p.y), 1e-5, "float64 gives another measurement")


def _restored(p: Probe) -> Finding:
    clone = copy.deepcopy(p.operator)
    clone.load_state_dict(p.operator.state_dict())
    return below(_relative(clone(p.x), p.y), p.again, "load_state_dict changes it")


def _wrong_shape(p: Probe) -> Finding:
    wrong = Probe(p.given, (*p.shape[:-1], p.shape[-1] + 1), p.dtype, 1, p.device)
    try:
        p.operator(wrong.images(4))
    except Exception:
        return holds(True, "")
    return holds(False, f"takes images {wrong.shape} although it is made for {p.shape}")


_FORWARD = {
    "precision kept": _precision,
    "batch axis kept": _batch_axis,
    "finite": _finite,
    "batch independence": _independent,
    "repeatable": _repeatable,
}
_LINEAR = {
    "linear": _linear,
    "adjoint's shape": _adjoint_shape,
    "adjoint": _adjoint,
    "adjoint of its own data": _own_data,
    "differentiable": _differentiable,
    "autograd equals adjoint": _autograd,
}
_SOLVES = {
    "proximal solve": _prox,
    "Tikhonov solution": _tikhonov,
    "singular system's data": _svd_data,
    "singular system's basis": _svd_basis,
    "baseline": _baseline,
}
_GROUPS = {"groups cover the measurement": _covering, "groups do not overlap": _apart}
_COPIES = {"survives pickling": _pickled, "moves to float64": _moved, "state_dict round trip": _restored}
