"""Family "levy": random walks with Gaussian, Laplace or sparse jumps, their posteriors by closed form or Gibbs sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from invsolve import registry
from invsolve.bench.family import Family, Measure
from invsolve.bench.gibbs import JumpPosterior
from invsolve.bench.matrix import Matrix
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.prior import Prior
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.numerics.random import SHARED, ChainRandom
from invsolve.testing.distances import draws, sliced_wasserstein

LENGTH = 64
#: Standard deviation of an increment at which a signal's root mean square is 0.5, half of a [-1, 1] range.
STD = 0.5 / math.sqrt((LENGTH + 1) / 2)
SNR_DB = 25.0
#: Entries that "sampling" keeps, and frequencies that "fourier" does, as published.
KEPT = (
    *(
        0,
        3,
        6,
        8,
        9,
        12,
        13,
        17,
        18,
        19,
        21,
        25,
        27,
        29,
        31,
        32,
        33,
        35,
        38,
        39,
        42,
        43,
        44,
        47,
        48,
        50,
        53,
        55,
        57,
        58,
    ),
    *(60, 62, 63),
)
FREQUENCIES = (*range(5), 6, 8, 9, 12, 13, 17, 18, 19, 21, 25, 27, 29, 31, 32)
#: Below this part of an increment's standard deviation a jump counts as none, for the density of sparse ones.
NO_JUMP = 0.05
INCREMENTS = ("gaussian", "laplace", "bernoulli-laplace")


def convolution() -> Tensor:
    """Circular convolution with a Gaussian of standard deviation 2, 13 taps, sum one."""
    taps = torch.exp(-(torch.arange(-6, 7, dtype=torch.float64) ** 2) / 8)
    row = torch.zeros(LENGTH, dtype=torch.float64)
    row[torch.arange(-6, 7) % LENGTH] = taps / taps.sum()
    return torch.stack([row.roll(k) for k in range(LENGTH)])


def sampling() -> Tensor:
    """33 of the 64 entries."""
    return torch.eye(LENGTH, dtype=torch.float64)[list(KEPT)]


def fourier() -> Tensor:
    """Real and imaginary parts of 19 Fourier coefficients, 36 numbers, orthonormal rows."""
    place = torch.arange(LENGTH, dtype=torch.float64)
    rows = []
    for k in FREQUENCIES:
        angle = 2 * math.pi * k * place / LENGTH
        single = k in (0, LENGTH // 2)  # real anyway
        rows += [angle.cos() * math.sqrt((1 if single else 2) / LENGTH)]
        rows += [] if single else [-angle.sin() * math.sqrt(2 / LENGTH)]
    return torch.stack(rows)


OPERATORS = {
    "identity": lambda: torch.eye(LENGTH, dtype=torch.float64),
    "convolution": convolution,
    "sampling": sampling,
    "fourier": fourier,
}


@dataclass(frozen=True)
class Gold:
    """The posterior as draws (n, L), float64, and its mean and standard deviation (L,) as well as they are known.

    Attributes:
        log_density: ln p(x | y) of signals (n, L) up to a constant, (n,).
    """

    samples: Tensor
    mean: Tensor
    std: Tensor
    log_density: Callable[[Tensor], Tensor]


def noise_level(prior: Prior, matrix: Tensor) -> float:
    """sigma_y at which the median signal's mean |A x|^2 is 25 dB above sigma_y^2."""
    rng = ChainRandom(0, [(item, SHARED - 3) for item in range(1000)])
    signals = prior.sample(rng, torch.zeros(1, dtype=torch.float64))[:, 0]  # type: ignore[operator]
    return float((signals @ matrix.T).square().mean(1).median() / 10 ** (SNR_DB / 10)) ** 0.5


def gold_standard(
    prior: Prior, matrix: Tensor, y: Tensor, sigma: float, count: int, seed: int, chains: int = 64, burn_in: int = 200
) -> Gold:
    """At least `count` posterior draws: exact ones for Gaussian increments, else by Gibbs sampling in parallel chains.

    Each chain forgets `burn_in` sweeps and then gives every fifth state, at least 20 of them. Two such means (64 chains) are
    0.003 to 0.015 dB apart in the measure `gap_db`; sparse jumps seen through the convolution mix most slowly.
    """
    density = partial(log_posterior, prior=prior, matrix=matrix, y=y, sigma=sigma)
    total = torch.ones(LENGTH, LENGTH, dtype=torch.float64).tril()
    jumps = matrix @ total
    if prior.increments == "gaussian":
        precision = jumps.T @ jumps / sigma**2 + torch.eye(LENGTH, dtype=torch.float64) / STD**2
        covariance = total @ torch.linalg.inv(precision) @ total.T
        mean = covariance @ matrix.T @ y / sigma**2
        generator = torch.Generator().manual_seed(seed)
        white = torch.randn(count, LENGTH, generator=generator, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(covariance)
        samples = mean + (white * values.clamp_min(0).sqrt()) @ vectors.T
        return Gold(samples, mean, covariance.diagonal().sqrt(), density)
    scale, share = float(prior.scale), float(prior.jumps)  # type: ignore[arg-type]
    keep = max(20, math.ceil(count / chains))
    u = JumpPosterior(jumps, y, sigma, scale, share).draw(chains, burn_in, keep, thin=5, seed=seed)
    samples = (u @ total.T).flatten(0, 1)
    return Gold(samples, samples.mean(0), samples.std(0), density)


def log_posterior(x: Tensor, prior: Prior, matrix: Tensor, y: Tensor, sigma: float) -> Tensor:
    """ln p(x | y) of signals (n, L) up to a constant, (n,).

    No jump has no density. It is taken for a normal number of standard deviation `NO_JUMP` of an increment's, so that signals
    of samplers, whose jumps are never exactly zero, can be compared with those of the Gibbs sampler, whose are.
    """
    jumps = x.diff(dim=1, prepend=x.new_zeros(len(x), 1))
    likelihood = -(y - x @ matrix.T).square().sum(1) / (2 * sigma**2)
    if prior.increments == "gaussian":
        return likelihood - jumps.square().sum(1) / (2 * STD**2)
    scale, share, narrow = float(prior.scale), float(prior.jumps), NO_JUMP * STD  # type: ignore[arg-type]
    law = -jumps.abs() / scale - math.log(2 * scale)
    if share < 1:
        none = -((jumps / narrow) ** 2) / 2 - math.log(narrow * math.sqrt(2 * math.pi))
        law = torch.logaddexp(math.log(share) + law, math.log1p(-share) + none)
    return likelihood + law.sum(1)


def make(problem: str, seed: int, samples: int, device: str) -> Measure:
    """A signal of "<increments>-<operator>", its measurement at 25 dB, and its gold standard.

    Setting of Zach et al., "A statistical benchmark for diffusion posterior sampling algorithms", ICLR 2026, and their code:
    64 numbers, increments Gaussian, Laplace, or Laplace with probability 0.1 and else zero, x_0 an increment too; 25 dB.
    Theirs have variance 0.25 or scale 1; here a signal's root mean square is 0.5, so that strategies meet network units.
    Rows of "fourier" are orthonormal. Of their laws Student's t is missing, for want of its exact denoiser.
    """
    increments, _, name = problem.rpartition("-")
    prior = registry.find("prior", "levy")(length=LENGTH, increments=increments, std=STD)
    matrix = OPERATORS[name]()
    rng = ChainRandom(seed, [(0, SHARED - 4)])
    truth = prior.sample(rng, torch.zeros(1, dtype=torch.float64))[0, 0]
    sigma = noise_level(prior, matrix)
    y = matrix @ truth
    y = y + sigma * rng.normal(y[None])[0]
    gold = gold_standard(prior, matrix, y, sigma, 2 * samples, seed)
    rows = y.to(device, torch.float32).expand(samples, -1)
    operator = Matrix(matrix).to(device)
    posed = make_problem(prior.to(device), operator, Gaussian(sigma), rows, (1, LENGTH), Scale(), samples)

    def measure(strategy: Strategy, seed_of_draws: int) -> dict[str, float]:
        signals, cost = draws(strategy, posed, seed_of_draws)
        return {**figures(signals, gold), **cost}

    return measure


def figures(samples: Tensor, gold: Gold) -> dict[str, float]:
    """How far samples (n, L) are from the posterior.

    Returns:
        gap_db, gap_floor_db: the error of the samples' mean over the smallest possible, expected over the truth given y: 10 log10
            of 1 + |mean - posterior mean|^2 / trace of the posterior covariance; and that of n exact draws, 1 + 1 / n.
        std_ratio: root mean square standard deviation of the samples over the posterior's.
        coverage_50, coverage_90: posterior probability of the samples' central intervals, mean over the signal.
        coverage_hpd: posterior probability of the region in which 90 % of the samples have the highest density (the published
            figure, with equal weights for the samples, where the benchmark's code weighs them by their density).
        wasserstein, wasserstein_floor: sliced Wasserstein-1 distance to n gold-standard draws over the root mean square
            posterior standard deviation, and that between two sets of n of them.
    """
    count = len(samples)
    order = torch.randperm(len(gold.samples), generator=torch.Generator().manual_seed(0))
    ideal, other = gold.samples[order[:count]], gold.samples[order[count : 2 * count]]
    power = gold.std.square().sum()
    size = float(gold.std.square().mean().sqrt())

    def covered(level: float) -> float:
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=samples.dtype)
        low, high = torch.quantile(samples, ends, dim=0)
        return float(((gold.samples >= low) & (gold.samples <= high)).double().mean())

    threshold = gold.log_density(samples).quantile(0.1)
    gap = float((samples.mean(0) - gold.mean).square().sum() / power)
    return {
        "gap_db": 10 * math.log10(1 + gap),
        "gap_floor_db": 10 * math.log10(1 + 1 / count),
        "std_ratio": float((samples.var(0).sum() / power).sqrt()),
        "coverage_50": covered(0.5),
        "coverage_90": covered(0.9),
        "coverage_hpd": float((gold.log_density(gold.samples) >= threshold).double().mean()),
        "wasserstein": sliced_wasserstein(samples, ideal) / size,
        "wasserstein_floor": sliced_wasserstein(other, ideal) / size,
    }


NAMES = [f"{law}-{name}" for law in INCREMENTS for name in OPERATORS]
FAMILY = Family(
    problems=NAMES,
    usual=NAMES,
    columns={
        "gap_db": "gap dB",
        "gap_floor_db": "floor",
        "std_ratio": "sd ratio",
        "coverage_50": "in 50 %",
        "coverage_90": "in 90 %",
        "coverage_hpd": "HPD 90 %",
        "wasserstein": "W1",
        "wasserstein_floor": "floor",
    },
    legend=(
        "gap: mean squared error of the samples' mean over the smallest possible, floor that of {samples} exact samples. W1: "
        "sliced Wasserstein-1 distance to gold-standard samples, in posterior sd."
    ),
    make=make,
    repeats=3,
)
