"""DDS: a few conjugate-gradient steps from each denoised image, then DDIM (Chung 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.krylov import CG
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._proximal import renoise


@dataclass(frozen=True)
class DDS(Strategy):
    """A few conjugate-gradient steps on each denoised image, then DDIM (Chung 2024).

    `solves` conjugate-gradient steps from D on (1 + gamma A'A) x = D + gamma A'y; DDIM with the noise that z had.

    Chung, Lee, Ye, ICLR 2024, Algorithm 1, for images; the paper's volumes add a total variation between slices. By
    default gamma = v(sigma) / sigma_y^2, with v the prior's measured mean squared error (the paper: one number). No
    gradient through the network, a fixed number of operator passes a step.

    Ours: gamma, and Karras' levels from `start` on; theirs are equally spaced times of the DDPM schedule. preset=published is
    Algorithm 1 with the settings of their code, gamma = 1 of an operator divided by its norm (their MRI operators have norm 1).
    After the last step their code takes one more at noise level zero, which no network was trained for.

    Known bias: the noise that z had is kept while
    the image under it moves to the data, so samples are too narrow, the more so the more steps.

    Args:
        steps: network calls, forward only.
        solves: conjugate-gradient steps, M.
        gamma: weight of the data, in units where the operator's norm is 1; "measured" for v(sigma) / sigma_y^2.
        eta: part of the next level's standard deviation that is fresh noise.
        start: noise level to start from, network units; at most the prior's largest.
        grid: levels: Karras' ("edm"), or equally spaced times of the DDPM schedule ("vp").
    """

    name = "dds"
    paper: ClassVar[Paper | None] = Paper(
        "Decomposed Diffusion Sampler for Accelerating Large-Scale Inverse Problems",
        ("Hyungjin Chung", "Suhyeon Lee", "Jong Chul Ye"),
        2024,
        "arXiv:2303.05754",
    )

    steps: int = 100
    solves: int = 5
    gamma: float | Literal["measured"] = "measured"
    eta: float = 0.85
    start: float = 20.0
    grid: Literal["edm", "vp"] = "edm"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {"steps": 50, "solves": 5, "gamma": 1.0, "eta": 0.85, "start": math.inf, "grid": "vp"},
    }
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.4
    std_ratio: ClassVar[tuple[float, float]] = (0.55, 0.85)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.6, 1.0)

    def schedule(self, problem: Problem) -> Tensor:
        levels = schedules.edm if self.grid == "edm" else schedules.ddpm_linear
        return levels(self.steps, problem.prior.sigma_min, min(self.start, problem.prior.sigma_max))

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, operator = state["x"], problem.linear
        estimate = problem.denoise(x, sigma)
        residual = problem.residual(estimate)
        if isinstance(self.gamma, str):
            rho = problem.rho(problem.prior.error(sigma))
        else:
            rho = problem.operator_norm() ** 2 / self.gamma
        # Steps for the correction from zero are those for the image from D, and cost one operator pass less.
        shift = CG(1e-6, self.solves).solve(lambda v: operator.normal(v) + rho * v, operator.adjoint(residual)).x
        x = renoise(estimate + shift, (x - estimate) / sigma, rng.normal(x), sigma_next, self.eta)
        return {"x": x, "residual": problem.misfit(residual)}
