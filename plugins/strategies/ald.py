"""ALD: annealed Langevin dynamics with the likelihood (Jalal 2021), the first sampler of many MRI tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.linalg import norm, rows
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class ALD(Strategy):
    """Langevin steps on prior and likelihood while the noise falls (Jalal 2021).

    At each level: z' = z + a [score + A'(y - A z) / (sigma_y^2 + |A|^2 sigma^2)] + sqrt(2 a) n, a = length sigma^2.

    Jalal et al., NeurIPS 2021, equation 4, whose gamma_t is set by hand; here it is |A| sigma, the noise that z has besides.
    The paper's code has no noise level in it: it scales the data's gradient to the norm of the prior's score, times a number
    set by hand. preset=published is the code's rule with its constants: 1156 levels from 1.24 down to 0.0066, three steps
    each, the mean squared error's weight 5. Norms are taken per sample, where its are of the whole batch, and it starts from
    noise of the first level, where its start is uniform between 0 and 1.

    Known bias: p_sigma times an annealed likelihood is not the noised posterior, steps of a finite length make samples too
    wide, and what was settled at high noise hardly moves later: few steps leave hidden parts where they were.

    Args:
        steps: noise levels.
        inner: Langevin steps a level, one network call each.
        length: of a step, in parts of the level's variance; the published 5e-5 / 0.0066^2 is 1.15.
        start: noise level to start from, network units; at most the prior's largest.
        data: scale of the data's gradient: by its "variance", or by the "norms" of score and gradient, as the code.
        weight: of the data's gradient.
        finish: last level; at least the prior's smallest.
    """

    name = "ald"
    paper: ClassVar[Paper | None] = Paper(
        "Robust Compressed Sensing MRI with Deep Generative Priors",
        ("Ajil Jalal", "Marius Arvinte", "Giannis Daras", "Eric Price", "Alexandros G. Dimakis", "Jonathan I. Tamir"),
        2021,
        "arXiv:2108.01368",
    )
    cost: ClassVar[str] = "3 forward"

    steps: int = 100
    inner: int = 3
    length: float = 0.4
    start: float = 5.0
    data: Literal["variance", "norms"] = "variance"
    weight: float = 1.0
    finish: float = 0.0

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {
            "steps": 1156,
            "inner": 3,
            "length": 5e-5 / 0.0066**2,
            "start": 1.24,
            "data": "norms",
            "weight": 5.0,
            "finish": 0.0066,
        },
    }
    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.4
    std_ratio: ClassVar[tuple[float, float]] = (1.05, 1.18)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.93, 1.9)

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // self.inner, 2))

    def schedule(self, problem: Problem) -> Tensor:
        low = max(self.finish, problem.prior.sigma_min)
        return schedules.geometric(self.steps, low, min(self.start, problem.prior.sigma_max))

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, length = state["x"], self.length * sigma**2
        size = problem.operator_norm() ** 2
        for _ in range(self.inner):
            score = (problem.denoise(x, sigma) - x) / sigma**2
            slope, residual = problem.data_gradient(x)
            if self.data == "variance":
                pull = -self.weight / (size * sigma**2) / (1 + problem.rho(sigma**2) / size) * slope
            else:
                pull = -self.weight * rows(norm(score) / norm(slope).clamp_min(1e-30), slope) * slope
            x = x + length * (score + pull) + math.sqrt(2 * length) * rng.normal(x)
        return {"x": x, "residual": problem.misfit(residual)}
