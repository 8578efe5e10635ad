"""Singular systems, closed form and dense, against the operators' dense matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import invsolve
from invsolve.api import choice
from invsolve.bench.gaussian import Compression
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.views import real_view
from invsolve.numerics import spectrum
from invsolve.testing.operators import dense
from tests.support.types import linear_operator

KERNEL = [[0.1, 0.3, 0.0, 0.1], [0.0, 0.4, 0.1, 0.0]]
MASK = [1, 0, 1, 1, 0, 0, 1, 0, 1]
CASES: dict[str, tuple[Callable[[], LinearOperator], tuple[int, ...]]] = {
    "inpainting": (lambda: linear_operator("inpainting", fraction=0.4, image_size=7, channels=2), (2, 7, 7)),
    "blur even kernel": (lambda: linear_operator("blur", kernel=KERNEL), (2, 7, 6)),
    "blur gaussian": (lambda: linear_operator("blur", sigma=0.8), (1, 8, 8)),
    "blur zero boundary": (lambda: linear_operator("blur", sigma=0.6, boundary="zero"), (1, 7, 8)),
    "scaled": (lambda: -2.5 * linear_operator("blur", kernel=KERNEL), (1, 7, 6)),
    "mri complex": (lambda: linear_operator("mri", image_size=9, mask=MASK), (2, 9, 9)),
    "mri real": (lambda: linear_operator("mri", image_size=9, mask=MASK), (1, 9, 9)),
    "mri real even size": (lambda: linear_operator("mri", image_size=8, acceleration=2), (1, 8, 8)),
    "mri coils complex": (
        lambda: linear_operator("mri", coil_maps=torch.randn(2, 6, 5, 2), mask=[1, 0, 1, 1, 0]),
        (2, 6, 5),
    ),
    "mri coils real": (lambda: linear_operator("mri", coil_maps=torch.randn(2, 6, 5, 2)), (1, 6, 5)),
    "ct": (lambda: linear_operator("ct", image_size=8, angles=5), (1, 8, 8)),
    "ct few rays": (lambda: linear_operator("ct", image_size=8, angles=2), (1, 8, 8)),
    "compression": (Compression, (1, 16, 16)),
}
CLOSED = {
    "inpainting",
    "blur even kernel",
    "blur gaussian",
    "scaled",
    "mri complex",
    "mri real",
    "mri real even size",
    "mri coils real",
}


def problem_of(operator: LinearOperator, shape: tuple[int, ...]) -> tuple[Problem, torch.Tensor]:
    """A float64 problem of two rows and the dense matrix on real images, real and imaginary data by turns."""
    operator = operator.to(torch.float64)
    view = real_view(operator, shape[0]) if operator.complex_image else operator
    matrix, _ = dense(view, shape)  # type: ignore[arg-type]
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = make_problem(None, operator, invsolve.Gaussian(0.1), view(x), shape, Scale())
    return problem, matrix


@pytest.mark.parametrize("name", CASES)
def test_the_system_is_the_dense_matrix(name: str) -> None:
    make, shape = CASES[name]
    problem, matrix = problem_of(make(), shape)
    system = problem.svd()
    assert (problem.linear.svd(shape, problem.y) is not None) == (name in CLOSED)
    pixels = matrix.shape[1]
    unit = torch.eye(pixels, dtype=torch.float64).view(pixels, *shape)
    coefficients = system.to_basis(unit)
    v = coefficients.flatten(1)  # (pixels, basis)
    values = system.values.expand(coefficients.shape[1:] if system.values.ndim == 1 else coefficients.shape)
    values = values.reshape(-1, v.shape[1])[0]
    gram = matrix.T @ matrix
    torch.testing.assert_close(v.T @ v, torch.eye(v.shape[1], dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close((v * values**2) @ v.T, gram, atol=1e-9 * float(gram.abs().max()), rtol=0)
    back = system.from_basis(torch.eye(v.shape[1], dtype=torch.float64).view(-1, *coefficients.shape[1:]))
    torch.testing.assert_close(back.flatten(1), v.T, atol=1e-12, rtol=0)
    true = torch.linalg.svdvals(matrix)
    largest = values.sort(descending=True).values[: len(true)]
    torch.testing.assert_close(largest, true[: len(largest)], atol=2e-5 * float(true[0]), rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_data_in_the_basis_are_values_times_image_and_keep_white_noise(name: str) -> None:
    make, shape = CASES[name]
    problem, _ = problem_of(make(), shape)
    system = problem.svd()
    x = torch.randn(3, *shape, dtype=torch.float64)
    ours = system.measurement_to_basis(problem.operator(x))
    torch.testing.assert_close(ours, system.values * system.to_basis(x), atol=1e-8, rtol=1e-6)
    # U'U = 1: orthonormal rows, from unit measurements.
    y = problem.y
    count = y[0].numel()
    if y.is_complex():
        unit = torch.eye(2 * count, dtype=torch.float64).view(2 * count, *y.shape[1:], 2)
        rows = system.measurement_to_basis(torch.view_as_complex(unit))
    else:
        rows = system.measurement_to_basis(torch.eye(count, dtype=torch.float64).view(count, *y.shape[1:]))
    u = rows.flatten(1)
    positive = (system.values > 0).expand(rows.shape[1:] if system.values.ndim == 1 else rows.shape)
    wanted = torch.diag(positive.reshape(-1, u.shape[1])[0].double())
    torch.testing.assert_close(u.T @ u, wanted, atol=1e-6, rtol=0)


def test_the_dense_system_is_made_once_an_operator() -> None:
    operator = linear_operator("ct", image_size=8, angles=5)
    problem, _ = problem_of(operator, (1, 8, 8))
    kept = problem.svd()
    again = make_problem(None, operator, invsolve.Gaussian(0.1), problem.y, (1, 8, 8), Scale()).svd()
    assert kept.values is again.values


def test_too_large_operators_are_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum, "DENSE_LIMIT", 20)
    problem, _ = problem_of(linear_operator("ct", image_size=8, angles=5), (1, 8, 8))
    refused = pytest.raises(invsolve.UserError, match=r"has no closed-form singular system .* would do")
    with refused as caught, choice.alternatives():
        problem.svd()
    listed = str(caught.value).rpartition("; ")[2].split(", ")
    assert not {"ddrm", "ddnm", "mcgdiff"} & set(listed)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rho", [0.3, torch.tensor([0.02, 5.0], dtype=torch.float64).view(2, 1, 1, 1)])
def test_small_solves_take_no_iterations_and_are_the_dense_ones(name: str, rho: float | torch.Tensor) -> None:
    make, shape = CASES[name]
    problem, matrix = problem_of(make(), shape)
    r = torch.randn_like(problem.y)
    z = torch.randn(2, *shape, dtype=torch.float64)
    mask = problem.operator.measured()
    r = r if mask is None else r * mask
    flat = (torch.view_as_real(r).flatten(1) if r.is_complex() else r.flatten(1)) @ matrix
    weights = torch.as_tensor(rho, dtype=torch.float64).flatten().expand(2)
    solved = [
        torch.linalg.solve(matrix.T @ matrix + w * torch.eye(len(flat[0]), dtype=torch.float64), b)
        for w, b in zip(weights, flat, strict=True)
    ]
    solution = problem.closed_tikhonov(r, rho)
    assert solution is not None
    torch.testing.assert_close(solution.flatten(1), torch.stack(solved), atol=1e-7, rtol=1e-6)
    # The same solve with a centre and other data.
    expected = z + problem.closed_tikhonov(r - problem.linear(z), rho)
    torch.testing.assert_close(problem.prox(z, r, rho), expected, atol=1e-7, rtol=1e-6)


def test_a_large_operator_is_not_decomposed_unasked() -> None:
    operator = linear_operator("ct", image_size=64, angles=30)
    y = operator(torch.zeros(1, 1, 64, 64))
    problem = make_problem(None, operator, invsolve.Gaussian(0.1), y, (1, 64, 64), Scale())
    assert problem.closed_tikhonov(problem.y, 1.0) is None


class Plain(LinearOperator):
    """A matrix in single precision, as its author wrote it down: no other precision was thought of."""

    image_shape = (1, 6, 6)

    def __init__(self) -> None:
        self.matrix = torch.randn(20, 36, generator=torch.Generator().manual_seed(0)) / 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.matrix.T


def test_an_operator_of_one_precision_is_decomposed_in_it_and_anew_when_it_changes() -> None:
    operator = Plain()
    r = torch.randn(2, 20, generator=torch.Generator().manual_seed(1))

    def solved() -> tuple[torch.Tensor, torch.Tensor]:
        problem = make_problem(None, operator, invsolve.Gaussian(0.1), r, (1, 6, 6), Scale())
        solution = problem.closed_tikhonov(r, 0.1)
        assert solution is not None
        matrix = operator.matrix
        return solution.flatten(1), torch.linalg.solve(matrix.T @ matrix + 0.1 * torch.eye(36), (r @ matrix).T).T

    torch.testing.assert_close(*solved(), atol=1e-4, rtol=1e-4)
    operator.matrix.mul_(3)
    torch.testing.assert_close(*solved(), atol=1e-4, rtol=1e-4)
