"""Family "mixture": the 25-mode Gaussian mixture seen through one to four random measurements, posterior in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve import registry
from invsolve.bench.family import Family, Measure
from invsolve.bench.matrix import Matrix
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.testing.distances import draws, sliced_wasserstein

#: Raw units in one network unit: the outermost modes lie at +-16, a prior's images in [-1, 1].
UNIT = 16.0


@dataclass(frozen=True)
class MixturePosterior:
    """The posterior of a mixture sum_k w_k N(m_k, std^2 I) given y = A x + sigma n: again a mixture.

    All components keep one covariance, std^2 I - K A std^2 with the gain K = std^2 A' S^-1, S = std^2 A A' + sigma^2 I; their
    means become m_k + K (y - A m_k), their weights w_k N(y; A m_k, S), normalised.

    Attributes:
        means: of the prior's components (K, d), float64.
        prior_weights: (K,), sum one.
        std, sigma: of a component in every direction, and of the noise.
        matrix, y: A (m, d) and the measurement (m,).
    """

    means: Tensor
    prior_weights: Tensor
    std: float
    matrix: Tensor
    y: Tensor
    sigma: float

    @property
    def gain(self) -> Tensor:
        return self.std**2 * torch.linalg.solve(self._scatter(), self.matrix).T

    @property
    def weights(self) -> Tensor:
        """(K,), sum one."""
        rest = self.y - self.means @ self.matrix.T
        squared = (rest.T * torch.linalg.solve(self._scatter(), rest.T)).sum(0)
        return (self.prior_weights.log() - squared / 2).softmax(0)

    @property
    def centres(self) -> Tensor:
        """Means of the posterior's components (K, d)."""
        return self.means + (self.y - self.means @ self.matrix.T) @ self.gain.T

    @property
    def spread(self) -> Tensor:
        """Standard deviation of a component in each coordinate (d,)."""
        return (self.std**2 * (1 - (self.gain * self.matrix.T).sum(1))).clamp_min(0).sqrt()

    def draw(self, count: int, seed: int) -> Tensor:
        """Exact samples (count, d): a component by its weight, a prior draw from it, conditioned on y (Matheron's rule)."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        white = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        x = self.means[which] + self.std * white
        noise = self.sigma * torch.randn(count, len(self.y), generator=generator, dtype=torch.float64)
        return x + (self.y - x @ self.matrix.T - noise) @ self.gain.T

    def cumulative(self, values: Tensor) -> Tensor:
        """P(x_i <= values_i) of each coordinate, (d,) for values (d,)."""
        parts = torch.special.ndtr((values - self.centres) / self.spread)
        return self.weights @ parts

    def _scatter(self) -> Tensor:
        noise = self.sigma**2 * torch.eye(len(self.y), dtype=torch.float64)
        return self.std**2 * self.matrix @ self.matrix.T + noise


def modes(size: int) -> Tensor:
    """Component means (25, size), raw units: (8 i, 8 j), i and j in -2 .. 2, repeated over the coordinate pairs."""
    steps = torch.arange(-2, 3, dtype=torch.float64) * 8
    pairs = torch.cartesian_prod(steps, steps)
    return pairs.repeat(1, size // 2)


def random_problem(size: int, measurements: int, seed: int) -> MixturePosterior:
    """Draw a problem as Cardoso et al. do (MCGdiff, arXiv:2308.07983, and their code): raw units, unit variance.

    Mode weights: squared standard normal numbers, normalised. A: the singular vectors of a standard normal matrix, singular
    values uniform on [0, 1]. sigma_y: uniform on [0, largest singular value]. y: of a draw from the prior.

    Args:
        size: d, even.
        measurements: rows of A.
        seed: of all this.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = modes(size)
    weights = normal(len(means)) ** 2
    weights = weights / weights.sum()
    left, _, right = torch.linalg.svd(normal(measurements, size), full_matrices=False)
    values = torch.rand(measurements, generator=generator, dtype=torch.float64).sort(descending=True).values
    matrix = left @ (values[:, None] * right)
    sigma = float(torch.rand((), generator=generator, dtype=torch.float64) * values[0])
    truth = means[torch.multinomial(weights, 1, generator=generator)[0]] + normal(size)
    return MixturePosterior(means, weights, 1.0, matrix, matrix @ truth + sigma * normal(measurements), sigma)


def make(problem: str, seed: int, samples: int, device: str) -> Measure:
    """A random problem of "d<size>-m<measurements>"; strategies see it in network units, figures are in raw units."""
    size, measurements = (int(part[1:]) for part in problem.split("-"))
    exact = random_problem(size, measurements, seed)
    prior = registry.find("prior", "gaussian-mixture")(
        means=exact.means[:, None] / UNIT, weights=exact.prior_weights, std=exact.std / UNIT
    ).to(device)
    y = exact.y.to(device, torch.float32).expand(samples, -1)
    operator = Matrix(exact.matrix * UNIT).to(device)
    posed = make_problem(prior, operator, Gaussian(exact.sigma), y, (1, size), Scale(), samples)

    def measure(strategy: Strategy, seed_of_draws: int) -> dict[str, float]:
        images, cost = draws(strategy, posed, seed_of_draws)
        return {**figures(images * UNIT, exact), **cost}

    return measure


def figures(samples: Tensor, exact: MixturePosterior) -> dict[str, float]:
    """How far samples (n, d), raw units, are from the posterior.

    Returns:
        wasserstein, wasserstein_floor: sliced Wasserstein-1 distance to as many exact samples, and between two sets of exact
            samples (the paper's 10 000 slices, here 200).
        weights, weights_floor: total variation distance of the shares of samples nearest to each mode from the exact
            weights, and that of exact samples.
        coverage_50, coverage_90: posterior probability of the samples' central intervals, mean over coordinates.
    """
    ideal, other = exact.draw(len(samples), 11), exact.draw(len(samples), 12)

    def variation(points: Tensor) -> float:
        nearest = torch.cdist(points, exact.means).argmin(1)
        shares = torch.bincount(nearest, minlength=len(exact.means)) / len(points)
        return float((shares - exact.weights).abs().sum() / 2)

    def covered(level: float) -> float:
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=samples.dtype)
        low, high = torch.quantile(samples, ends, dim=0)
        return float((exact.cumulative(high) - exact.cumulative(low)).mean())

    return {
        "wasserstein": sliced_wasserstein(samples, ideal),
        "wasserstein_floor": sliced_wasserstein(other, ideal),
        "weights": variation(samples),
        "weights_floor": variation(ideal),
        "coverage_50": covered(0.5),
        "coverage_90": covered(0.9),
    }


FAMILY = Family(
    problems=[f"d{size}-m{count}" for size in (8, 80, 800) for count in (1, 2, 4)],
    usual=[f"d{size}-m{count}" for size in (8, 80, 800) for count in (1, 2, 4)],
    columns={
        "wasserstein": "W1",
        "wasserstein_floor": "floor",
        "weights": "weights off",
        "weights_floor": "floor",
        "coverage_50": "in 50 %",
        "coverage_90": "in 90 %",
    },
    legend=(
        "W1: sliced Wasserstein-1 distance to {samples} exact samples, modes 8 apart, floor that between exact samples. weights "
        "off: total variation distance of the mode weights."
    ),
    make=make,
    repeats=3,
)
