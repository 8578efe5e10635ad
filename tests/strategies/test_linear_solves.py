"""The strategy `linear` says when a solve without a closed form ended at its limit of iterations, and not when it did not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import invsolve

SIZE, SIGMA, TOLERANCE = 16, 1e-3, 1e-5
#: Condition 1e3: a solve needs hundreds of steps.
WEIGHTS = np.logspace(0, -3, SIZE**2).reshape(SIZE, SIZE)


class Fading(invsolve.LinearOperator):
    """y = weights * x, without a closed form."""

    image_shape = (1, SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(WEIGHTS, dtype=x.dtype) * x


def data(items: int) -> Tensor:
    generator = np.random.default_rng(0)
    return torch.as_tensor(WEIGHTS * generator.standard_normal((items, 1, SIZE, SIZE)))


def solved(y: Tensor, operator: invsolve.Operator, **settings: int) -> invsolve.Reconstruction:
    strategy = invsolve.strategy("linear", **settings)
    return invsolve.reconstruct(y, operator, None, noise=invsolve.Gaussian(SIGMA), strategy=strategy, dtype="float64")


def unsolved(y: Tensor, images: Tensor) -> np.ndarray:
    """Residual of (A'A + rho) x = A'y over |A'y|, an item, in double precision."""
    pulled = WEIGHTS * y.numpy()
    rest = pulled - (WEIGHTS**2 + (SIGMA / 0.5) ** 2) * images.double().numpy()
    return np.linalg.norm(rest.reshape(len(y), -1), axis=1) / np.linalg.norm(pulled.reshape(len(y), -1), axis=1)


def test_a_solve_that_ended_at_its_limit_is_said() -> None:
    y = data(3)
    y[1] = 0  # Solved before the first step.
    short = solved(y, Fading())
    assert (unsolved(y[[0, 2]], short.mean[[0, 2]]) > TOLERANCE).all()
    assert short.diagnostics["inner_unconverged"].flatten().tolist() == [1, 0, 1]
    (remark,) = short.diagnostics["remarks"]
    assert remark.startswith("2 inner solves of 2 of 3 samples ended at their last iteration")
    assert remark.endswith("raise iterations, now 100")


def test_one_with_enough_iterations_is_the_closed_form() -> None:
    y = data(2)
    done = solved(y, Fading(), iterations=3000)
    assert done.diagnostics["remarks"] == []
    assert (unsolved(y, done.mean) < 1.01 * TOLERANCE).all()
    exact = WEIGHTS * y.numpy() / (WEIGHTS**2 + (SIGMA / 0.5) ** 2)
    error = done.mean.double().numpy() - exact
    # What is left of the residual, over the least eigenvalue.
    bound = TOLERANCE * np.linalg.norm(WEIGHTS * y.numpy()) / (WEIGHTS.min() ** 2 + (SIGMA / 0.5) ** 2)
    assert np.linalg.norm(error) < 1.01 * bound


@pytest.mark.parametrize("name", ["inpainting", "blur", "mri"])
def test_formulas_and_closed_forms_have_no_limit(name: str) -> None:
    given: dict[str, Any] = {"inpainting": {"image_size": SIZE, "fraction": 0.5}, "blur": {"sigma": 1.5}}
    operator = invsolve.operator(name, **given.get(name, {"image_size": SIZE}))
    done = solved(operator(data(2).to(torch.complex128 if name == "mri" else torch.float64)), operator, iterations=1)
    assert int(done.diagnostics["inner_unconverged"].sum()) == 0
    assert done.diagnostics["remarks"] == []


def test_sense_ends_at_its_limit_in_a_line() -> None:
    angle = torch.linspace(0, 3.0, SIZE)
    maps = torch.stack([torch.polar(0.5 + angle[:, None] / 3, angle[None] * k) for k in range(4)])
    operator = invsolve.operator("mri", image_size=SIZE, acceleration=3, coil_maps=maps.to(torch.complex64))
    y = operator(data(1).to(torch.complex128))
    assert solved(y, operator, iterations=2).diagnostics["remarks"][0].endswith("raise iterations, now 2")
    assert solved(y, operator, iterations=2000).diagnostics["remarks"] == []


def test_a_formula_of_ones_own_needs_no_solver() -> None:
    class Mine(Fading):
        """With a reconstruction that takes y and sigma alone."""

        def baseline(self, y: Tensor, sigma: float | Tensor = 0.0) -> Tensor:  # type: ignore[override]
            return 2.0 * y

    y = data(2)
    torch.testing.assert_close(solved(y, Mine()).mean, 2.0 * y)


def test_no_iterations_are_refused() -> None:
    with pytest.raises(invsolve.UserError, match="iterations must be 1 or more, got 0"):
        invsolve.strategy("linear", iterations=0)
