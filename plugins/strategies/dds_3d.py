"""DDS for volumes (Chung 2024): a few denoising steps, each followed by ADMM on data and total variation across slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._proximal import renoise
from invsolve.plugins.strategies._through_plane_tv import ThroughPlaneTV


@dataclass(frozen=True)
class DDS3D(Strategy):
    """`dds` for a volume: the items are its slices, with total variation across them (Chung 2024).

    DDIM steps in which D of every slice is brought to the data, and to its neighbours, before the noise is put back.

    Chung, Lee, Ye, ICLR 2024, Algorithm 1 with the total variation across slices of its volumes (ADMM, jumps and duals kept
    from noise level to noise level). The items of a file are the slices; with weight 0 this is `dds`. Differences across
    slices end at the last one (the reference's are circular). Known bias: that of `dds`, too narrow, and more so by the
    total variation, which is no part of the prior and prefers equal neighbours.

    Args:
        steps: network calls, forward only.
        weight: of the total variation across slices, network units, where the operator's norm is 1; 0 leaves the slices alone.
            The paper's value for CT comes to 2e-4; a brain from 8 views got better up to about 4e-3.
        penalty: ADMM's rho, likewise; the paper's comes to 0.025.
        sweeps: ADMM sweeps a noise level.
        solves: conjugate-gradient steps a sweep, M.
        gamma: weight of the data, in units where the operator's norm is 1; "measured" for v(sigma) / sigma_y^2, v the prior's
            measured mean squared error.
        eta: part of the next level's standard deviation that is fresh noise.
        start: noise level to start from, network units; at most the prior's largest.
    """

    name = "dds-3d"
    paper: ClassVar[Paper | None] = Paper(
        "Decomposed Diffusion Sampler for Accelerating Large-Scale Inverse Problems",
        ("Hyungjin Chung", "Suhyeon Lee", "Jong Chul Ye"),
        2024,
        "arXiv:2303.05754",
    )

    steps: int = 50
    weight: float = 4e-3
    penalty: float = 0.1
    sweeps: int = 1
    solves: int = 5
    gamma: float | Literal["measured"] = "measured"
    eta: float = 0.85
    start: float = 20.0

    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    couples_items: ClassVar[bool] = True
    mean_error: ClassVar[float] = 0.4
    std_ratio: ClassVar[tuple[float, float]] = (0.55, 0.85)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.55, 1.0)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.edm(self.steps, problem.prior.sigma_min, min(self.start, problem.prior.sigma_max))

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        return {"x": x, "jumps": torch.zeros_like(x), "dual": torch.zeros_like(x)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x = state["x"]
        estimate = problem.denoise(x, sigma)
        residual = problem.residual(estimate)
        if isinstance(self.gamma, str):
            keep = problem.rho(problem.prior.error(sigma)) / problem.operator_norm() ** 2
        else:
            keep = 1 / self.gamma
        tv = ThroughPlaneTV(self.weight, self.penalty, self.sweeps, self.solves)
        fitted, jumps, dual = tv.improve(problem, estimate, residual, state["jumps"], state["dual"], keep)
        x = renoise(fitted, (x - estimate) / sigma, rng.normal(x), sigma_next, self.eta)
        return {"x": x, "jumps": jumps, "dual": dual, "residual": problem.misfit(residual)}
