"""Conjugate gradients and the power iteration against dense linear algebra."""

import torch

from invsolve.numerics.krylov import conjugate_gradients, spectral_norm
from invsolve.numerics.linalg import inner


def spd(n: int, seed: int) -> torch.Tensor:
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T + 0.5 * torch.eye(n, dtype=torch.float64)


def test_solves_each_row() -> None:
    m = spd(12, 0)
    b = torch.randn(5, 12, dtype=torch.float64)
    x = conjugate_gradients(lambda v: v @ m, b, tolerance=1e-12, iterations=100)
    torch.testing.assert_close(x, torch.linalg.solve(m, b.T).T)


def test_a_rows_answer_does_not_depend_on_the_other_rows() -> None:
    m = spd(12, 1)
    b = torch.randn(4, 12, dtype=torch.float64)
    b[1] = 0
    b[2] *= 1e6
    together = conjugate_gradients(lambda v: v @ m, b, tolerance=1e-3)
    for k in range(4):
        alone = conjugate_gradients(lambda v: v @ m, b[k : k + 1], tolerance=1e-3)
        torch.testing.assert_close(together[k : k + 1], alone)


def test_zero_right_hand_side_costs_nothing() -> None:
    calls = []
    x = conjugate_gradients(lambda v: calls.append(1) or v, torch.zeros(2, 3))
    assert not calls
    assert bool((x == 0).all())


def test_complex_hermitian() -> None:
    a = torch.randn(6, 6, dtype=torch.complex128)
    m = a @ a.mH + torch.eye(6)
    b = torch.randn(3, 6, dtype=torch.complex128)
    x = conjugate_gradients(lambda v: v @ m.T, b, tolerance=1e-12)
    torch.testing.assert_close(x @ m.T, b)


def test_inner_is_the_real_part() -> None:
    a, b = torch.randn(2, 5, dtype=torch.complex128), torch.randn(2, 5, dtype=torch.complex128)
    torch.testing.assert_close(inner(a, b), (a.conj() * b).sum(1).real)


def test_power_iteration() -> None:
    a = torch.randn(9, 7, dtype=torch.float64)
    found = spectral_norm(
        lambda v: v @ a.T @ a, torch.randn(1, 7, dtype=torch.float64), iterations=500, tolerance=1e-10
    )
    assert abs(found - float(torch.linalg.matrix_norm(a, 2))) < 1e-6
