"""Draws from a Gaussian around an image times the likelihood: exact where that is Gaussian, else by adjusted Langevin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.numerics.linalg import rows
from invsolve.numerics.random import ChainRandom

#: Acceptance rate at which Langevin proposals move fastest (Roberts & Rosenthal 1998).
BEST_RATE = 0.574


def is_exact(problem: Problem) -> bool:
    """Whether the likelihood is Gaussian in the image, so that `gaussian_draw` applies."""
    return isinstance(problem.operator, LinearOperator) and isinstance(problem.noise, Gaussian)


def draw(
    problem: Problem, centre: Tensor, variance: float, start: Tensor, pace: Tensor, iterations: int, rng: ChainRandom
) -> tuple[Tensor, Tensor]:
    """Draw from N(centre, variance I) p(y | A x): exactly where that is Gaussian, else by `langevin` from `start`.

    Returns:
        The image (B, C, *spatial), and the pace for the next call, (B,).
    """
    if is_exact(problem):
        return gaussian_draw(problem, centre, variance, rng), pace
    return langevin(problem, centre, variance, start, pace, iterations, rng)


def gaussian_draw(problem: Problem, centre: Tensor, variance: float, rng: ChainRandom) -> Tensor:
    """Draw from N(centre, variance I) N(y; A x, sigma_y^2 I): perturb both means, then solve (Papandreou & Yuille 2010)."""
    noise = torch.as_tensor(problem.sigma).to(problem.y.device, problem.y.real.dtype)
    around = centre + math.sqrt(variance) * rng.normal(centre)
    data = problem.y + noise * rng.normal(problem.y)
    return problem.prox(around, data, problem.rho(variance))


def langevin(
    problem: Problem, centre: Tensor, variance: float, start: Tensor, pace: Tensor, iterations: int, rng: ChainRandom
) -> tuple[Tensor, Tensor]:
    """Metropolis-adjusted Langevin steps towards N(centre, variance I) p(y | A x), every row for itself.

    Each row finds its own step length: shorter after a rejection, longer after an acceptance, so no curvature of the
    operator or the noise has to be known, and no step can diverge.

    Args:
        start: where the chain begins, (B, C, *spatial).
        pace: log of the step length over `variance`, (B,); zeros at first.
        iterations: proposals, each with one gradient of the likelihood.

    Returns:
        The last image, and the pace found.
    """
    x = start
    log, gradient = log_density(problem, x, centre, variance)
    for _ in range(iterations):
        length = rows(pace.exp(), x) * variance
        there = x + length * gradient + (2 * length).sqrt() * rng.normal(x)
        log_there, gradient_there = log_density(problem, there, centre, variance)
        way_back = (x - there - length * gradient_there).square()
        way_out = (there - x - length * gradient).square()
        odds = log_there - log + ((way_out - way_back) / (4 * length)).flatten(1).sum(1)
        odds = torch.where(odds.isfinite(), odds, -math.inf)
        taken = rng.uniform().to(odds).log() < odds
        x = torch.where(rows(taken, x), there, x)
        gradient = torch.where(rows(taken, x), gradient_there, gradient)
        log = torch.where(taken, log_there, log)
        rate = odds.clamp(max=0).exp()
        # A step that is orders of magnitude too long says nothing about by how much: shorten it fast.
        pace = (pace + torch.where(rate < 0.01, -1.0, 0.3 * (rate - BEST_RATE))).clamp(max=0.0)
    return x, pace


def log_density(problem: Problem, x: Tensor, centre: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """log of N(x; centre, variance I) p(y | A x) up to a constant, (B,), and its gradient (B, C, *spatial)."""
    with torch.enable_grad():
        if isinstance(problem.operator, LinearOperator):
            predicted = problem.operator(x).requires_grad_()
            likelihood = problem.log_likelihood(predicted)
            (slope,) = torch.autograd.grad(likelihood.sum(), predicted)
            gradient = problem.operator.adjoint(slope)
        else:
            x = x.detach().requires_grad_()
            likelihood = problem.log_likelihood(problem.operator(x))
            (gradient,) = torch.autograd.grad(likelihood.sum(), x)
    away = x.detach() - centre
    return likelihood.detach() - away.square().flatten(1).sum(1) / (2 * variance), gradient - away / variance
