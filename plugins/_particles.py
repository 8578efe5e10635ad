"""Particles of sequential Monte Carlo: log weights, effective number, resampling; every row of a batch for itself."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from invsolve.contracts.noise import Gaussian
from invsolve.contracts.problem import Problem
from invsolve.contracts.random import ChainRandom


def for_particles(problem: Problem, count: int) -> Problem:
    """The linear Gaussian problem with every row `count` times in succession; its calls count in the same place."""
    noise = problem.noise
    if isinstance(noise, Gaussian) and isinstance(noise.sigma, Tensor) and noise.sigma.ndim:
        noise = Gaussian(noise.sigma.repeat_interleave(count, 0))
    many = replace(problem, y=problem.y.repeat_interleave(count, 0), noise=noise, shift=None)
    many.calls = problem.calls
    return many


def effective(log_weight: Tensor) -> Tensor:
    """Effective number of particles 1 / sum w^2, w normalised; (B, K) -> (B,)."""
    return (-torch.logsumexp(2 * log_weight.log_softmax(1), 1)).exp()


def systematic(log_weight: Tensor, uniform: Tensor) -> Tensor:
    """Ancestors (B, K) by systematic resampling: particle i is taken floor or ceil of K w_i times, K w_i on average.

    Args:
        log_weight: (B, K), up to a constant a row.
        uniform: one number in [0, 1) a row, (B,).
    """
    count = log_weight.shape[1]
    edges = log_weight.double().softmax(1).cumsum(1)
    edges = edges / edges[:, -1:]
    marks = (torch.arange(count, device=edges.device) + uniform.to(edges)[:, None]) / count
    return torch.searchsorted(edges, marks, right=True).clamp(max=count - 1)


def one(log_weight: Tensor, uniform: Tensor) -> Tensor:
    """The index of one particle a row, drawn by the weights; (B, K) -> (B, 1)."""
    edges = log_weight.double().softmax(1).cumsum(1)
    marks = uniform.to(edges)[:, None] * edges[:, -1:]
    return torch.searchsorted(edges, marks, right=True).clamp(max=log_weight.shape[1] - 1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """values (B, K, ...) at index (B, L): (B, L, ...)."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]


def resample_where_needed(log_weight: Tensor, threshold: float, rng: ChainRandom) -> tuple[Tensor, Tensor]:
    """Ancestors (B, K) and new log weights: resampled in the rows whose effective number is below `threshold` K."""
    needed = (effective(log_weight) < threshold * log_weight.shape[1])[:, None]
    stay = torch.arange(log_weight.shape[1], device=log_weight.device).expand_as(log_weight)
    ancestors = torch.where(needed, systematic(log_weight, rng.uniform()), stay)
    return ancestors, torch.where(needed, torch.zeros_like(log_weight), log_weight)
