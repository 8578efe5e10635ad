"""fps against a transcription of its paper for pixels, each a singular mode of its own."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

import invsolve
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.testing.exact import exact_posterior
from tests.support.types import narrow


def test_fps() -> None:
    """Dou and Song 2024, Algorithm 2, with a sequence of y for each run and systematic resampling at each step."""
    size, steps, count, c, s, sigma_y = 6, 30, 4, 0.95, 2.0, 0.05
    mask = (torch.arange(size * size).view(size, size) % 3 > 0).double()
    operator = narrow(invsolve.LinearOperator, s * invsolve.operator("inpainting", mask=mask))
    problem = exact_posterior(operator, samples=2, size=size, dtype=torch.float64, sigma=sigma_y).problem
    levels = invsolve.strategy("fps", steps=steps).schedule(problem).tolist()
    chains = [(0, 0), (1, 0)]
    rng = ChainRandom(3, chains)
    start = rng.at(0)
    blank = problem.zeros()
    x = levels[0] * start.normal(blank[:, None].expand(-1, count, 1, size, size))
    y_noised = problem.y + levels[0] * s * start.normal(blank) * mask
    resampled = 0
    for k, (sigma, after) in enumerate(pairwise(levels), start=1):
        at, keep, fresh = rng.at(k), math.sqrt(1 - c) * after / sigma, c * after**2
        y_noised = problem.y + keep * (y_noised - problem.y) + math.sqrt(fresh) * s * at.normal(blank) * mask
        clean = problem.prior.denoise(x.flatten(0, 1), torch.tensor(sigma, dtype=x.dtype)).view_as(x)
        mean = clean + keep * (x - clean)
        # p(y' | x_sigma), what the weight p(y' | x') p(x' | x_sigma) / q(x') comes to for the best proposal.
        miss = (y_noised[:, None] - s * mean) * mask
        weight = (-miss.square().flatten(2).sum(2) / (2 * (sigma_y**2 + s**2 * fresh))).softmax(1)
        if after == 0:
            u = at.uniform().to(weight)
            chosen = [int((weight[row].cumsum(0) <= u[row]).sum()) for row in range(2)]
            x = torch.stack([clean[row, chosen[row]] for row in range(2)])
            break
        white = at.normal(x)
        variance = 1 / (1 / fresh + s**2 * mask / sigma_y**2)
        x = variance * (mean / fresh + s * mask * y_noised[:, None] / sigma_y**2) + variance.sqrt() * white
        u = at.uniform().to(weight)
        for row in range(2):
            marks = (torch.arange(count) + u[row]) / count
            ancestors = [int((weight[row].cumsum(0) <= mark).sum()) for mark in marks]
            resampled += ancestors != list(range(count))
            x[row] = x[row, ancestors].clone()
    ours = run_batch(
        problem, invsolve.strategy("fps", steps=steps, particles=count, c=c), ChainRandom(3, chains)
    ).images
    assert resampled > 5
    torch.testing.assert_close(ours, x, atol=1e-8, rtol=0)
