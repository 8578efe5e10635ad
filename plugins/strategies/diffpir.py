"""DiffPIR: a proximal data step on each denoised image, then renoising (Zhu 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._proximal import correction, renoise


@dataclass(frozen=True)
class DiffPIR(Strategy):
    """A proximal data step on each denoised image, then renoising (Zhu 2023).

    D^ = argmin |y - A x|^2 + rho |x - D|^2, then D^ renoised along (z - D^) / sigma, partly with fresh noise.

    Zhu et al., CVPR-W 2023, Algorithm 1. rho = lambda sigma_y^2 / sigma^2, or sigma_y^2 / v(sigma) with v the prior's
    measured mean squared error: that is right for white errors, and trusts the data too little where the prior is least
    sure. No gradient through the network.

    Ours: Karras' levels from `start` on in place of theirs, of the DDPM schedule's 1000 those at equally spaced squares of the
    time, and zeta = 0.7. preset=published is Algorithm 1 with the settings for deblurring and super-resolution (inpainting:
    zeta = 1). Their code starts from y noised to the first level, whose noise is 157 times as large, leaves out the last data
    step, and takes sigma_y for images of [0, 1] where sigma is for [-1, 1]: its lambda = 1 is our weight = 4.

    Known bias: the error of D is taken for white, so where the operator leaves
    pixels unseen the mean lags behind the data.

    Args:
        steps: network calls, forward only.
        variance: of the denoised image: the paper's sigma^2 / weight, or the prior's measured error.
        weight: lambda, with variance "paper".
        zeta: part of the next level's variance that is fresh noise, 0.1 to 1 in the paper; more narrows the samples and
            brings their mean closer.
        start: noise level to start from, network units; at most the prior's largest.
        iterations: of the inner solver, at most, where the operator has no closed form.
        grid: levels: Karras' ("edm"), or the paper's ("quadratic").
    """

    name = "diffpir"
    paper: ClassVar[Paper | None] = Paper(
        "Denoising Diffusion Models for Plug-and-Play Image Restoration",
        ("Yuanzhi Zhu", "Kai Zhang", "Jingyun Liang", "Jiezhang Cao", "Bihan Wen", "Radu Timofte", "Luc Van Gool"),
        2023,
        "arXiv:2305.08995",
    )
    advice: ClassVar[tuple[str, str]] = ("with a prior", "--set steps=100 --samples 2")

    steps: int = 100
    variance: Literal["paper", "measured"] = "paper"
    weight: float = 1.0
    zeta: float = 0.7
    start: float = 20.0
    iterations: int = 20
    grid: Literal["edm", "quadratic"] = "edm"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {
            "steps": 100,
            "variance": "paper",
            "weight": 1.0,
            "zeta": 0.1,
            "start": math.inf,
            "grid": "quadratic",
        },
    }
    inner_limit: ClassVar[str] = "iterations"
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.15
    std_ratio: ClassVar[tuple[float, float]] = (0.8, 0.9)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.8, 1.0)

    def schedule(self, problem: Problem) -> Tensor:
        levels = schedules.edm if self.grid == "edm" else schedules.ddpm_quadratic
        return levels(self.steps, problem.prior.sigma_min, min(self.start, problem.prior.sigma_max))

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        return {"x": x, "shift": torch.zeros_like(x)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x = state["x"]
        estimate = problem.denoise(x, sigma)
        residual = problem.residual(estimate)
        variance = problem.prior.error(sigma) if self.variance == "measured" else sigma**2 / self.weight
        shift = correction(problem, residual, variance, state["shift"], sigma_next, self.iterations)
        clean = estimate + shift
        x = renoise(clean, (x - clean) / sigma, rng.normal(x), sigma_next, math.sqrt(self.zeta))
        return {"x": x, "shift": shift, "residual": problem.misfit(residual)}
