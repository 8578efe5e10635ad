"""Every other pixel of an 8 x 8 image: a problem small enough for dense transcriptions, and what they are written with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.numerics.random import ChainRandom
from invsolve.testing.exact import exact_posterior
from invsolve.testing.operators import dense

CHAINS = [(0, 0), (0, 1)]
SIGMA_Y = 0.05


def half_of_the_pixels() -> Problem:
    return exact_posterior(samples=2, size=8, dtype=torch.float64, sigma=SIGMA_Y).problem


def matrix_of(problem: Problem) -> Tensor:
    return dense(problem.linear, problem.image_shape)[0].double()


def wiener(problem: Problem, sigma: float) -> Tensor:
    """D(x, sigma) of the Gaussian prior as a matrix, x in rows."""
    size = math.prod(problem.image_shape)
    units = torch.eye(size, dtype=torch.float64).view(size, *problem.image_shape)
    return problem.prior.denoise(units, torch.tensor(sigma, dtype=torch.float64)).flatten(1)


def noise(problem: Problem) -> Tensor:
    return ChainRandom(0, CHAINS).normal(problem.zeros())
