"""Strategies of flow priors, and rlsd: whole runs against transcriptions of their papers in their own coordinates."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.problem import Problem
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies.rlsd import crowding
from invsolve.testing.exact import exact_posterior
from invsolve.testing.operators import dense
from tests.support.types import narrow

CHAINS = [(0, 0), (0, 1), (1, 0)]
SIGMA_Y = 0.05


@pytest.fixture(scope="module")
def problem() -> Problem:
    """An 8 x 8 image, blurred and twice as bright."""
    kernel = torch.tensor([[0.0, 0.2, 0.1], [0.4, 1.0, 0.1], [0.1, 0.1, 0.0]])
    blur = narrow(invsolve.LinearOperator, invsolve.operator("blur", kernel=kernel))
    return exact_posterior(blur, samples=3, size=8, dtype=torch.float64, sigma=SIGMA_Y).problem


def matrix_of(problem: Problem) -> Tensor:
    """Of the operator divided by its norm."""
    return dense(problem.linear, problem.image_shape)[0].double() / problem.operator_norm()


def data_of(problem: Problem) -> Tensor:
    return problem.y.flatten(1) / problem.operator_norm()


def denoise(problem: Problem, flat: Tensor, sigma: float) -> Tensor:
    x = flat.view(-1, *problem.image_shape)
    return problem.prior.denoise(x, torch.tensor(sigma, dtype=x.dtype)).flatten(1)


def velocity(problem: Problem, x: Tensor, t: float) -> Tensor:
    """n - x0 that a flow's network expects of x = (1 - t) x0 + t n."""
    return (x - denoise(problem, x / (1 - t), t / (1 - t))) / t


def white(at: ChainRandom, problem: Problem) -> Tensor:
    return at.normal(problem.zeros()).flatten(1)


def run(problem: Problem, name: str, **given: object) -> Tensor:
    return run_batch(problem, invsolve.strategy(name, **given), ChainRandom(3, CHAINS)).images.flatten(1)


def test_pnp_flow(problem: Problem) -> None:
    """Martin 2025, Algorithm 3: gradient step, interpolation with noise, x + (1 - t) v of it, averaged; t = 0 is all noise."""
    a, y, steps, alpha = matrix_of(problem), data_of(problem), 12, 0.5
    rng = ChainRandom(3, CHAINS)
    x = torch.zeros(3, a.shape[1], dtype=a.dtype)
    for k in range(steps):
        at, t = rng.at(k + 1), k / steps
        z = x - (1 - t) ** alpha * (x @ a.T - y) @ a
        # The prior's largest level stands for the flow's pure noise.
        t = max(t, 1 / (1 + problem.prior.sigma_max))
        total = torch.zeros_like(x)
        for _ in range(5):
            mixed = (1 - t) * white(at, problem) + t * z
            # Their time runs from noise to images, so their velocity is the other way.
            total = total + mixed - (1 - t) * velocity(problem, mixed, 1 - t)
        x = total / 5
    torch.testing.assert_close(run(problem, "pnp-flow", steps=steps, alpha=alpha), x, atol=1e-9, rtol=0)


@pytest.mark.parametrize("published", [False, True])
def test_ot_ode(problem: Problem, published: bool) -> None:
    """Pokle 2024, Algorithm 1: Euler in time of v + (1 - t) / t r_t^2-guidance by a vector-Jacobian product, dense."""
    norm, y, steps = problem.operator_norm(), problem.y.flatten(1), 20
    a = matrix_of(problem) * norm
    noise = SIGMA_Y**2 * torch.eye(len(a), dtype=a.dtype)
    begin = 0.1
    times = [begin + (1 - begin) * k / steps for k in range(steps)]
    rng = ChainRandom(3, CHAINS)
    x = begin * y @ a / norm**2 + (1 - begin) * white(rng.at(0), problem)
    for t, after in pairwise([*times, 1.0]):
        sigma = (1 - t) / t
        unknown = sigma**2 / (1 + sigma**2) if published else problem.prior.error(sigma)
        x = x.detach().requires_grad_()
        clean = denoise(problem, x / t, sigma)
        solved = torch.linalg.solve(unknown * a @ a.T + noise, (y - clean.detach() @ a.T).T).T
        (product,) = torch.autograd.grad(clean, x, solved @ a)
        # d x1hat / d x is t times that of D; gamma_t = 1.
        guided = (clean.detach() - x.detach()) / (1 - t) + (1 - t) / t * product
        x = x.detach() + (after - t) * guided
    given = {"preset": "published", "steps": steps} if published else {"steps": steps}
    torch.testing.assert_close(run(problem, "ot-ode", **given), x, atol=1e-7, rtol=0)


def test_flowdps(problem: Problem) -> None:
    """Kim 2025, Algorithm 1, in the flow's coordinates: clean and noise estimates from v, mixed anew at the next time."""
    a, y, steps = matrix_of(problem), data_of(problem), 12
    low, high = (s / (1 + s) for s in (problem.prior.sigma_min, problem.prior.sigma_max))
    times = [*np.linspace(high, low, steps), 0.0]
    rng = ChainRandom(3, CHAINS)
    x = times[0] * white(rng.at(0), problem)
    for k, (t, after) in enumerate(pairwise(times), start=1):
        v = velocity(problem, x, t)
        clean, noise = x - t * v, x + (1 - t) * v
        moved = clean
        for _ in range(3):
            moved = moved.detach().requires_grad_()
            loss = ((moved @ a.T - y) @ a).square().sum() / 2
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() - 1.9 * gradient
        clean = (1 - t) * clean + t * moved
        # 1 / (1 + sigma') is 1 - t'.
        noise = math.sqrt(after) * noise + math.sqrt(1 - after) * white(rng.at(k), problem)
        x = (1 - after) * clean + after * noise
    torch.testing.assert_close(run(problem, "flowdps", steps=steps), x, atol=1e-8, rtol=0)


def test_rlsd(problem: Problem) -> None:
    """Zilberstein 2025, Algorithm 1, of images instead of latents: two Adams, and the score of a Gaussian kernel."""
    a, y, steps, gamma, weight, rho = matrix_of(problem), data_of(problem), 15, 1.5, 0.1, 0.2
    two = exact_posterior(problem.linear, samples=2, size=8, dtype=torch.float64, sigma=SIGMA_Y).problem
    y, chains = y[:1].expand(2, -1), [(0, 0), (0, 1)]
    levels = invsolve.strategy("rlsd", steps=steps).schedule(two).tolist()
    rng = ChainRandom(3, chains)
    start = two.baseline().flatten(1)
    x, w = start.clone().requires_grad_(), start.clone().requires_grad_()
    adams = [torch.optim.Adam([v], lr=0.2, betas=(0.9, 0.99)) for v in (x, w)]
    for k, sigma in enumerate(levels[:-1], start=1):
        noise = white(rng.at(k), two)
        eps = (w.detach() + sigma * noise - denoise(two, w.detach() + sigma * noise, sigma)) / sigma
        v = w.detach().requires_grad_()
        square = (v[0] - v[1]).detach().square().sum()
        width = square.clamp_min(1e-12) / math.log(2)
        kernel = torch.exp(-torch.cdist(v, v.detach()).square() / width)
        (score,) = torch.autograd.grad(kernel.sum(1).log().sum(), v)
        # Particles that coincide but for rounding, as at first, are not driven apart in the direction of their rounding.
        score = torch.where(square > 1e-10 * 64, score, 0.0)
        target = eps - noise + gamma * sigma / math.sqrt(1 + sigma**2) * score
        loss_w = ((x.detach() - w).square() / 2 + weight / rho * sigma * target * w).mean(1).sum()
        loss_x = ((x @ a.T - y).square() / 2).mean(1).sum() + rho * ((x - w.detach()).square() / 2).mean(1).sum()
        for adam, loss in zip(adams, (loss_x, loss_w), strict=True):
            adam.zero_grad()
            loss.backward()
        for adam in adams:
            adam.step()
    two.samples_per_item = 2
    strategy = invsolve.strategy("rlsd", steps=steps, gamma=gamma, weight=weight, coupling=rho)
    ours = run_batch(two, strategy, ChainRandom(3, chains)).images.flatten(1)
    torch.testing.assert_close(ours, x.detach(), atol=1e-6, rtol=0)
    assert float((ours[0] - ours[1]).norm()) > 0.1


def test_rlsds_particles_are_the_further_apart_the_more_they_repel() -> None:
    problem = exact_posterior(samples=6, size=8, dtype=torch.float64, sigma=SIGMA_Y).problem
    spreads = []
    for gamma in (0.0, 1.0, 10.0):
        strategy = invsolve.strategy("rlsd", steps=100, gamma=gamma)
        images = run_batch(problem, strategy, ChainRandom(0, [(0, s) for s in range(6)])).images
        spreads.append(float(images.std(0).mean()))
    assert spreads[0] < spreads[1] < spreads[2]


def test_particles_of_an_item_are_crowded_by_one_another_alone() -> None:
    w = torch.randn(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = crowding(w, 3)
    torch.testing.assert_close(together[:3], crowding(w[:3], 3))
    torch.testing.assert_close(together[3:], crowding(w[3:], 3))
    assert float(crowding(w, 1).abs().max()) == 0
