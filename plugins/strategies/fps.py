"""FPS (Dou & Song 2024): particles of the reverse chain that follow a noised sequence of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.numerics.spectrum import safe_reciprocal
from invsolve.plugins.strategies import _particles as particles


@dataclass(frozen=True)
class FPS(Strategy):
    """Particles that follow a noised sequence of the data (Dou 2024); closed form or small operators.

    y' = y + k (y_sigma - y) + sqrt(c) sigma' A n, and x' from N(x'; D + k (x - D), c sigma'^2) N(y'; A x', sigma_y^2).

    Dou and Song, ICLR 2024, Algorithm 2 (FPS-SMC) in variance-exploding coordinates, k = sqrt(1 - c) sigma' / sigma. Drawn
    and weighed mode by mode in the singular basis, resampled at every step (theirs multinomially, here systematically); each
    run has a sequence of y of its own and returns one of its particles. At level zero particles are D, weighed by their
    likelihood; theirs returns the first.

    Known bias: the filter is exact for the chain's own Gaussian steps as the particles grow many, but those steps take x0 for
    D: what the data do not determine gets too little noise, and a single sequence of y noised at high levels settles it early.

    Args:
        steps: noise levels, equally spaced times of the DDPM schedule; a network call a particle each. The paper takes 1000.
        particles: of a run, M in the paper.
        c: fresh part of the noise's variance.
    """

    name = "fps"
    paper: ClassVar[Paper | None] = Paper(
        "Diffusion Posterior Sampling for Linear Inverse Problem Solving: A Filtering Perspective",
        ("Zehao Dou", "Yang Song"),
        2024,
        "openreview:tplXNcHZs1",
    )
    cost: ClassVar[str] = "5 forward"
    decomposes: ClassVar[bool] = True

    steps: int = 100
    particles: int = 5
    c: float = 0.95

    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.35
    std_ratio: ClassVar[tuple[float, float]] = (0.66, 0.86)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.55, 2.1)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"particles": 3},)

    def __post_init__(self) -> None:
        if self.particles < 1 or not 0 < self.c <= 1:
            raise UserError(
                f"strategy 'fps': particles must be at least 1 and c above 0 and at most 1, got {self.particles} and {self.c}"
            )

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // self.particles, 2))

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        top, system = self.schedule(problem)[0].item(), problem.svd()
        zeros = problem.zeros()
        many = zeros[:, None].expand(-1, self.particles, *problem.image_shape)
        x, seen = top * rng.normal(many), system.to_basis(zeros)
        # In units of the image, mode by mode: y_sigma / s.
        data = problem.data_in_basis() * safe_reciprocal(system.values) + top * rng.normal(seen)
        return {"x": x, "data": data}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, system = state["x"], problem.svd()
        shape = x.shape

        def denoised(some: Problem, images: Tensor) -> tuple[Tensor]:
            return (some.denoise(images, sigma),)

        (estimate,) = particles.over_particles(problem, x, denoised)
        keep = math.sqrt(1 - self.c) * sigma_next / sigma
        fresh = self.c * sigma_next**2
        y = problem.data_in_basis() * safe_reciprocal(system.values)
        data = y + keep * (state["data"] - y) + math.sqrt(fresh) * rng.normal(y)
        data = torch.where(system.values > 0, data, 0.0)
        mean = (estimate + keep * (x - estimate)).flatten(0, 1)
        modes = system.to_basis(mean)
        noise = torch.as_tensor(problem.sigma, dtype=y.dtype, device=y.device)
        noise = noise.reshape(-1, *[1] * (y.ndim - 1)) if noise.ndim else noise
        # Of noise-free data a floor, by which nothing is divided that is not zero too.
        level = (noise.square() + 1e-12 * system.values.amax() ** 2).expand(len(y), *[1] * (y.ndim - 1))
        level, target = (v.repeat_interleave(self.particles, 0) for v in (level, data))
        # p(y' | x_sigma): y' / s about the mode of m, with the chain's noise and the data's.
        square = system.values**2
        spread = square * fresh + level
        surprise = torch.where(system.values > 0, square * (target - modes) ** 2 / spread, 0.0)
        log_weight = -surprise.flatten(1).sum(1).view(shape[:2]) / 2
        misfit = problem.misfit(problem.residual(estimate[:, 0]))
        if sigma_next == 0:
            chosen = particles.one(log_weight, rng.uniform())
            return {"x": particles.take(estimate, chosen), "data": data, "residual": misfit}
        white = rng.normal(x).flatten(0, 1)
        gain = square * fresh / spread
        drawn = modes + gain * (target - modes) + (fresh * level / spread).sqrt() * system.to_basis(white)
        free = mean + math.sqrt(fresh) * white
        x = free + system.from_basis(torch.where(system.values > 0, drawn - system.to_basis(free), 0.0))
        ancestors = particles.systematic(log_weight, rng.uniform())
        return {"x": particles.take(x.view(shape), ancestors), "data": data, "residual": misfit}

    def result(self, problem: Problem, state: State) -> Tensor:
        """The chosen particle; before the end, each run's first."""
        return state["x"][:, 0]
