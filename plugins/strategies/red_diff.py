"""RED-diff: regularisation by denoising with a diffusion prior (Mardani 2024), a point estimate without backpropagation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.paper import Paper
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

#: With weight "noise", the number of steps for which `learning_rate` is stated: it falls like one over their root.
USUAL_STEPS = 100


@dataclass(frozen=True)
class REDDiff(Strategy):
    """Regularisation by denoising, from coarse to fine (Mardani 2024).

    Adam on |y - A(mu)|^2 / 2 + lambda w(sigma) <eps - n, mu>, one step per noise level from high to low.

    Mardani et al., ICLR 2024, Algorithm 1. The paper sets lambda and w by hand, and no noise level enters: the more steps,
    the closer the noise is fitted. By default lambda w (eps - n) is (sigma_y^2 / V) (mu - D) instead, V the prior's measured
    error at the level: then both terms are the slopes of their log probabilities. A step of Adam is a part of sqrt(V), what is
    unknown at the level, and smaller the more there are: it settles. A number for `weight` gives the published rule, and
    preset=published its constants (the NVlabs code's: both terms are means, over measurements and over pixels). It starts, as
    ours, from the linear reconstruction, where theirs takes the pseudo-inverse; operators are divided by their norm; the
    image returned has seen the last step of Adam, which theirs leaves out.

    Known bias: it finds one mode of a Gaussian approximation of no width; samples differ by optimisation noise only, so the
    spread is no uncertainty. Few steps leave what the operator hardly passes on near the start.

    Args:
        steps: network calls, forward only.
        weight: lambda, strength of the denoising term: by the noise, or a number; the paper takes 0.25.
        learning_rate: of Adam; with weight "noise" in units of sqrt(100 V / steps), else in network units.
        schedule_weight: w(sigma), with a weight that is a number.
        data_weight: factor of the data term.
        momentum: Adam's two decay rates.
    """

    name = "red-diff"
    paper: ClassVar[Paper | None] = Paper(
        "A Variational Perspective on Solving Inverse Problems with Diffusion Models",
        ("Morteza Mardani", "Jiaming Song", "Jan Kautz", "Arash Vahdat"),
        2024,
        "arXiv:2305.04391",
    )
    preference: ClassVar[int | None] = 2

    steps: int = 1000
    weight: float | Literal["noise"] = "noise"
    learning_rate: float = 0.1
    schedule_weight: Literal["linear", "sqrt", "square", "log", "clip", "power2over3", "constant"] = "linear"
    data_weight: float = 1.0
    momentum: tuple[float, float] = (0.9, 0.99)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {
            "steps": 1000,
            "weight": 0.25,
            "learning_rate": 0.1,
            "schedule_weight": "linear",
            "data_weight": 1.0,
            "momentum": (0.9, 0.99),
        },
    }
    draws: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("prior", "operator-gradient", "gaussian")
    data_strength: ClassVar[Mapping[str, int]] = {"data_weight": 1, "steps": 1}
    mean_error: ClassVar[float] = 0.6
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"steps": 300},)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        linear = isinstance(problem.operator, LinearOperator)
        mu = problem.baseline() if linear else problem.zeros()
        zeros = torch.zeros_like(mu)
        return {"x": mu, "first": zeros, "second": zeros, "count": zeros.new_zeros(problem.batch)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        mu, noise = state["x"], rng.normal(state["x"])
        estimate = problem.denoise(mu + sigma * noise, sigma)
        data, residual = problem.data_gradient(mu)
        size = problem.operator_norm() ** 2
        data = self.data_weight / size * data
        if isinstance(self.weight, str):
            unknown = problem.prior.error(sigma)
            gradient = data + problem.rho(unknown) / size * (mu - estimate)
            length = self.learning_rate * math.sqrt(unknown * USUAL_STEPS / self.steps)
        else:
            # (mu - D) / sigma is eps - n.
            strength = self.weight * WEIGHTS[self.schedule_weight](sigma) / size_of(problem.image_shape)
            gradient, length = data / problem.dof() + strength * (mu - estimate) / sigma, self.learning_rate

        b1, b2 = self.momentum
        count = state["count"] + 1
        first = b1 * state["first"] + (1 - b1) * gradient
        second = b2 * state["second"] + (1 - b2) * gradient**2
        t = count.view(-1, *[1] * (mu.ndim - 1))
        mu = mu - length * (first / (1 - b1**t)) / ((second / (1 - b2**t)).sqrt() + 1e-8)
        return {"x": mu, "first": first, "second": second, "count": count, "residual": problem.misfit(residual)}
