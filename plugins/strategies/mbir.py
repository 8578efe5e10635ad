"""DiffusionMBIR (Chung 2023): a volume from a prior of its slices, with total variation across them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics.linalg import rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._langevin import langevin_length, length_of_norms
from invsolve.plugins.strategies._through_plane_tv import ThroughPlaneTV


@dataclass(frozen=True)
class DiffusionMBIR(Strategy):
    """DiffusionMBIR: predictor, corrector, a coupled data step a level (Chung 2023).

    Per slice a reverse-diffusion step and a Langevin step; then, for the volume, ADMM on data and total variation across.

    Chung et al., CVPR 2023, Algorithm 2 (fast form: one sweep a noise level, duals kept from level to level). The items of
    a file are the slices. Differences across slices end at the last one (the reference's are circular), the adjoint is the
    exact one (the reference's is a scaled back-projection), the operator is divided by its norm. The paper imposes the data
    on the noisy volume whatever their own noise, which deblurring multiplies. Here the data step also holds on to the volume,
    by the data's variance over what predictor and corrector made random: where they are noisier than that, it waits; for
    noise-free data it is the paper's. A Langevin step has the length that is expected at its level, the same for all samples.

    preset=published leaves that holding on and the fixed length out, and takes the paper's 2000 levels: its rho = 10 and
    lambda = 0.04, of images in [0, 1] and an operator of norm 20, are penalty 0.025 and weight 2e-4 here. The Langevin step
    has the length of the norms of noise and score, of each slice; the paper's are means over a volume. A last step of its
    code, towards the data by the row sums of its operator (Kaczmarz), is left out.

    Known bias: the total variation across slices is no part of the prior and prefers equal neighbours.

    Args:
        steps: noise levels, two network calls each; the paper takes 2000.
        weight: of the total variation across slices, network units; 0 leaves the slices alone.
        penalty: ADMM's rho. The paper's 10 and 0.01 divide by about 400 and 1, the squared norms of its operators.
        sweeps: ADMM sweeps a noise level.
        solves: CG steps a sweep.
        snr: signal-to-noise ratio of the Langevin step; 0 leaves it out and halves the cost.
        hold: hold the data step to the volume by the data's noise; False is the paper's, which does not.
        lengths: of a Langevin step: "expected" at its level, or of the "norms" of this noise and score, as published.
    """

    name = "mbir"
    paper: ClassVar[Paper | None] = Paper(
        "Solving 3D Inverse Problems using Pre-trained 2D Diffusion Models",
        ("Hyungjin Chung", "Dohoon Ryu", "Michael T. Mccann", "Marc L. Klasky", "Jong Chul Ye"),
        2023,
        "arXiv:2211.10655",
    )
    cost: ClassVar[str] = "2 forward"

    steps: int = 500
    weight: float = 2e-4
    penalty: float = 0.025
    sweeps: int = 1
    solves: int = 1
    snr: float = 0.16
    hold: bool = True
    lengths: Literal["expected", "norms"] = "expected"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {
            "steps": 2000,
            "weight": 2e-4,
            "penalty": 0.025,
            "sweeps": 1,
            "solves": 1,
            "snr": 0.16,
            "hold": False,
            "lengths": "norms",
        },
    }
    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    couples_items: ClassVar[bool] = True
    mean_error: ClassVar[float] = 0.15
    std_ratio: ClassVar[tuple[float, float]] = (0.95, 1.05)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.85, 1.1)

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // (2 if self.snr else 1), 2))

    def schedule(self, problem: Problem) -> Tensor:
        high, low = math.log10(problem.prior.sigma_max), math.log10(problem.prior.sigma_min)
        levels = torch.logspace(high, low, self.steps, dtype=torch.float64)
        return torch.cat([levels, levels.new_zeros(1)])

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        return {"x": x, "jumps": torch.zeros_like(x), "dual": torch.zeros_like(x)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x = state["x"]
        estimate = problem.denoise(x, sigma)
        ratio = (sigma_next / sigma) ** 2
        x = estimate + ratio * (x - estimate)
        # What the last step leaves random is the error of D.
        fresh: float | Tensor = sigma**2 - sigma_next**2 if sigma_next else problem.prior.error(sigma)
        if sigma_next:
            x = x + math.sqrt(fresh) * rng.normal(x)
            if self.snr:
                score = (problem.denoise(x, sigma_next) - x) / sigma_next**2
                noise = rng.normal(x)
                length: float | Tensor = langevin_length(problem, self.snr, sigma_next)
                if self.lengths == "norms":
                    length = rows(length_of_norms(self.snr, noise, score), x)
                x = x + length * score + (2 * length) ** 0.5 * noise
                fresh = fresh + length
        keep = problem.rho(fresh) / problem.operator_norm() ** 2 if self.hold else 0.0
        tv = ThroughPlaneTV(self.weight, self.penalty, self.sweeps, self.solves)
        x, jumps, dual = tv.improve(problem, x, problem.residual(x), state["jumps"], state["dual"], keep)
        return {"x": x, "jumps": jumps, "dual": dual, "residual": problem.misfit(problem.residual(estimate))}
