"""A posterior in closed form: a Gaussian field seen through a linear operator, whole or what was acquired of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator, matching
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.numerics.random import ChainRandom
from invsolve.testing.field import Field
from invsolve.testing.operators import dense


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
    """The posterior N(mean, covariance) of a flattened image given y; float64, on the CPU.

    Attributes:
        problem: the same posterior as strategies are handed it.
        truth: the image that was measured, (1, 1, N, N).
        mean: (pixels,).
        covariance: (pixels, pixels).
        prior: covariance of the prior, (pixels, pixels), whose mean is zero.
        matrix: of the operator, (real numbers measured, pixels).
        data: what was measured, (real numbers measured,).
        noise: standard deviation of each of them, a number or (real numbers measured,).
    """

    problem: Problem
    truth: Tensor
    mean: Tensor
    covariance: Tensor
    prior: Tensor
    matrix: Tensor
    data: Tensor
    noise: float | Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation of each pixel, (pixels,)."""
        return self.covariance.diagonal().clamp_min(0).sqrt()

    @cached_property
    def modes(self) -> tuple[Tensor, Tensor]:
        """Standard deviation along each eigenvector of the covariance (pixels,), rising, and the eigenvectors in columns."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values.clamp_min(0).sqrt(), vectors

    def draw(self, count: int, seed: int) -> Tensor:
        """Exact samples (count, pixels), float64."""
        std, vectors = self.modes
        return self.mean + (self._white(count, seed) * std) @ vectors.T

    def ignorant(self, count: int, seed: int) -> Tensor:
        """Samples of the prior (count, pixels), float64: what a sampler draws that ignores the data."""
        values, vectors = torch.linalg.eigh(self.prior)
        return (self._white(count, seed) * values.clamp_min(0).sqrt()) @ vectors.T

    def given(self, used: Tensor) -> Exact:
        """The posterior of a part of the data.

        Args:
            used: boolean, one measurement's shape (*measurement): the entries that count.
        """
        kept = used.expand(self.problem.y.shape[1:]).flatten().cpu()
        kept = kept.repeat_interleave(2) if self.problem.y.is_complex() else kept
        noise = self.noise[kept] if isinstance(self.noise, Tensor) else self.noise
        mean, covariance = _condition(self.prior, self.matrix[kept], self.data[kept], noise)
        return replace(
            self, mean=mean, covariance=covariance, matrix=self.matrix[kept], data=self.data[kept], noise=noise
        )

    def _white(self, count: int, seed: int) -> Tensor:
        return ChainRandom(seed, [(2, s) for s in range(count)]).normal(self.mean.expand(count, -1))


def _condition(prior: Tensor, matrix: Tensor, data: Tensor, noise: float | Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of N(0, prior) given data = matrix x + noise n."""
    variance = torch.as_tensor(noise, dtype=torch.float64).expand(len(matrix)) ** 2
    gram = matrix @ prior @ matrix.T + variance.diag()
    gain = torch.linalg.solve(gram, matrix @ prior).T
    return gain @ data, prior - gain @ matrix @ prior


def exact_posterior(
    operator: LinearOperator | None = None,
    sigma: float | Tensor = 0.05,
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
        sigma: noise standard deviation; a tensor broadcasts against one measurement.
        samples: rows of the problem, all with the same y.
        size: rows and columns of the image.
        pixel_std: of the prior.
        seed: of the image and of its noise.
        device, dtype: of the problem that strategies are handed.
    """
    operator = SomePixels(size) if operator is None else copy.deepcopy(operator)
    prior = Field(size, pixel_std)
    rng = ChainRandom(seed, [(0, 0)])
    truth = prior.sample(rng, torch.zeros(1, dtype=torch.float64))
    operator = operator.to(torch.float64)
    matrix, _ = dense(operator, operator.image_shape or (1, size, size))
    y = Gaussian(sigma).sample(operator(truth), rng)
    mask = operator.measured()
    y = y if mask is None else y * mask
    covariance = prior.covariance()
    data = (torch.view_as_real(y) if y.is_complex() else y).flatten()
    noise: float | Tensor = sigma
    if isinstance(sigma, Tensor):
        entries = sigma.double().expand(y.shape[1:]).flatten()
        noise = entries.repeat_interleave(2) if y.is_complex() else entries
    mean, posterior = _condition(covariance, matrix, data, noise)
    operator = operator.to(device=device, dtype=dtype)
    rows = y.to(device, dtype.to_complex() if y.is_complex() else dtype).expand(samples, *y.shape[1:])
    problem = make_problem(prior.to(device), operator, Gaussian(sigma), rows, (1, size, size), Scale(), samples)
    return Exact(problem, truth, mean, posterior, covariance, matrix, data, noise)
