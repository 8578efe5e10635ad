"""MGDM (Janati 2025): moves between a clean image, a noisy one, and one at a level drawn at random, where the data enter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.random import SHARED, ChainRandom
from invsolve.plugins.strategies._adam import adam

#: Times of the DDPM schedule, counted from the least noise, among which a level is drawn.
_TIMES = 1000
#: The least time drawn.
_LEAST = 10
#: Part of the steps after which the level is the next one and no longer drawn, and Adam takes more steps: their 70 of 97.
_SETTLED = 70 / 97


@dataclass(frozen=True)
class MGDM(Strategy):
    """Gibbs moves through a noise level drawn at random, at which the data enter (Janati 2025).

    At level t: x_s of N(bridge from x0 to x_t) p(y | D(x_s)), by a Gaussian fitted to it; x0 of DDPM from x_s; x_t of the bridge
    from x_s to the level above.

    Janati, Moufad et al., ICML 2025, with the settings of their code for images: the fit are a few steps of Adam on the mean and
    the log standard deviation of each pixel, in variance-preserving coordinates, its draws by reparametrisation. s is drawn below
    the next level, uniformly in the times of the DDPM schedule, one for all samples of a run, and is the next level itself in the
    last three tenths of the steps. More moves a level (`moves`) are the only setting with a limit.

    Known bias: p(y | D(x_s)) for p(y | x_s), which leaves out the prior's own uncertainty, and a Gaussian of independent pixels
    fitted in few steps whose length knows no noise level: samples are up to 1.8 times too wide at 20 levels, 1.5 at 97, most
    where the data determine them, and means err by up to 0.85 posterior standard deviations, 0.35 at 97. Along what tomography
    hardly passes on they stay several times too wide.

    Args:
        steps: levels, of which each takes about 38 evaluations.
        moves: Gibbs moves a level.
        denoising: times at which DDPM from x_s to x0 stops, at most, with both ends.
        fits: steps of Adam, a network call and its backward pass each.
        late_fits: in the last three tenths of the steps.
        rate: of Adam; a third of it in the first ten steps.
    """

    name = "mgdm"
    paper: ClassVar[Paper | None] = Paper(
        "A Mixture-Based Framework for Guiding Diffusion Models",
        ("Yazid Janati", "Badr Moufad", "Mehdi Abou El Qassime", "Alain Durmus", "Eric Moulines", "Jimmy Olsson"),
        2025,
        "arXiv:2502.03332",
    )
    cost: ClassVar[str] = "up to 39 forward + 20 backward"

    steps: int = 97
    moves: int = 1
    denoising: int = 20
    fits: int = 5
    late_fits: int = 20
    rate: float = 0.03

    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "operator-gradient", "noise-slope")
    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    mean_error: ClassVar[float] = 0.85
    std_ratio: ClassVar[tuple[float, float]] = (1.0, 1.85)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.75, 2.1)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"steps": 20},)

    def at_cost(self, evaluations: int) -> Self:
        fits = _SETTLED * self.fits + (1 - _SETTLED) * self.late_fits
        return replace(self, steps=max(round(evaluations / (self.moves * (self.denoising - 1 + 2 * fits))), 2))

    def schedule(self, problem: Problem) -> Tensor:
        # Theirs stop two levels before the last of their grid: the one between is where the data enter last.
        return self.levels(problem)[:-2]

    def levels(self, problem: Problem) -> Tensor:
        """The schedule, the level below its last, and the lowest, where their grid ends."""
        return schedules.ddpm_linear(self.steps + 3, problem.prior.sigma_min, problem.prior.sigma_max)[:-1]

    def times(self, problem: Problem) -> Tensor:
        """Levels of all times, from the least noise on."""
        return schedules.ddpm_linear(_TIMES, problem.prior.sigma_min, problem.prior.sigma_max)[:-1].flip(0)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        sigma = self.schedule(problem)[0].item()
        z = sigma * rng.normal(problem.zeros())
        return {"x": problem.denoise(z, sigma), "z": z}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        clean, above, late = state["x"], state["z"], rng.step > _SETTLED * self.steps
        time = self.time(rng, late)
        level = self.times(problem)[time].item()
        rate, fits = self.rate / 3 if rng.step <= 11 else self.rate, self.late_fits if late else self.fits
        z = bridge(clean, above, 0.0, sigma_next, sigma, rng)
        for _ in range(self.moves):
            middle, residual = fitted(problem, clean, z, level, sigma_next, fits, rate, rng)
            clean = self.denoised(problem, middle, time, rng)
            z = bridge(middle, above, level, sigma_next, sigma, rng)
        return {"x": clean, "z": z, "residual": residual}

    def time(self, rng: ChainRandom, late: bool) -> int:
        """That of the level where the data enter: the next level's, or one below it drawn for the whole run."""
        below = round((_TIMES - 1) * (1 - (rng.step + 1) / (self.steps + 2)))
        if late or below <= _LEAST:
            return below
        draw = ChainRandom(rng.seed, [(0, SHARED)]).at(rng.step).uniform().item()
        return _LEAST + int(draw * (below - _LEAST))

    def denoised(self, problem: Problem, x: Tensor, time: int, rng: ChainRandom) -> Tensor:
        """A clean image from x at a time's level, by ancestral steps at equally spaced times."""
        stops = torch.linspace(time, 0, min(self.denoising, time + 1), dtype=torch.float64).floor().long()
        levels = [*self.times(problem)[stops[:-1]].tolist(), 0.0] if time > 0 else [self.times(problem)[0].item(), 0.0]
        for sigma, after in pairwise(levels):
            estimate = problem.denoise(x, sigma)
            ratio = (after / sigma) ** 2
            x = estimate + ratio * (x - estimate)
            if after > 0:
                x = x + after * math.sqrt(1 - ratio) * rng.normal(x)
        return x


def moments(low: Tensor, high: Tensor, a: float, b: float, c: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of x_b given x_a = low and x_c = high, a < b < c."""
    share = (b**2 - a**2) / (c**2 - a**2)
    return low + share * (high - low), math.sqrt((b**2 - a**2) * (1 - share))


def bridge(low: Tensor, high: Tensor, a: float, b: float, c: float, rng: ChainRandom) -> Tensor:
    """A draw of x_b given x_a = low and x_c = high."""
    mean, std = moments(low, high, a, b, c)
    return mean + std * rng.normal(mean)


def fitted(
    problem: Problem, clean: Tensor, z: Tensor, level: float, sigma: float, fits: int, rate: float, rng: ChainRandom
) -> tuple[Tensor, Tensor]:
    """A draw of x at `level` from the Gaussian of independent pixels nearest to bridge times likelihood; and its misfit, (B,)."""
    scale = math.sqrt(1 + level**2)
    centre, std = moments(clean, z, 0.0, level, sigma)
    centre, std = centre / scale, std / scale
    mean, log_std = centre, torch.full_like(centre, math.log(std))
    memory = [torch.zeros_like(mean) for _ in range(4)]
    residual = z.new_zeros(len(z))
    for k in range(1, fits + 1):
        noise, count = rng.normal(mean), z.new_full((len(z),), k)
        with torch.enable_grad():
            v = (mean + log_std.exp() * noise).requires_grad_()
            predicted = problem.operator(problem.denoise(scale * v, level))
            (slope,) = torch.autograd.grad(problem.log_likelihood(predicted).sum(), v)
        slope = (v.detach() - centre) / std**2 - slope
        move, memory[0], memory[1] = adam(slope, memory[0], memory[1], count, (0.9, 0.999))
        turn, memory[2], memory[3] = adam(slope * log_std.exp() * noise - 1, memory[2], memory[3], count, (0.9, 0.999))
        mean, log_std = mean - rate * move, log_std - rate * turn
        residual = problem.misfit(problem.y - predicted.detach())
    return scale * (mean + log_std.exp() * rng.normal(mean)), residual
