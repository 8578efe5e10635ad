"""Particles of sequential Monte Carlo: log weights, effective number, resampling; every row of a batch for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from invsolve.contracts.noise import Gaussian
from invsolve.contracts.problem import Problem
from invsolve.contracts.whitening import Weighted
from invsolve.numerics.random import ChainRandom


def for_rows(problem: Problem, index: Tensor) -> Problem:
    """The problem of these rows (each may come several times); its calls count in the same place."""
    noise = problem.noise
    if isinstance(noise, Gaussian) and isinstance(noise.sigma, Tensor) and noise.sigma.ndim and len(noise.sigma) > 1:
        noise = Gaussian(noise.sigma[index.to(noise.sigma.device)])
    elif not isinstance(noise, Gaussian):
        noise = noise.rows(index.tolist(), problem.y.ndim)
    operator = problem.operator.rows(index) if isinstance(problem.operator, Weighted) else problem.operator
    some = replace(problem, operator=operator, y=problem.y[index], noise=noise, shift=None)
    some.calls = problem.calls
    return some


def over_particles(
    problem: Problem, x: Tensor, work: Callable[[Problem, Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Apply `work` to the particles x (B, K, ...) in parts, so that memory stays that of a batch without particles.

    Args:
        work: takes the problem and the images of some rows, (R, ...); returns tensors (R, ...).

    Returns:
        What `work` returns, (B, K, ...) each.
    """
    batch, count = x.shape[:2]
    flat, owner = x.flatten(0, 1), torch.arange(batch, device=x.device).repeat_interleave(count)
    # Fewer than 16 rows at once would leave a GPU idle.
    size = max(batch, 16)
    parts = []
    for first in range(0, batch * count, size):
        index = owner[first : first + size]
        some = for_rows(problem, index)
        parts.append(work(some, flat[first : first + size]))
        problem.count_unconverged(torch.zeros_like(problem.unconverged()).index_add(0, index, some.unconverged()))
    return tuple(torch.cat(p).view(batch, count, *p[0].shape[1:]) for p in zip(*parts, strict=True))


def effective(log_weight: Tensor) -> Tensor:
    """Effective number of particles, 1 / sum w^2 with w normalised; (B, K) -> (B,)."""
    return (-torch.logsumexp(2 * log_weight.log_softmax(1), 1)).exp()


def systematic(log_weight: Tensor, uniform: Tensor) -> Tensor:
    """Ancestors (B, K) by systematic resampling: particle i is taken floor or ceil of K w_i times, K w_i on average.

    Args:
        log_weight: (B, K), up to a constant a row.
        uniform: one number in [0, 1) a row, (B,).
    """
    count = log_weight.shape[1]
    marks = (torch.arange(count, device=log_weight.device) + uniform.to(log_weight.device)[:, None]) / count
    return _at(log_weight, marks)


def one(log_weight: Tensor, uniform: Tensor) -> Tensor:
    """The index of one particle a row, drawn by the weights; (B, K) -> (B, 1)."""
    return _at(log_weight, uniform.to(log_weight.device)[:, None])


def _at(log_weight: Tensor, marks: Tensor) -> Tensor:
    """The particles whose part of the cumulated weights holds the marks (B, L) in [0, 1)."""
    edges = log_weight.double().softmax(1).cumsum(1)
    index = torch.searchsorted(edges, marks * edges[:, -1:], right=True)
    return index.clamp(max=log_weight.shape[1] - 1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """values (B, K, ...) at index (B, L): (B, L, ...)."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]


def resample_where_needed(log_weight: Tensor, threshold: float, rng: ChainRandom) -> tuple[Tensor, Tensor]:
    """Ancestors (B, K) and new log weights: resampled in the rows whose effective number is below `threshold` K."""
    needed = (effective(log_weight) < threshold * log_weight.shape[1])[:, None]
    stay = torch.arange(log_weight.shape[1], device=log_weight.device).expand_as(log_weight)
    ancestors = torch.where(needed, systematic(log_weight, rng.uniform()), stay)
    return ancestors, torch.where(needed, torch.zeros_like(log_weight), log_weight)


def reverse_kernel(
    x: Tensor, estimate: Tensor, sigma: float | Tensor, after: float | Tensor, unknown: float
) -> tuple[Tensor, float | Tensor]:
    """Mean and variance of x at the level `after` given x at `sigma`, the images being white around `estimate`.

    Args:
        unknown: mean squared error of the estimate. With it the variance is the best that an isotropic Gaussian can have
            (Bao 2022, analytic-DPM); without it steps of finite length come out too narrow.
    """
    ratio = (after / sigma) ** 2
    return ratio * x + (1 - ratio) * estimate, after**2 * (1 - ratio) + (1 - ratio) ** 2 * unknown
