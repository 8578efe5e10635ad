"""Denoising MCMC (Kim & Ye 2023): Langevin steps on the image and its noise level together, then the way down from there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import inner, rows, size_of
from invsolve.numerics.random import ChainRandom

#: Levels at which the prior's error is looked up.
_LEVELS = 64


@dataclass(frozen=True)
class DenoisingMCMC(Strategy):
    """Langevin steps on an image and its noise level together, then denoised from there (Kim & Ye 2023).

    x += (eta / 2) (D_y - x) / s^2 + sqrt(eta) n and s of p(s | x), `chain` times; then Heun's method from (x, s).

    Kim and Ye, ICML 2023, Denoising Langevin Gibbs: the level s is a variable of the chain, each image's own, and the chain stays
    near the images, where the way down is short. Theirs is without data. Ours: D_y is D moved onto the data by a proximal
    step with the prior's measured error; s is not told by a classifier trained for it but by the network itself,
    s^2 = |x - D|^2 / d + the error of D, which like their largest class is no draw; and the chain starts at the linear
    reconstruction with noise instead of at a sample. Without data it is theirs.

    Known bias: D_y takes the prior's error for white, the same for all pixels: means err by up to 0.85 posterior standard
    deviations and samples are up to 1.5 times too wide, the most where the data leave much open. Steps of finite length raise
    the level, and the start is forgotten only as fast as Langevin steps go.

    Args:
        chain: Langevin steps, one network call each.
        denoising: levels of Heun's method, on Karras' levels from s down, two calls each.
        eta: length of a Langevin step; theirs 0.5 to 1.6 of images from 0 to 1.
        start: noise level that the chain starts from, network units; at most the prior's largest.
        iterations: of the proximal step's solver, at most, where the operator has no closed form.
    """

    name = "denoising-mcmc"
    paper: ClassVar[Paper | None] = Paper(
        "Denoising MCMC for Accelerating Diffusion-Based Generative Models",
        ("Beomsu Kim", "Jong Chul Ye"),
        2022,
        "arXiv:2209.14593",
    )
    cost: ClassVar[str] = "forward"

    chain: int = 30
    denoising: int = 20
    eta: float = 0.2
    start: float = 0.5
    iterations: int = 30

    inner_limit: ClassVar[str] = "iterations"
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.65
    std_ratio: ClassVar[tuple[float, float]] = (1.0, 1.5)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.9, 1.9)

    def __post_init__(self) -> None:
        if self.chain < 0 or self.denoising < 1 or not self.eta > 0:
            raise UserError(
                f"strategy 'denoising-mcmc': chain must be 0 or more, denoising 1 or more and eta above 0; got {self.chain}, "
                f"{self.denoising}, {self.eta}"
            )

    def at_cost(self, evaluations: int) -> Self:
        denoising = max(evaluations // 4, 2)
        return replace(self, denoising=denoising, chain=max(evaluations - 2 * denoising + 1, 1))

    def schedule(self, problem: Problem) -> Tensor:
        # Levels are each image's own.
        return iterations(self.chain + self.denoising)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        sigma = min(self.start, problem.prior.sigma_max)
        # What the prior expects without any data, and how the data differ from it.
        mean = problem.denoise(problem.zeros(), problem.prior.sigma_max)
        x = mean + problem.linear.baseline(problem.residual(mean), problem.sigma)
        errors = torch.tensor([problem.prior.error(level) for level in levels(problem).tolist()]).to(x)
        level = x.new_full((len(x),), sigma)
        return {
            "x": x + sigma * rng.normal(x),
            "level": level,
            "top": level,
            "errors": errors.expand(len(x), -1).contiguous(),
        }

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, level = state["x"], state["level"]
        if rng.step <= self.chain:
            denoised, moved = self.condition(problem, x, level, state["errors"])
            seen = inner(x - denoised, x - denoised) / size_of(x.shape[1:]) + error(problem, state["errors"], level)
            x = x + self.eta / 2 * (moved - x) / rows(level, x) ** 2 + self.eta**0.5 * rng.normal(x)
            level = seen.sqrt().clamp(problem.prior.sigma_min, problem.prior.sigma_max)
            return {**state, "x": x, "level": level, "top": level, "residual": problem.misfit(problem.residual(moved))}
        part = rng.step - self.chain - 1
        here, there = (karras(state["top"], problem.prior.sigma_min, self.denoising, k) for k in (part, part + 1))
        _, moved = self.condition(problem, x, here, state["errors"])
        slope = (x - moved) / rows(here, x)
        end = x + rows(there - here, x) * slope
        if part + 1 < self.denoising:
            _, again = self.condition(problem, end, there, state["errors"])
            end = x + rows(there - here, x) * (slope + (end - again) / rows(there, x)) / 2
        return {**state, "x": end, "level": there, "residual": problem.misfit(problem.residual(moved))}

    def condition(self, problem: Problem, x: Tensor, level: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
        """D, and D moved onto the data."""
        denoised = problem.denoise(x, level)
        unknown = error(problem, errors, level)
        unknown = rows(unknown, problem.y) if isinstance(problem.sigma, Tensor) else unknown
        shift = problem.tikhonov(problem.residual(denoised), unknown, CG(1e-3, self.iterations))
        return denoised, denoised + shift


def levels(problem: Problem) -> Tensor:
    """Those at which the prior's error is looked up, rising."""
    return schedules.geometric(_LEVELS, problem.prior.sigma_min, problem.prior.sigma_max)[:-1].flip(0)


def error(problem: Problem, errors: Tensor, level: Tensor) -> Tensor:
    """The prior's error at each row's level, (B,): between those known, log against log; (B, levels) and (B,)."""
    low, high = problem.prior.sigma_min, problem.prior.sigma_max
    place = ((level / low).log() / math.log(high / low) * (_LEVELS - 1)).clamp(0, _LEVELS - 1)
    below = place.floor().long().clamp(max=_LEVELS - 2)
    log = errors.log()
    ends = [log.gather(1, (below + k)[:, None])[:, 0] for k in (0, 1)]
    return torch.lerp(ends[0], ends[1], place - below).exp()


def karras(top: Tensor, low: float, count: int, place: int) -> Tensor:
    """Level `place` of `count` on Karras' levels from each row's `top` to the lowest, then 0; (B,)."""
    if place >= count:
        return torch.zeros_like(top)
    share = place / max(count - 1, 1)
    return (top ** (1 / 7) + share * (low ** (1 / 7) - top ** (1 / 7))) ** 7
