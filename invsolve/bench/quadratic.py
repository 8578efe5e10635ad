"""Family "quadratic": squares of projections of six unknowns, posterior by tempered sequential Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from invsolve import registry
from invsolve.bench.family import Family, Measure
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import Operator, matching
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.testing.distances import draws, sliced_wasserstein

#: Unknowns, and their prior standard deviation.
SIZE, SPREAD = 6, 0.5
#: The part of the particles that must count at each power of the likelihood.
COUNT = 0.9
#: The problems: prior mean of every unknown, numbers measured, noise. The mean tells the signs of the projections, or not.
PROBLEMS = {
    "clear": (0.5, 6, 0.05),
    "clear-noisy": (0.5, 6, 0.2),
    "faint": (0.25, 6, 0.05),
    "faint-noisy": (0.25, 6, 0.2),
    "symmetric": (0.0, 6, 0.05),
    "symmetric-noisy": (0.0, 6, 0.2),
    "overdetermined": (0.25, 12, 0.05),
}


class Squares(Operator):
    """y = (B x)^2, entry by entry, for signals x (items, 1, n).

    Args:
        matrix: B (m, n).
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix
        self.image_shape = (1, matrix.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ matching(self.matrix, x).T) ** 2


@dataclass(frozen=True)
class Tempered:
    """Draws of p(x | y) ~ N(x; mean, std^2 I) N(y; (B x)^2, sigma^2 I) by tempered sequential Monte Carlo (Del Moral 2006).

    Particles of the prior, weighted by powers of the likelihood that rise so that nine in ten of them count, resampled, and moved
    by random-walk Metropolis steps of the particles' own covariance.

    Attributes:
        mean, std: of the prior.
        matrix, y: B (m, n) and the measurement (m,), float64.
        sigma: of the noise.
    """

    mean: float
    std: float
    matrix: Tensor
    y: Tensor
    sigma: float

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Of (N, n), (N,)."""
        return -(((x @ self.matrix.T) ** 2 - self.y).square().sum(1)) / (2 * self.sigma**2)

    def log_prior(self, x: Tensor) -> Tensor:
        """Of (N, n), up to a constant, (N,)."""
        return -(x - self.mean).square().sum(1) / (2 * self.std**2)

    @cached_property
    def reference(self) -> Tensor:
        """Draws (40000, n)."""
        return self.sample(40000, 0)

    def sample(self, count: int, seed: int, moves: int = 15) -> Tensor:
        """Draws (count, n), float64."""
        generator = torch.Generator().manual_seed(seed)
        x = self.mean + self.std * torch.randn(count, self.matrix.shape[1], generator=generator, dtype=torch.float64)
        power = 0.0
        while power < 1:
            log = self.log_likelihood(x)
            raised = next_power(log, power)
            weight = ((raised - power) * log).softmax(0)
            marks = (torch.arange(count) + torch.rand((), generator=generator, dtype=x.dtype)) / count
            x = x[torch.searchsorted(weight.cumsum(0), marks).clamp(max=count - 1)]
            power = raised
            x = self._moved(x, power, moves, generator)
        # Copies of one particle stand side by side.
        return x[torch.randperm(count, generator=generator)]

    def _moved(self, x: Tensor, power: float, moves: int, generator: torch.Generator) -> Tensor:
        factor = torch.linalg.cholesky(torch.cov(x.T) + 1e-12 * torch.eye(x.shape[1], dtype=x.dtype))
        log = self.log_prior(x) + power * self.log_likelihood(x)
        for move in range(moves):
            # Long ones cross between modes, short ones settle in them.
            length = 2.4 / x.shape[1] ** 0.5 * (1.0, 0.3, 0.1)[move % 3]
            there = x + length * torch.randn(x.shape, generator=generator, dtype=x.dtype) @ factor.T
            log_there = self.log_prior(there) + power * self.log_likelihood(there)
            taken = torch.rand(len(x), generator=generator, dtype=x.dtype).log() < log_there - log
            x, log = torch.where(taken[:, None], there, x), torch.where(taken, log_there, log)
        return x


def next_power(log: Tensor, power: float) -> float:
    """The power up to 1 of the likelihood at which `COUNT` of the particles count, by bisection."""
    low, high = power, 1.0
    if _effective((1.0 - power) * log) >= COUNT * len(log):
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if _effective((middle - power) * log) >= COUNT * len(log):
            low = middle
        else:
            high = middle
    return max(low, power + 1e-9)


def _effective(log: Tensor) -> float:
    weight = log.softmax(0)
    return float(1 / weight.square().sum())


def random_problem(problem: str, seed: int) -> Tempered:
    """B of standard normal numbers over sqrt(n), a draw of the prior, its noisy measurement."""
    mean, count, sigma = PROBLEMS[problem]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrix = normal(count, SIZE) / SIZE**0.5
    truth = mean + SPREAD * normal(SIZE)
    return Tempered(mean, SPREAD, matrix, (matrix @ truth) ** 2 + sigma * normal(count), sigma)


def make(problem: str, seed: int, samples: int, device: str) -> Measure:
    """One random problem of a name, every row of the run a draw of its posterior."""
    exact = random_problem(problem, seed)
    prior = registry.find("prior", "gaussian-mixture")(
        means=torch.full((1, 1, SIZE), exact.mean), weights=torch.ones(1), std=exact.std
    ).to(device)
    y = exact.y.to(device, torch.float32).expand(samples, -1)
    operator = Squares(exact.matrix).to(device)
    posed = make_problem(prior, operator, Gaussian(exact.sigma), y, (1, SIZE), Scale(), samples)

    def measure(strategy: Strategy, seed_of_draws: int) -> dict[str, float]:
        images, cost = draws(strategy, posed, seed_of_draws)
        return {**figures(images, exact.reference), **cost}

    return measure


def figures(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """How far samples (S, n) are from reference draws (N, n), in rms standard deviations of these.

    Returns:
        mean_error: norm of the difference of the means, per unknown.
        std_ratio: rms standard deviation over that of the reference.
        wasserstein, wasserstein_floor: sliced Wasserstein-1 distance to as many reference draws, and of two sets of these.
    """
    count = len(samples)
    spread = reference.std(0).square().mean().sqrt()
    ideal, other = reference[:count], reference[count : 2 * count]
    return {
        "mean_error": float((samples.mean(0) - reference.mean(0)).square().mean().sqrt() / spread),
        "std_ratio": float(samples.std(0).square().mean().sqrt() / spread),
        "wasserstein": sliced_wasserstein(samples, ideal) / float(spread),
        "wasserstein_floor": sliced_wasserstein(other, ideal) / float(spread),
    }


FAMILY = Family(
    problems=list(PROBLEMS),
    usual=list(PROBLEMS),
    columns={"mean_error": "mean error", "std_ratio": "sd ratio", "wasserstein": "W1", "wasserstein_floor": "floor"},
    legend=(
        "y = (B x)^2 of six unknowns; reference: tempered sequential Monte Carlo. mean error and W1 (sliced Wasserstein-1 to "
        "{samples} reference draws) in its rms standard deviation; floor: W1 between reference draws."
    ),
    make=make,
    repeats=3,
)
