"""How far a strategy is from the exact posterior: a Gaussian field seen through a linear operator, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from invsolve import registry
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator, matching
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.engine.batch import run_batch
from invsolve.engine.needs import check_needs
from invsolve.numerics.random import ChainRandom
from invsolve.testing.operators import dense
from invsolve.testing.report import Report


class SomePixels(MaskableOperator):
    """Every other pixel of a checkerboard is measured: half of a 16 x 16 image."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        index = torch.arange(size * size).view(size, size)
        self.mask = (index // size + index % size) % 2 == 0
        self.image_shape = (1, size, size)
        self.group_index = torch.where(self.mask, self.mask.flatten().cumsum(0).view(size, size) - 1, -1)[None]

    def forward(self, x: Tensor) -> Tensor:
        return x * matching(self.mask, x)

    def measured(self) -> Tensor:
        return self.mask


@dataclass(frozen=True)
class Exact:
    """A posterior in closed form: mean and covariance of the image given y, float64, flattened images."""

    problem: Problem
    truth: Tensor
    mean: Tensor
    covariance: Tensor

    @property
    def std(self) -> Tensor:
        return self.covariance.diagonal().clamp_min(0).sqrt()

    def draw(self, count: int, seed: int) -> Tensor:
        """Exact samples (count, pixels), float64."""
        values, vectors = torch.linalg.eigh(self.covariance)
        white = ChainRandom(seed, [(2, s) for s in range(count)]).normal(self.mean.expand(count, -1))
        return self.mean + (white * values.clamp_min(0).sqrt()) @ vectors.T


def exact_posterior(
    operator: LinearOperator | None = None,
    sigma: float = 0.05,
    samples: int = 128,
    size: int = 16,
    pixel_std: float = 0.15,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Exact:
    """A Gaussian field (pixel standard deviation `pixel_std`), one measurement of it, and the exact posterior.

    Args:
        operator: real-image linear operator on (1, size, size); default measures half of the pixels.
        sigma: noise standard deviation.
        samples: rows of the problem, all with the same y.
    """
    operator = SomePixels(size) if operator is None else operator
    prior = registry.find("prior", "gaussian")(size=size, std=pixel_std)
    rng = ChainRandom(seed, [(0, 0)])
    truth = prior.sample(rng, torch.zeros(1, dtype=torch.float64))
    wide = operator.to(torch.float64)
    matrix, _ = dense(wide, operator.image_shape or (1, size, size))
    y = Gaussian(sigma).sample(wide(truth), rng)
    mask = operator.measured()
    y = y if mask is None else y * mask
    covariance = prior.covariance()
    data = torch.cat([matrix.real, matrix.imag]) if matrix.is_complex() else matrix
    values = torch.cat([y.flatten().real, y.flatten().imag]) if y.is_complex() else y.flatten()
    gram = data @ covariance @ data.T + sigma**2 * torch.eye(len(data), dtype=torch.float64)
    gain = torch.linalg.solve(gram, data @ covariance).T
    mean = gain @ values
    posterior = covariance - gain @ data @ covariance
    place = operator.to(device=device, dtype=dtype)
    rows = y.to(device, dtype.to_complex() if y.is_complex() else dtype).expand(samples, *y.shape[1:])
    problem = make_problem(prior.to(device), place, Gaussian(sigma), rows, (1, size, size), Scale(), samples)
    return Exact(problem, truth, mean, posterior)


def draws(strategy: Strategy, problem: Problem, seed: int) -> tuple[Tensor, dict[str, float]]:
    """Run a strategy on a problem whose rows are all draws from one posterior.

    Returns:
        The draws (rows, pixels), float64 on the CPU; and `evaluations`, network calls and vector-Jacobian products a draw,
        and `seconds` of the whole run.

    Raises:
        UserError: the problem lacks what the strategy needs.
    """
    rows = problem.batch
    problem = replace(problem, samples_per_item=rows if strategy.couples_samples else 1)
    check_needs(strategy, problem)
    outcome = run_batch(problem, strategy, ChainRandom(seed, [(0, s) for s in range(rows)]))
    cost = {
        "evaluations": outcome.facts["network_calls"] + outcome.facts["vjp_calls"],
        "seconds": outcome.facts["seconds"] * rows,
    }
    return outcome.images.flatten(1).double().cpu(), cost


def compare(strategy: Strategy, exact: Exact, seed: int = 1) -> dict[str, float]:
    """Run a strategy on an exact problem and measure how far its samples are from the posterior.

    Returns:
        The figures of `distances`, and evaluations, seconds: network calls and vector-Jacobian products a sample; of the
        whole run.
    """
    images, cost = draws(strategy, exact.problem, seed)
    return distances(images, exact) | cost


def distances(images: Tensor, exact: Exact) -> dict[str, float]:
    """How far samples (rows, pixels), float64, are from an exact posterior.

    Returns:
        mean_error: rms over pixels of (mean of samples - posterior mean) / posterior sd; about 1 / sqrt(samples) when exact.
        std_ratio, std_observed, std_hidden: sd of the samples over the posterior's, of all pixels, of the half that the data
            determine better and of the other half.
        wasserstein, wasserstein_floor: sliced Wasserstein-1 distance to exact samples over the rms posterior sd, and that
            between two sets of exact samples.
        coverage_50, coverage_90: posterior probability of the samples' central intervals.
    """
    rows = len(images)
    mean, std = images.mean(0), images.std(0)
    observed = exact.std <= exact.std.median()
    ideal, other = exact.draw(rows, 11), exact.draw(rows, 12)
    size = float(exact.std.square().mean().sqrt())

    def ratio(pixels: Tensor) -> float:
        return float((std[pixels].square().mean() / exact.std[pixels].square().mean()).sqrt())

    def covered(level: float) -> float:
        normal = torch.distributions.Normal(exact.mean, exact.std)
        half = std * NormalDist().inv_cdf((1 + level) / 2)
        return float((normal.cdf(mean + half) - normal.cdf(mean - half)).mean())

    return {
        "mean_error": float(((mean - exact.mean) / exact.std).square().mean().sqrt()),
        "std_ratio": ratio(torch.ones_like(observed)),
        "std_observed": ratio(observed),
        "std_hidden": ratio(~observed),
        "wasserstein": sliced_wasserstein(images, ideal) / size,
        "wasserstein_floor": sliced_wasserstein(other, ideal) / size,
        "coverage_50": covered(0.5),
        "coverage_90": covered(0.9),
    }


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 200) -> float:
    """Mean Wasserstein-1 distance of equally many points (n, d) along random directions, float64."""
    directions = torch.randn(projections, a.shape[1], dtype=a.dtype, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=1, keepdim=True)
    return float(((a @ directions.T).sort(0).values - (b @ directions.T).sort(0).values).abs().mean())


def check_strategy(
    strategy: Strategy, operator: LinearOperator | None = None, device: str = "cpu", **options: Any
) -> Report:
    """Hold a strategy to what it claims (`mean_error`, `std_ratio`) against the exact posterior of a Gaussian field.

    Also that a sample does not depend on its batch, and that repeating a run repeats it.

    Args:
        strategy: the strategy.
        operator: real-image linear operator on (1, 16, 16); default measures half of the pixels.
        options: passed to `exact_posterior`.
    """
    report = Report(f"strategy {strategy.name or type(strategy).__name__}")

    def accuracy() -> None:
        exact = exact_posterior(operator, device=device, **options)
        found = compare(strategy, exact)
        floor = 1 / exact.problem.batch**0.5
        remedy = "the samples' mean is further from the posterior's than claimed (mean_error)"
        report.below("mean error / posterior sd", found["mean_error"], strategy.mean_error + floor, remedy)
        if strategy.draws:
            low, high = strategy.std_ratio
            ok = low <= found["std_ratio"] <= high
            text = f"sample sd / posterior sd {found['std_ratio']:.2f}, claimed {low} to {high}"
            report.holds("std ratio", ok, text, text)

    def batches() -> None:
        exact = exact_posterior(operator, samples=4, device=device, **options)
        chains = [(0, 0), (0, 1), (1, 0), (1, 1)]
        together = 2 if strategy.couples_samples else 1
        problem = replace(exact.problem, samples_per_item=together)
        whole = run_batch(problem, strategy, ChainRandom(5, chains)).images
        again = run_batch(problem, strategy, ChainRandom(5, chains)).images
        report.holds(
            "repeatable", bool((whole == again).all()) or device != "cpu", "the same seed gives another result"
        )
        parts = []
        for start in range(0, 4, together):
            some = replace(problem, y=problem.y[start : start + together])
            parts.append(run_batch(some, strategy, ChainRandom(5, chains[start : start + together])).images)
        error = float((torch.cat(parts) - whole).abs().max() / whole.abs().max())
        report.below("batch independence", error, 1e-3, "a sample depends on the others in its batch")

    report.attempt("accuracy", accuracy)
    report.attempt("batches", batches)
    return report
