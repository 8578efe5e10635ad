"""How far samples are from an exact posterior: their mean, their widths by pixel and by eigenvector, their shape."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import torch
from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import Strategy
from invsolve.engine.batch import Outcome, run_batch
from invsolve.engine.needs import check_needs
from invsolve.numerics.random import ChainRandom
from invsolve.testing.exact import Exact

#: The part of the eigenvectors that may lie on either side of the widths that are told.
TAIL = 0.05


def draws(strategy: Strategy, problem: Problem, seed: int) -> tuple[Tensor, dict[str, float]]:
    """Run a strategy on a problem whose rows are all draws from one posterior.

    Returns:
        The draws (rows, pixels), float64 on the CPU; and `evaluations`, network calls and vector-Jacobian products a draw,
        and `seconds` of the whole run.

    Raises:
        UserError: the problem lacks what the strategy needs.
    """
    outcome = run(strategy, problem, seed)
    cost = {
        "evaluations": outcome.facts["network_calls"] + outcome.facts["vjp_calls"],
        "seconds": outcome.facts["seconds"] * problem.batch,
    }
    return flat(outcome), cost


def run(strategy: Strategy, problem: Problem, seed: int) -> Outcome:
    """Run a strategy on a problem whose rows are all draws from one posterior, as `draws` does."""
    rows = problem.batch
    problem = replace(problem, samples_per_item=rows if strategy.couples_samples else 1)
    check_needs(strategy, problem)
    return run_batch(problem, strategy, ChainRandom(seed, [(0, s) for s in range(rows)]))


def flat(outcome: Outcome) -> Tensor:
    """The images of a run, (rows, pixels), float64 on the CPU."""
    return outcome.images.flatten(1).double().cpu()


def compare(strategy: Strategy, exact: Exact, seed: int = 1) -> dict[str, float]:
    """Run a strategy on an exact problem and measure how far its samples are from the posterior of the data that it used.

    Returns:
        The figures of `distances`, and evaluations, seconds: network calls and vector-Jacobian products a sample; of the
        whole run.
    """
    outcome = run(strategy, exact.problem, seed)
    cost = {
        "evaluations": outcome.facts["network_calls"] + outcome.facts["vjp_calls"],
        "seconds": outcome.facts["seconds"] * exact.problem.batch,
    }
    return distances(flat(outcome), of_what_was_used(exact, outcome)) | cost


def of_what_was_used(exact: Exact, outcome: Outcome) -> Exact:
    """The posterior of the data that a run rests on: all of them, or what an active strategy acquired."""
    return exact if outcome.used is None else exact.given(outcome.used[0])


def distances(images: Tensor, exact: Exact) -> dict[str, float]:
    """How far samples (rows, pixels), float64, are from an exact posterior.

    Returns:
        mean_error: rms over pixels of (mean of samples - posterior mean) / posterior sd; about 1 / sqrt(samples) when exact.
        std_ratio, std_observed, std_hidden: sd of the samples over the posterior's, of all pixels, of the half that the data
            determine better and of the other half.
        eigen_low, eigen_high: the same along the posterior's eigenvectors: what 5 % of them lie below and above.
        wasserstein, wasserstein_floor: sliced Wasserstein-1 distance to exact samples over the rms posterior sd, and that
            between two sets of exact samples.
        coverage_50, coverage_90: posterior probability of the samples' central intervals.
    """
    rows = len(images)
    mean, std = images.mean(0), images.std(0)
    observed = exact.std <= exact.std.median()
    ideal, other = exact.draw(rows, 11), exact.draw(rows, 12)
    size = float(exact.std.square().mean().sqrt())
    low, high = tails(mode_widths(images, exact))

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
        "eigen_low": low,
        "eigen_high": high,
        "wasserstein": sliced_wasserstein(images, ideal) / size,
        "wasserstein_floor": sliced_wasserstein(other, ideal) / size,
        "coverage_50": covered(0.5),
        "coverage_90": covered(0.9),
    }


def ignorance(exact: Exact) -> dict[str, float]:
    """The figures of endless draws from the prior, which ignore the data: mean_error, std_ratio, eigen_low, eigen_high."""
    std, vectors = exact.modes
    variance = ((exact.prior @ vectors) * vectors).sum(0)
    low, high = tails(variance.sqrt() / std)
    return {
        "mean_error": float((exact.mean / exact.std).square().mean().sqrt()),
        "std_ratio": float((exact.prior.trace() / exact.covariance.trace()).sqrt()),
        "eigen_low": low,
        "eigen_high": high,
    }


def mode_widths(images: Tensor, exact: Exact) -> Tensor:
    """Standard deviation of samples (rows, pixels) over the posterior's along each of its eigenvectors, (pixels,)."""
    std, vectors = exact.modes
    return (images @ vectors).std(0) / std


def tails(widths: Tensor) -> tuple[float, float]:
    """What 5 % of the widths (pixels,) lie below, and what 5 % lie above."""
    return float(widths.quantile(TAIL)), float(widths.quantile(1 - TAIL))


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 200) -> float:
    """Mean Wasserstein-1 distance of equally many points (n, d) along random directions, float64."""
    directions = torch.randn(projections, a.shape[1], dtype=a.dtype, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=1, keepdim=True)
    return float(((a @ directions.T).sort(0).values - (b @ directions.T).sort(0).values).abs().mean())
