"""RED-diff: regularisation by denoising with a diffusion prior (Mardani 2024), a point estimate without backpropagation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.linalg import size_of
from invsolve.numerics.random import ChainRandom

#: Weight of the denoising term at noise level sigma (the reference's "SNR inverse" and its alternatives).
WEIGHTS: dict[str, Callable[[float], float]] = {
    "linear": lambda s: s,
    "sqrt": math.sqrt,
    "square": lambda s: s**2,
    "log": lambda s: math.log(1 + s),
    "clip": lambda s: min(s, 1.0),
    "power2over3": lambda s: s ** (2 / 3),
    "constant": lambda s: 1.0,
}


@dataclass(frozen=True)
class REDDiff(Strategy):
    """Regularisation by denoising, from coarse to fine (Mardani 2024).

    Adam on |y - A(mu)|^2 / 2 + lambda w(sigma) <eps - n, mu>, one step per noise level from high to low.

    Mardani et al., ICLR 2024, Algorithm 1 (NVlabs settings). Known bias: it finds one mode of a Gaussian approximation of
    no width; samples differ by optimisation noise only, so the spread is no uncertainty. Operators are divided by their
    norm. As in the reference, both terms are means, over measurements and over pixels.

    Args:
        steps: network calls, forward only.
        weight: lambda, strength of the denoising term.
        learning_rate: of Adam, in network units.
        schedule_weight: w(sigma).
        data_weight: factor of the data term.
        momentum: Adam's two decay rates.
    """

    name = "red-diff"
    preference: ClassVar[int | None] = 1

    steps: int = 1000
    weight: float = 0.25
    learning_rate: float = 0.1
    schedule_weight: Literal["linear", "sqrt", "square", "log", "clip", "power2over3", "constant"] = "linear"
    data_weight: float = 1.0
    momentum: tuple[float, float] = (0.9, 0.99)

    draws: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("prior", "operator-gradient", "gaussian")
    data_strength: ClassVar[Mapping[str, int]] = {"data_weight": 1, "weight": -1, "steps": 1}
    mean_error: ClassVar[float] = 0.85

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        linear = isinstance(problem.operator, LinearOperator)
        mu = problem.baseline() if linear else problem.zeros()
        zeros = torch.zeros_like(mu)
        return {"x": mu, "first": zeros, "second": zeros, "count": zeros.new_zeros(problem.batch)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        mu, noise = state["x"], rng.normal(state["x"])
        eps = noise + (mu - problem.denoise(mu + sigma * noise, sigma)) / sigma
        data, residual = problem.data_gradient(mu)
        data = data * self.data_weight / (problem.dof() * problem.operator_norm() ** 2)
        regulariser = self.weight * WEIGHTS[self.schedule_weight](sigma) * (eps - noise) / size_of(problem.image_shape)
        gradient = data + regulariser

        b1, b2 = self.momentum
        count = state["count"] + 1
        first = b1 * state["first"] + (1 - b1) * gradient
        second = b2 * state["second"] + (1 - b2) * gradient**2
        t = count.view(-1, *[1] * (mu.ndim - 1))
        mu = mu - self.learning_rate * (first / (1 - b1**t)) / ((second / (1 - b2**t)).sqrt() + 1e-8)
        return {"x": mu, "first": first, "second": second, "count": count, "residual": problem.misfit(residual)}
