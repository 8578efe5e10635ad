"""Conjugate gradients and the power iteration against dense linear algebra."""

import torch

from invsolve.numerics.krylov import CG, Solution, spectral_norm
from invsolve.numerics.linalg import inner


def spd(n: int, seed: int) -> torch.Tensor:
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T + 0.5 * torch.eye(n, dtype=torch.float64)


def test_solves_each_row() -> None:
    m = spd(12, 0)
    b = torch.randn(5, 12, dtype=torch.float64)
    x = CG(1e-12, 100).solve(lambda v: v @ m, b).x
    torch.testing.assert_close(x, torch.linalg.solve(m, b.T).T)


def test_a_rows_answer_does_not_depend_on_the_other_rows() -> None:
    """Beside other rows the same bits: a batch of the same shape takes the same sums in the same order.

    One row is nearly the eigenvector of the largest eigenvalue and stops after one step; others take a dozen, meanwhile.

    A batch of another size is summed in another order, and rounding may let a row stop a step earlier or later. A stopped
    row's residual is at most tolerance |b|, its error at most that over the smallest eigenvalue, so two answers are at most
    twice that apart. CG's recursion tells the residual to about n eps kappa |b|, which the hundredth part added covers.
    """
    m, tolerance = spd(12, 1), 1e-3
    values, vectors = torch.linalg.eigh(m)
    b = torch.randn(4, 12, dtype=torch.float64)
    # What is left of it after one step is at most what it has outside the eigenvector, a few parts in ten thousand.
    b[0] = vectors[:, -1] + 1e-4 * b[0]
    b[1] = 0
    b[2] *= 1e6
    together = CG(tolerance).solve(lambda v: v @ m, b).x
    for k in range(4):
        for others in (torch.zeros(4, 12, dtype=torch.float64), torch.randn(4, 12, dtype=torch.float64)):
            others[k] = b[k]
            beside = CG(tolerance).solve(lambda v: v @ m, others).x
            torch.testing.assert_close(beside[k], together[k], atol=0, rtol=0)
        alone = CG(tolerance).solve(lambda v: v @ m, b[k : k + 1]).x
        assert float((alone[0] - together[k]).norm()) <= 2.01 * tolerance * float(b[k].norm() / values[0])


def test_zero_right_hand_side_costs_nothing() -> None:
    def never(v: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the map was applied")

    x = CG().solve(never, torch.zeros(2, 3)).x
    assert bool((x == 0).all())


def test_complex_hermitian() -> None:
    a = torch.randn(6, 6, dtype=torch.complex128)
    m = a @ a.mH + torch.eye(6)
    b = torch.randn(3, 6, dtype=torch.complex128)
    x = CG(1e-12).solve(lambda v: v @ m.T, b).x
    torch.testing.assert_close(x @ m.T, b)


def test_inner_is_the_real_part() -> None:
    a, b = torch.randn(2, 5, dtype=torch.complex128), torch.randn(2, 5, dtype=torch.complex128)
    torch.testing.assert_close(inner(a, b), (a.conj() * b).sum(1).real)


def test_power_iteration() -> None:
    """Of singular values 3 and 2.4 the estimates of 3^2 err by e, 0.8^4 e, 0.8^8 e, ... from step to step.

    It stops when two are 1e-10 of themselves apart; the last then errs by 0.8^4 / (1 - 0.8^4) of that, less than 1e-10, and
    the root of it by half as much.
    """
    u, v = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for n in (9, 7))
    a = u[:, :7] @ torch.diag(torch.tensor([3, 2.4, 2, 1.5, 1, 0.5, 0.1], dtype=torch.float64)) @ v
    norm = spectral_norm(lambda x: x @ a.T @ a, torch.randn(1, 7, dtype=torch.float64), iterations=500, tolerance=1e-10)
    assert abs(norm / 3 - 1) < 1e-10


def test_a_solve_says_how_it_ended() -> None:
    # Rows with 1, 2 and 12 different eigenvalues along b take so many steps in exact arithmetic.
    values = torch.linspace(1.0, 4.0, 12, dtype=torch.float64)
    b = torch.zeros(4, 12, dtype=torch.float64)
    b[0, 3], b[1, :2], b[2] = 1.0, 1.0, 1.0
    told: list[Solution] = []
    short = CG(1e-8, 3, told=told.append).solve(lambda v: values * v, b)
    assert short.converged.tolist() == [True, True, False, True]
    assert short.iterations.tolist() == [1, 2, 3, 0]
    assert told == [short]
    full = CG(1e-8, 50).solve(lambda v: values * v, b)
    assert bool(full.converged.all())
    torch.testing.assert_close(full.x, b / values, atol=1e-7, rtol=0)


def test_a_solvers_own_start_goes_before_the_proposed_one() -> None:
    m, b = spd(6, 2), torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    right = torch.linalg.solve(m, b.T).T
    ended = CG(1e-8, start=right).solve(lambda v: v @ m, b, torch.zeros_like(b))
    assert ended.iterations.tolist() == [0, 0]
    assert torch.equal(ended.x, right)
