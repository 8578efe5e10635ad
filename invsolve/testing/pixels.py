"""The posterior of single pixels under a Gaussian prior, by quadrature, and a strategy's draws held against it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.engine.needs import takes_noise
from invsolve.errors import Unsuited
from invsolve.numerics.random import ChainRandom
from invsolve.testing.distances import run
from invsolve.testing.log import Log

#: Shape of the measurement, and draws from its posterior.
_SHAPE, _DRAWS = (3, 4), 64
#: Mean and standard deviation of a pixel: positive to many standard deviations, as counts and intensities are.
MEAN, STD = 1.5, 0.25


class Pixels(Prior):
    """Independent pixels of mean 1.5 and standard deviation 0.25."""

    sigma_min, sigma_max = 0.001, 80.0

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)

    def error(self, sigma: float) -> float:
        return STD**2 * sigma**2 / (STD**2 + sigma**2)


class Itself(Operator):
    """A(x) = x for an image of one channel, y without the channel's axis; not known to be linear."""

    image_shape = (1, *_SHAPE)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def quadrature(noise: Noise, y: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of each pixel given y (1, *measurement), float64, by sums over a grid."""
    grid = MEAN + STD * torch.linspace(-6, 6, 4001, dtype=torch.float64)
    start = torch.full(y.shape, MEAN, dtype=torch.float64)
    means, stds = [], []
    for entry in range(y.numel()):
        # The others are held, and cancel.
        x = start.expand(len(grid), *y.shape[1:]).clone()
        x.flatten(1)[:, entry] = grid
        log = noise.log_likelihood(y.double().expand(x.shape), x) - ((grid - MEAN) / STD) ** 2 / 2
        weight = log.softmax(0)
        means.append(weight @ grid)
        stds.append((weight @ (grid - means[-1]) ** 2).sqrt())
    return torch.stack(means), torch.stack(stds)


def problem_of(noise: Noise, y: Tensor, draws: int) -> Problem:
    """The posterior as strategies are handed it, `draws` rows of it."""
    return make_problem(Pixels(), Itself(), noise, y.expand(draws, *y.shape[1:]), Itself.image_shape, Scale(), draws)


def look(report: Log, noise: Noise, strategy: Strategy, title: str) -> None:
    """Note how far a strategy's draws are from the posterior of pixels that this noise leaves, if it takes the noise.

    The mean may be off by the strategy's own `mean_error`, the width by its `std_ratio`, with what chance allows so many draws.
    """
    if not takes_noise(type(strategy), noise):
        return
    rng = ChainRandom(5, [(0, 0)])
    truth = MEAN + STD * rng.normal(torch.zeros(1, *_SHAPE, dtype=torch.float64))
    y = noise.sample(truth, rng)
    mean, std = quadrature(noise, y)
    try:
        images = run(strategy, problem_of(noise, y, _DRAWS), seed=6).images.flatten(1).double().cpu()
    except Unsuited as reason:
        report.holds(title, True, note=f"does not apply: {reason}")
        return
    pixels = len(mean)
    chance = (1 + 4 * math.sqrt(2 / pixels)) / _DRAWS
    off = float(((images.mean(0) - mean) / std).square().mean().sqrt())
    remedy = "draws have another mean than the posterior by quadrature; figure in its standard deviations"
    report.below(f"{title}, mean", off, math.sqrt(strategy.mean_error**2 + chance), remedy)
    if not strategy.draws:
        return
    width = float((images.var(0) / std.square()).mean().sqrt())
    low, high = strategy.std_ratio
    error = 4 / math.sqrt(2 * pixels * (_DRAWS - 1))
    remedy = f"draws are {width:.3f} times as wide as the posterior by quadrature, where {low:g} to {high:g} is stated"
    report.holds(f"{title}, width", low * (1 - error) <= width <= high * (1 + error), remedy)
