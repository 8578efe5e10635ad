"""PnP-DM: split Gibbs sampling with a diffusion prior (Wu 2024), for any differentiable operator and any noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._likelihood import draw
from invsolve.plugins.strategies._reverse import reverse


@dataclass(frozen=True)
class PnPDM(Strategy):
    """Split Gibbs sampling (Wu 2024); any differentiable operator, any noise.

    Draw in turn z from p(y | z) N(z; x, rho^2 I) and x from p(x) N(x; z, rho^2 I), while rho falls.

    Wu et al., NeurIPS 2024 (arXiv 2405.18782), Algorithm 1. The first draw is exact where it is Gaussian, else
    Metropolis-adjusted Langevin that starts at x; the second is reverse diffusion that starts at z with noise
    level rho.

    Known bias: at a coupling rho the data appear with the noise rho^2 A A' + sigma_y^2; the smaller rho gets, the less
    a pair of draws moves, so what was settled early stays.

    Args:
        steps: pairs of draws.
        inner: network calls per pair, the steps of the reverse diffusion.
        rho_max: coupling at the start, network units, well above the images' spread (the paper takes 10); at most
            the prior's largest noise level.
        rho_min: coupling at the end.
        decay: part of the pairs over which rho falls geometrically; the rest keep rho_min.
        iterations: Langevin proposals a pair, where the likelihood is not Gaussian in the image.
    """

    name = "pnp-dm"
    cost: ClassVar[str] = "5 forward"

    steps: int = 40
    inner: int = 5
    rho_max: float = 2.0
    rho_min: float = 0.02
    decay: float = 1.0
    iterations: int = 40

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "operator-gradient", "noise-slope")
    mean_error: ClassVar[float] = 0.2
    std_ratio: ClassVar[tuple[float, float]] = (0.85, 1.05)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.95, 1.8)

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // self.inner, 2))

    def schedule(self, problem: Problem) -> Tensor:
        high, low = (
            min(max(r, problem.prior.sigma_min), problem.prior.sigma_max) for r in (self.rho_max, self.rho_min)
        )
        falling = max(round(self.decay * self.steps), 1)
        part = (torch.arange(self.steps, dtype=torch.float64) / max(falling - 1, 1)).clamp(max=1)
        rho = high * (low / high) ** part
        return torch.cat([rho, rho.new_zeros(1)])

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = problem.zeros()
        return {"x": x, "pace": x.new_zeros(problem.batch)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        z, pace = draw(problem, state["x"], sigma**2, state["x"], state["pace"], self.iterations, rng)
        x, _ = reverse(problem, z, sigma, self.inner, 1.0, rng)
        return {"x": x, "pace": pace, "residual": problem.misfit(problem.residual(x))}
