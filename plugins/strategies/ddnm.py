"""DDNM: the range of the operator from the data, its null space from the prior, with time travel (Wang 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._proximal import renoise
from invsolve.plugins.strategies._spectral import in_range, noise_in_basis, step_in_basis


@dataclass(frozen=True)
class DDNM(Strategy):
    """Range from the data, null space from the prior, time travel (Wang 2023); low noise.

    D^ = D + A^+ (y - A D), renoised; noisy data (DDNM+) mode by mode, so that their noise counts into the level's.

    Wang et al., ICLR 2023, Algorithms 1 to 3. Noise-free data need the pseudo-inverse only, noisy data the singular system
    (closed form for inpainting, circular blur and one-coil MRI; small operators are decomposed once). Time travel goes
    back `travel` levels by adding noise, `repeats` - 1 times. No gradient through the network.

    With noisy data a step is that of `ddrm` with eta_b = 1, mode by mode: both then draw a mode's noise with the variance that
    the data leave of sigma'^2, or follow the data as far as sigma_y allows. What remains between the two is the start (here
    pure noise, there around the data) and the time travel; without noise, the pseudo-inverse stands for the singular system.

    Known bias: samples are too
    narrow, the more so the more steps, because the part eta of the noise is renewed at each.

    Args:
        steps: noise levels; with time travel each costs `repeats` network calls, forward only.
        eta: fresh part of the noise.
        travel: levels to go back at a time, l in the paper.
        repeats: times that each stretch of `travel` levels is walked, r in the paper; 1 for no time travel.
    """

    name = "ddnm"
    paper: ClassVar[Paper | None] = Paper(
        "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model",
        ("Yinhuai Wang", "Jiwen Yu", "Jian Zhang"),
        2023,
        "arXiv:2212.00490",
    )
    decomposes: ClassVar[bool] = True

    steps: int = 100
    eta: float = 0.85
    travel: int = 10
    repeats: int = 1

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian", "low-noise")
    mean_error: ClassVar[float] = 0.35
    std_ratio: ClassVar[tuple[float, float]] = (0.5, 0.85)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.55, 1.6)

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // self.repeats, 2))

    def schedule(self, problem: Problem) -> Tensor:
        """Descending levels; where it rises, the step adds the noise that leads back up."""
        levels = schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)
        walk = [levels[:1]]
        for first in range(0, self.steps, self.travel):
            stretch = levels[first + 1 : first + self.travel + 1]
            walk += [stretch, *[levels[first : first + 1], stretch] * (self.repeats - 1)]
        return torch.cat(walk)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, noise = state["x"], rng.normal(state["x"])
        if sigma_next > sigma:
            return state | {"x": x + math.sqrt(sigma_next**2 - sigma**2) * noise}
        estimate = problem.denoise(x, sigma)
        residual = problem.residual(estimate)
        direction = (x - estimate) / sigma
        if problem.largest_sigma() == 0:
            x = renoise(estimate + problem.linear.pinv(residual), direction, noise, sigma_next, self.eta)
        else:
            x = step_in_basis(problem, x, estimate, noise, sigma, sigma_next, self.eta, eta_b=1.0)
            sigma_y = noise_in_basis(problem, x)
            if isinstance(sigma_y, Tensor):
                # A row without noise takes the noise-free step whatever else is in the batch.
                exact = renoise(estimate + in_range(problem, residual), direction, noise, sigma_next, self.eta)
                x = torch.where(sigma_y == 0, exact, x)
        return {"x": x, "residual": problem.misfit(residual)}
