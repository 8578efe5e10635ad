"""Whether any image explains the data: a wrong operator is named before steps and strategy, by least squares in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import invsolve
from invsolve.api.discrepancy import DiscrepancyWarning
from invsolve.api.explained import least
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale

SIZE, ROWS, SIGMA = 4, 40, 0.05


class Matrix(invsolve.LinearOperator):
    """y = M x."""

    image_shape = (1, SIZE, SIZE)

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("matrix", torch.randn(ROWS, SIZE * SIZE, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.matrix.T.to(x)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return (y @ self.matrix.to(y)).view(-1, *self.image_shape)


@pytest.fixture(scope="module")
def y() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    truth = torch.rand(1, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    noise = torch.randn(1, ROWS, generator=generator, dtype=torch.float64)
    return Matrix(0)(truth) + SIGMA * noise


def residual(y: torch.Tensor, operator: Matrix) -> float:
    """|y - M pinv(M) y| over sigma sqrt(n)."""
    matrix = operator.matrix.numpy()
    data = y[0].numpy()
    return float(np.linalg.norm(data - matrix @ np.linalg.pinv(matrix) @ data) / (SIGMA * math.sqrt(ROWS)))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bound_is_below_least_squares_and_near_it(y: torch.Tensor, seed: int) -> None:
    operator = Matrix(seed)
    posed = make_problem(None, operator, invsolve.Gaussian(SIGMA), y, operator.image_shape, Scale())
    true = residual(y, operator)
    # The ridge costs at most a tenth of what is left, or of what the noise explains, and an unfinished solve some more.
    assert 0.999 * math.sqrt(true**2 - 0.1 * max(true**2, 1)) <= least(posed) <= true + 1e-9
    assert (true > 10) == (seed == 1)


def test_where_nothing_can_be_told(y: torch.Tensor) -> None:
    shape = Matrix.image_shape
    for noise, data in ((invsolve.Gaussian(0.0), y), (invsolve.Gaussian(SIGMA), torch.zeros_like(y))):
        assert math.isnan(least(make_problem(None, Matrix(0), noise, data, shape, Scale())))


@pytest.mark.parametrize("strategy", ["linear", "moment"])
def test_a_wrong_operator_is_named_first(y: torch.Tensor, strategy: str) -> None:
    prior = invsolve.load_prior("gaussian-field", size=SIZE, std=0.5)
    told = r"the samples miss the data: .*\. Least squares itself leaves [\d.]+ or more: no image explains these data\. Either"
    with pytest.warns(DiscrepancyWarning, match=told) as found:
        invsolve.reconstruct(
            y,
            Matrix(1),
            prior if strategy == "moment" else None,
            noise=invsolve.Gaussian(SIGMA),
            strategy=strategy,
            samples=1,
        )
    text = str(found[0].message)
    value = float(text.split("itself leaves ")[1].split(" ")[0])
    assert 0.94 * residual(y, Matrix(1)) <= value <= residual(y, Matrix(1)) + 0.01
    assert text.index("coil maps") < text.index("noise is larger than stated")
    assert "the strategy follows" not in text.split("noise is larger than stated")[0]


def test_a_right_operator_is_not(y: torch.Tensor) -> None:
    """Short steps miss the data, which some image explains: the steps come first."""
    prior = invsolve.load_prior("gaussian-field", size=SIZE, std=0.5)
    weak = invsolve.strategy("dps-fitted", steps=20, zeta=0.01)
    with pytest.warns(DiscrepancyWarning, match=r"Either the strategy follows the data too weakly") as found:
        invsolve.reconstruct(y, Matrix(0), prior, noise=invsolve.Gaussian(SIGMA), strategy=weak, samples=1)
    assert "Least squares" not in str(found[0].message)
