"""Optimal start noise (Ma 2024): the one start, of many, from which few steps of the flow reconstruct references best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.linalg import norm, rows
from invsolve.numerics.random import SHARED, ChainRandom
from invsolve.plugins.strategies._proximal import correction
from invsolve.plugins.strategies._reverse import reverse

#: Network calls with which a reference image is drawn from the prior.
DRAWN_BY = 20


@dataclass(frozen=True)
class Boundary(Strategy):
    """The one start, of many, from which few steps reconstruct references best (Ma 2024); for super-resolution.

    w* = argmin over `candidates` draws of the mean error of references reconstructed from w; then every image from w*.

    Ma et al., ICLR 2024: the best boundary condition of a conditional diffusion ODE is much the same for all images, so it is
    sought once, on a few pairs of images and measurements. Theirs measures LPIPS on real pairs, with a network trained for
    super-resolution. Ours: references are draws of the prior, measured by the problem's operator and noise; their error is the
    squared one; and the flow of any prior is conditioned by the data step of `dds` with the prior's measured error,
    x' = D + (A'A + sigma_y^2 / V)^-1 A'(y - A D) + (sigma' / sigma)(x - D).

    Known bias: a point, the same for all samples: one start has one image. The best of few random starts is near none,
    and what the data do not tell is a little of that start's own detail.

    Args:
        steps: network calls of an image.
        candidates: starts tried, each on every reference.
        references: pairs made by the prior.
        iterations: of the inner solver, at most, where the operator has no closed form.
    """

    name = "boundary"
    paper: ClassVar[Paper | None] = Paper(
        "Solving Diffusion ODEs with Optimal Boundary Conditions for Better Image Super-Resolution",
        ("Yiyang Ma", "Huan Yang", "Wenhan Yang", "Jianlong Fu", "Jiaying Liu"),
        2023,
        "arXiv:2305.15357",
    )
    cost: ClassVar[str] = "forward, and candidates x references runs"

    steps: int = 12
    candidates: int = 8
    references: int = 4
    iterations: int = 20

    draws: ClassVar[bool] = False
    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    inner_limit: ClassVar[str] = "iterations"
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    mean_error: ClassVar[float] = 1.1

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.references < 1:
            raise UserError("strategy 'boundary': candidates and references must be at least 1")

    def at_cost(self, evaluations: int) -> Self:
        runs = 1 + self.candidates * self.references
        return replace(self, steps=max((evaluations - DRAWN_BY * self.references) // runs, 2))

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.edm(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        pairs = [self.pair(problem, rng, r) for r in range(self.references)]
        best = torch.full((problem.batch,), math.inf, device=problem.y.device)
        chosen = problem.zeros()
        for k in range(self.candidates):
            # The same for every chain: one boundary for all images.
            start = shared(rng, self.references + k, problem.batch).normal(problem.zeros())
            error = torch.stack([norm(self.run(some, start) - image) ** 2 for image, some in pairs]).mean(0)
            better = error < best
            best, chosen = torch.where(better, error, best), torch.where(rows(better, start), start, chosen)
        return {"x": self.schedule(problem)[0].item() * chosen}

    def pair(self, problem: Problem, rng: ChainRandom, number: int) -> tuple[Tensor, Problem]:
        """A draw of the prior, and the problem of its measurement."""
        top, own = problem.prior.sigma_max, shared(rng, number, problem.batch)
        image, _ = reverse(problem, top * own.normal(problem.zeros()), top, DRAWN_BY, 1.0, own)
        y, mask = problem.noise.sample(problem.linear(image), own), problem.linear.measured()
        some = replace(problem, y=y if mask is None else y * mask, shift=None)
        some.calls = problem.calls
        return image, some

    def run(self, problem: Problem, start: Tensor) -> Tensor:
        """The image that the steps make of a start of unit variance."""
        levels = self.schedule(problem).tolist()
        x = levels[0] * start
        for sigma, after in pairwise(levels):
            x, _ = self.conditioned(problem, x, sigma, after)
        return x

    def conditioned(self, problem: Problem, x: Tensor, sigma: float, after: float) -> tuple[Tensor, Tensor]:
        """One step of the flow towards the data, and y - A D."""
        estimate = problem.denoise(x, sigma)
        residual = problem.residual(estimate)
        shift = correction(problem, residual, problem.prior.error(sigma), None, after, self.iterations)
        return estimate + shift + after / sigma * (x - estimate), residual

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, residual = self.conditioned(problem, state["x"], sigma, sigma_next)
        return {"x": x, "residual": problem.misfit(residual)}


def shared(rng: ChainRandom, number: int, count: int) -> ChainRandom:
    """Random numbers of the run's seed that all chains share, the same in every batch."""
    return ChainRandom(rng.seed, [(number, SHARED)] * count)
