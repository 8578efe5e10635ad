"""Family "gaussian": a 16 x 16 Gaussian field seen through five operators, posterior in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invsolve import api
from invsolve.bench.family import Family, Measure
from invsolve.contracts.operator import LinearOperator, matching
from invsolve.contracts.problem import real_view
from invsolve.contracts.strategy import Strategy
from invsolve.testing.distances import compare
from invsolve.testing.exact import exact_posterior

SIZE = 16


class Compression(LinearOperator):
    """A quarter as many random projections (standard normal over sqrt(pixels)) as pixels."""

    image_shape = (1, SIZE, SIZE)

    def __init__(self) -> None:
        super().__init__()
        count = SIZE * SIZE
        self.matrix = torch.randn(count // 4, count, generator=torch.Generator().manual_seed(0)) / math.sqrt(count)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ matching(self.matrix, x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ matching(self.matrix, y)).view(-1, *self.image_shape)


def _fourier() -> LinearOperator:
    view = real_view(api.operator("mri", image_size=SIZE, acceleration=3), 1)
    assert isinstance(view, LinearOperator)
    return view


def _named(name: str, **given: Any) -> Callable[[], LinearOperator]:
    def make() -> LinearOperator:
        operator = api.operator(name, **given)
        assert isinstance(operator, LinearOperator)
        return operator

    return make


PROBLEMS: dict[str, Callable[[], LinearOperator]] = {
    "inpainting": _named("inpainting", fraction=0.5, image_size=SIZE),
    "blur": _named("blur", sigma=1.5),
    "compression": Compression,
    "ct": _named("ct", image_size=SIZE, angles=8),
    "fourier": _fourier,
}


def make(problem: str, seed: int, samples: int, device: str) -> Measure:
    """Pixel sd 0.15, sigma_y 0.05; the figures of `invsolve.testing.strategies.compare`."""
    exact = exact_posterior(PROBLEMS[problem](), samples=samples, seed=seed, device=device)

    def measure(strategy: Strategy, draws: int) -> dict[str, float]:
        return compare(strategy, exact, draws)

    return measure


FAMILY = Family(
    problems=list(PROBLEMS),
    usual=list(PROBLEMS),
    columns={
        "mean_error": "mean error",
        "std_ratio": "sd ratio",
        "std_observed": "observed",
        "std_hidden": "hidden",
        "wasserstein": "W1",
        "wasserstein_floor": "floor",
        "coverage_50": "in 50 %",
        "coverage_90": "in 90 %",
    },
    legend=(
        "mean error: in posterior sd; {floor:.2f} is what {samples} exact samples have. sd ratio: 1 is exact; observed: "
        "the half of the pixels that the data determine better. W1: sliced Wasserstein distance, floor that of exact samples."
    ),
    make=make,
)
