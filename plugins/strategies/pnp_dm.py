"""PnP-DM: split Gibbs sampling with a diffusion prior (Wu 2024), for any differentiable operator and any noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._likelihood import draw
from invsolve.plugins.strategies._reverse import reverse, reverse_euler


@dataclass(frozen=True)
class PnPDM(Strategy):
    """Split Gibbs sampling (Wu 2024); any differentiable operator, any noise.

    Draw in turn z from p(y | z) N(z; x, rho^2 I) and x from p(x) N(x; z, rho^2 I), while rho falls.

    Wu et al., NeurIPS 2024 (arXiv 2405.18782), Algorithm 1. The first draw is exact where it is Gaussian, else
    Metropolis-adjusted Langevin that starts at x; the second is reverse diffusion that starts at z with noise
    level rho.

    Ours: rho falls from 2 to 0.02 over all pairs, where theirs falls by a tenth a pair from 10 to 0.3 and stays; each second
    draw takes `inner` steps of DPM-Solver++ 2M from rho itself, where theirs goes down the levels below rho of one fixed grid
    of 100 by Euler's step of the reverse equation. preset=published is theirs, for linear operators (phase retrieval: rho_min
    0.1); where the likelihood is not Gaussian they run Langevin steps of a set length, here Metropolis-adjusted ones.

    Known bias: at a coupling rho the data appear with the noise rho^2 A A' + sigma_y^2; the smaller rho gets, the less
    a pair of draws moves, so what was settled early stays.

    Args:
        steps: pairs of draws.
        inner: network calls per pair, the steps of the reverse diffusion.
        rho_max: coupling at the start, network units, well above the images' spread (the paper takes 10); at most
            the prior's largest noise level.
        rho_min: coupling at the end.
        decay: part of the pairs over which rho falls geometrically; the rest keep rho_min.
        rate: instead of `decay`, the factor by which rho falls a pair until it is rho_min.
        iterations: Langevin proposals a pair, where the likelihood is not Gaussian in the image.
        solver: of the reverse diffusion: "multistep" takes `inner` steps from rho, "euler" the steps below rho of a grid of
            `inner` levels between 0.002 and 80, or the prior's limits.
    """

    name = "pnp-dm"
    paper: ClassVar[Paper | None] = Paper(
        "Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors",
        ("Zihui Wu", "Yu Sun", "Yifan Chen", "Bingliang Zhang", "Yisong Yue", "Katherine L. Bouman"),
        2024,
        "arXiv:2405.18782",
    )
    cost: ClassVar[str] = "5 forward"

    steps: int = 40
    inner: int = 5
    rho_max: float = 2.0
    rho_min: float = 0.02
    decay: float = 1.0
    iterations: int = 40
    rate: float | None = None
    solver: Literal["multistep", "euler"] = "multistep"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {
            "steps": 100,
            "inner": 100,
            "rho_max": 10.0,
            "rho_min": 0.3,
            "rate": 0.9,
            "solver": "euler",
        },
    }
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
        pairs = torch.arange(self.steps, dtype=torch.float64)
        if self.rate is None:
            falling = max(round(self.decay * self.steps), 1)
            rho = high * (low / high) ** (pairs / max(falling - 1, 1)).clamp(max=1)
        else:
            rho = (high * self.rate**pairs).clamp_min(low)
        return torch.cat([rho, rho.new_zeros(1)])

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = problem.zeros()
        return {"x": x, "pace": x.new_zeros(problem.batch)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        z, pace = draw(problem, state["x"], sigma**2, state["x"], state["pace"], self.iterations, rng)
        if self.solver == "multistep":
            x, _ = reverse(problem, z, sigma, self.inner, 1.0, rng)
        else:
            x = reverse_euler(problem, z, sigma, self.inner, rng)
        return {"x": x, "pace": pace, "residual": problem.misfit(problem.residual(x))}
