"""Solvers of the sampling equation by name: DDIM, Heun, DPM-Solver++, and the multistep ones of `multistep`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from invsolve.errors import UserError, suggestion
from invsolve.numerics.ode.base import Denoise, Memory, Solver, euler, recall, remember
from invsolve.numerics.ode.multistep import DEIS, GHVB, PNDM, UniPC
from invsolve.numerics.random import ChainRandom

__all__ = [
    "DDIM",
    "DEIS",
    "GHVB",
    "PNDM",
    "SOLVERS",
    "DPMpp2M",
    "DPMpp2S",
    "Denoise",
    "Heun",
    "Memory",
    "Solver",
    "UniPC",
    "solver",
]


@dataclass(frozen=True)
class DDIM(Solver):
    """Straight to D and back to the next level, part of the noise drawn anew.

    Song et al., ICLR 2021, equation 12.

    Args:
        eta: 0 for the deterministic flow (Euler's method), 1 for ancestral sampling (DDPM).
    """

    eta: float = 0.0

    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"solver ddim: eta must be from 0 to 1, got {self.eta}")

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        memory: Mapping[str, Tensor],
        sigma: float,
        sigma_next: float,
        rng: ChainRandom,
    ) -> tuple[Tensor, Memory]:
        estimate = denoise(x, sigma)
        if self.eta == 0 or sigma_next == 0:
            return euler(x, estimate, sigma, sigma_next), {}
        fresh = self.eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        kept = math.sqrt(sigma_next**2 - fresh**2)
        return estimate + kept / sigma * (x - estimate) + fresh * rng.normal(x), {}


@dataclass(frozen=True)
class Heun(Solver):
    """The trapezoidal rule after an Euler step; with churn, noise is added before each step and removed by it.

    Karras et al., NeurIPS 2022, Algorithms 1 and 2.

    Args:
        churn: gamma, by which a step first raises its noise level. At most 0.41 (sqrt 2 - 1).
        churn_of_run: instead of `churn`, their S_churn, of which each step of a run gets its part (see `over`): fixed, the
            noise of each step would grow against the step as steps become shorter, and its error would stay.
        churn_low, churn_high: noise levels between which it does so, network units.
        churn_noise: standard deviation of the added noise over the right one; the paper takes 1.003 to make up for a
            network's loss of detail.
    """

    churn: float = 0.0
    churn_of_run: float = 0.0
    churn_low: float = 0.05
    churn_high: float = 50.0
    churn_noise: float = 1.0

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 <= self.churn <= 0.4143:
            raise UserError(f"solver heun: churn must be from 0 to 0.414, got {self.churn}")
        if self.churn_of_run < 0:
            raise UserError(f"solver heun: churn_of_run must be at least 0, got {self.churn_of_run}")

    def over(self, steps: int) -> Heun:
        if not self.churn_of_run:
            return self
        return replace(self, churn=min(self.churn_of_run / steps, math.sqrt(2) - 1), churn_of_run=0.0)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        memory: Mapping[str, Tensor],
        sigma: float,
        sigma_next: float,
        rng: ChainRandom,
    ) -> tuple[Tensor, Memory]:
        if self.churn_of_run:
            raise UserError("solver heun: churn_of_run belongs to a whole run; say how many steps it has: .over(steps)")
        if self.churn > 0 and self.churn_low <= sigma <= self.churn_high:
            raised = sigma * (1 + self.churn)
            x = x + self.churn_noise * math.sqrt(raised**2 - sigma**2) * rng.normal(x)
            sigma = raised
        estimate = denoise(x, sigma)
        end = euler(x, estimate, sigma, sigma_next)
        if sigma_next == 0:
            return end, {}
        slope = (x - estimate) / sigma
        slope_next = (end - denoise(end, sigma_next)) / sigma_next
        return x + (sigma_next - sigma) * (slope + slope_next) / 2, {}


@dataclass(frozen=True)
class DPMpp2M(Solver):
    """DPM-Solver++ 2M: D extrapolated from its last two values, integrated exactly in log sigma; one call a step.

    Lu et al., 2022, Algorithm 2; the stochastic form is SDE-DPM-Solver++ (2M), their section 5. The first step has order 1.

    Args:
        eta: 0 for the deterministic flow; 1 for the reverse stochastic equation, which forgets early errors.
    """

    eta: float = 0.0

    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise UserError(f"solver dpmpp-2m: eta must be at least 0, got {self.eta}")

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        memory: Mapping[str, Tensor],
        sigma: float,
        sigma_next: float,
        rng: ChainRandom,
    ) -> tuple[Tensor, Memory]:
        past, levels = recall(memory)
        estimate = denoise(x, sigma)
        kept = remember([estimate], [sigma], 1)
        if sigma_next == 0:
            return estimate, kept
        forecast = estimate
        if past:
            ratio = math.log(levels[0] / sigma) / math.log(sigma / sigma_next)
            forecast = estimate + (estimate - past[0]) / (2 * ratio)
        shrink = (sigma_next / sigma) ** self.eta
        x = euler(x, forecast, sigma, sigma_next * shrink)
        if self.eta > 0:
            x = x + sigma_next * math.sqrt(1 - shrink**2) * rng.normal(x)
        return x, kept


@dataclass(frozen=True)
class DPMpp2S(Solver):
    """DPM-Solver++ 2S: D taken at the middle of the step in log sigma; two calls a step, no memory.

    Lu et al., 2022, Algorithm 1 with r = 1/2.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        memory: Mapping[str, Tensor],
        sigma: float,
        sigma_next: float,
        rng: ChainRandom,
    ) -> tuple[Tensor, Memory]:
        estimate = denoise(x, sigma)
        if sigma_next == 0:
            return estimate, {}
        middle = math.sqrt(sigma * sigma_next)
        halfway = euler(x, estimate, sigma, middle)
        return euler(x, denoise(halfway, middle), sigma, sigma_next), {}


#: Ready-made settings. Others: make the class, such as `UniPC(p=1)` or `DPMpp2M(eta=0.5)`.
SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "ancestral": DDIM(eta=1.0),
    "heun": Heun(),
    "edm": Heun(churn_of_run=40.0),
    "dpmpp-2m": DPMpp2M(),
    "dpmpp-2m-sde": DPMpp2M(eta=1.0),
    "dpmpp-2s": DPMpp2S(),
    "deis-2": DEIS(2),
    "deis-3": DEIS(3),
    "deis-3-time": DEIS(3, "time"),
    "pndm": PNDM(),
    "plms": PNDM("adams"),
    "unipc-2": UniPC(2),
    "unipc-3": UniPC(3),
    "ghvb-2": GHVB(2, 0.8),
    "ghvb-3": GHVB(3, 0.8),
}


def solver(name: str | Solver) -> Solver:
    """The solver of this name; a solver is returned as it is.

    Raises:
        UserError: unknown name.
    """
    if isinstance(name, Solver):
        return name
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}.{suggestion(name, SOLVERS)}")
    return SOLVERS[name]
