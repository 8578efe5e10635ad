"""Score-MRI (Chung & Ye 2022): predictor and corrector, each followed by the measured data put in place."""

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
from invsolve.numerics.linalg import rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._langevin import langevin_length, length_of_norms


@dataclass(frozen=True)
class ScoreMRI(Strategy):
    """Predictor and corrector, the data put in place after each (Chung 2022); low noise.

    A Langevin step, then a reverse-diffusion step a level, each followed by x + weight A'(y - A x) / |A|^2.

    Chung and Ye, Medical Image Analysis 2022, Algorithm 1 of one coil: for k-space samples and pixels, where A A' is a
    projection, weight 1 replaces what was measured by y; for others it is a gradient step, as InverseBench takes it. y is not
    noised to the level of x, and no sigma_y enters (`score-sde` does both). A Langevin step has the length that is expected at
    its level, the same for all samples; preset=published takes that of the norms of noise and score, of each sample, and the
    paper's 2000 levels.

    Known bias: measured entries are y with its noise, and have no spread; hidden ones hear of them through the prior alone. A
    blur's data steps multiply the noise, the more the more levels there are: at 250 the mean is further off than the prior's.

    Args:
        steps: noise levels, two network calls each.
        snr: signal-to-noise ratio of a Langevin step.
        weight: of the data step.
        lengths: of a Langevin step: "expected" at its level, or of the "norms" of this noise and score, as published.
    """

    name = "score-mri"
    paper: ClassVar[Paper | None] = Paper(
        "Score-based diffusion models for accelerated MRI",
        ("Hyungjin Chung", "Jong Chul Ye"),
        2022,
        "arXiv:2110.05243",
    )
    cost: ClassVar[str] = "2 forward"

    steps: int = 100
    snr: float = 0.16
    weight: float = 1.0
    lengths: Literal["expected", "norms"] = "expected"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {"steps": 2000, "snr": 0.16, "weight": 1.0, "lengths": "norms"},
    }
    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian", "low-noise")
    mean_error: ClassVar[float] = 1.02
    std_ratio: ClassVar[tuple[float, float]] = (0.0, 1.05)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.0, 1.15)

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // 2, 2))

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.geometric(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x = state["x"]
        score = (problem.denoise(x, sigma) - x) / sigma**2
        noise = rng.normal(x)
        length: float | Tensor = langevin_length(problem, self.snr, sigma)
        if self.lengths == "norms":
            length = rows(length_of_norms(self.snr, noise, score), x)
        x, _ = self.consistent(problem, x + length * score + (2 * length) ** 0.5 * noise)
        estimate = problem.denoise(x, sigma)
        x = x + (1 - (sigma_next / sigma) ** 2) * (estimate - x)
        if sigma_next > 0:
            x = x + math.sqrt(sigma**2 - sigma_next**2) * rng.normal(x)
        x, residual = self.consistent(problem, x)
        return {"x": x, "residual": problem.misfit(residual)}

    def consistent(self, problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
        """x moved towards the data, and y - A x before."""
        slope, residual = problem.data_gradient(x)
        return x - self.weight / problem.operator_norm() ** 2 * slope, residual
