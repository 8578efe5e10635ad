"""DDS for volumes (Chung 2024): a few denoising steps, each followed by ADMM on data and total variation across slices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve import hookimpl
from invsolve.contracts import schedules
from invsolve.contracts.problem import Problem
from invsolve.contracts.random import ChainRandom
from invsolve.contracts.strategy import State, Strategy
from invsolve.plugins._across_tv import AcrossTV


@dataclass(frozen=True)
class DDS3D(Strategy):
    """DDIM steps in which D of every slice is brought to the data, and to its neighbours, before the noise is put back.

    Chung et al., ICLR 2024, Algorithm 3 (with the ADMM of DiffusionMBIR, duals kept from level to level).

    Args:
        steps: network calls.
        weight: of the total variation across slices, network units; 0 leaves the slices alone.
        penalty: ADMM's rho.
        sweeps: ADMM sweeps a noise level.
        iterations: CG steps a sweep.
        eta: part of the noise that is fresh.
    """

    steps: int = 50
    weight: float = 2e-4
    penalty: float = 0.025
    sweeps: int = 1
    iterations: int = 5
    eta: float = 0.85

    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    couples_items: ClassVar[bool] = True
    mean_error: ClassVar[float] = 1.5
    std_ratio: ClassVar[tuple[float, float]] = (0.3, 2.0)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        return {"x": x, "jumps": torch.zeros_like(x), "dual": torch.zeros_like(x)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x = state["x"]
        estimate = problem.denoise(x, sigma)
        keep = problem.rho(0.2 * sigma**2 / (0.2 + sigma**2)) / problem.operator_norm() ** 2
        tv = AcrossTV(self.weight, self.penalty, self.sweeps, self.iterations)
        fitted, jumps, dual = tv.solve(problem, estimate, state["jumps"], state["dual"], estimate, keep)
        noise = math.sqrt(1 - self.eta**2) * (x - estimate) / sigma + self.eta * rng.normal(x)
        residual = problem.misfit(problem.residual(estimate))
        return {"x": fitted + sigma_next * noise, "jumps": jumps, "dual": dual, "residual": residual}


@hookimpl
def invsolve_strategies() -> Mapping[str, type]:
    return {"dds-3d": DDS3D}
