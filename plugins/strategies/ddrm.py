"""DDRM: denoising diffusion restoration in the operator's singular basis (Kawar 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._spectral import start_from_data, step_in_basis


@dataclass(frozen=True)
class DDRM(Strategy):
    """Mode by mode in the singular basis (Kawar 2022); closed form or small operators; low noise.

    Each singular mode takes its data, its denoised value or both, by whether sigma_y / s or sigma is larger.

    Kawar et al., NeurIPS 2022, equations 7 and 8. No gradient through the network, no inner solve. Needs the singular
    system: closed form for inpainting, circular blur and one-coil MRI; small operators are decomposed once. Modes
    whose data noise sigma_y / s is over 1 are left to the prior, where the paper follows them. Known bias:
    samples are too narrow, the more so the more steps, because the part eta of the noise is renewed at each.

    Args:
        steps: network calls, forward only; the paper takes 20, the mean is closer with more.
        eta: fresh part of the noise in modes without data or with data noisier than the level.
        eta_b: weight of the data in the other modes.
    """

    name = "ddrm"
    paper: ClassVar[Paper | None] = Paper(
        "Denoising Diffusion Restoration Models",
        ("Bahjat Kawar", "Michael Elad", "Stefano Ermon", "Jiaming Song"),
        2022,
        "arXiv:2201.11793",
    )
    decomposes: ClassVar[bool] = True

    steps: int = 100
    eta: float = 0.85
    eta_b: float = 1.0

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian", "low-noise")
    mean_error: ClassVar[float] = 0.35
    std_ratio: ClassVar[tuple[float, float]] = (0.5, 0.85)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.55, 1.6)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": start_from_data(problem, rng.normal(problem.zeros()), self.schedule(problem)[0].item())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x = state["x"]
        estimate = problem.denoise(x, sigma)
        noise = rng.normal(x)
        x = step_in_basis(problem, x, estimate, noise, sigma, sigma_next, self.eta, self.eta_b)
        return {"x": x, "residual": problem.misfit(problem.residual(estimate))}
