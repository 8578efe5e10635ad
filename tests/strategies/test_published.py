"""The preset `published` of a strategy, whole runs of it, against transcriptions of its paper's algorithm."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import registry
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.contracts.through_plane import AlongRows
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.testing.exact import exact_posterior

CHAINS = [(0, 0), (0, 1), (1, 0)]
SIGMA_Y = 0.05
#: Levels of the DDPM schedule, from high to low, and alpha_bar of each.
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[::-1]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Half of the pixels of an 8 x 8 image; a prior that knows every level of the DDPM schedule."""
    posed = exact_posterior(samples=3, size=8, dtype=torch.float64, sigma=SIGMA_Y).problem
    posed.prior.sigma_min, posed.prior.sigma_max = 0.002, 400.0
    return posed


def published(name: str, **given: int) -> Strategy:
    return invsolve.strategy(name, preset="published", **given)


def denoise(problem: Problem, x: Tensor, sigma: float) -> Tensor:
    return problem.prior.denoise(x, torch.tensor(sigma, dtype=x.dtype))


def mask_of(problem: Problem) -> Tensor:
    mask = problem.operator.measured()
    assert mask is not None
    return mask.double()


def noise_prediction(problem: Problem, x: Tensor, bar: float) -> Tensor:
    """eps of a network in variance-preserving coordinates, x = sqrt(bar) x0 + sqrt(1 - bar) n."""
    clean = denoise(problem, x / math.sqrt(bar), math.sqrt((1 - bar) / bar))
    return (x - math.sqrt(bar) * clean) / math.sqrt(1 - bar)


def run(problem: Problem, strategy: Strategy) -> Tensor:
    return run_batch(problem, strategy, ChainRandom(3, CHAINS)).images


def test_diffpir(problem: Problem) -> None:
    """Zhu 2023, Algorithm 1, in variance-preserving coordinates; for pixels the proximal step is a weighted mean."""
    steps, weight, zeta, mask = 100, 1.0, 0.1, mask_of(problem)
    index = [int(i) for i in np.sqrt(np.linspace(0, 1000**2, steps))]
    index[-1] -= 1
    rng = ChainRandom(3, CHAINS)
    x = None
    for k, i in enumerate(index):
        bar = ALPHA_BAR[i]
        if x is None:
            # From pure noise of the first level: the paper's x_T, whose part of the image is below 1 %.
            x = math.sqrt(1 - bar) * rng.at(0).normal(problem.zeros())
        clean = (x - math.sqrt(1 - bar) * noise_prediction(problem, x, bar)) / math.sqrt(bar)
        rho = weight * SIGMA_Y**2 / ((1 - bar) / bar)
        clean = torch.where(mask > 0, (problem.y + rho * clean) / (1 + rho), clean)
        eps = (x - math.sqrt(bar) * clean) / math.sqrt(1 - bar)
        after = ALPHA_BAR[index[k + 1]] if k + 1 < steps else 1.0
        fresh = rng.at(k + 1).normal(problem.zeros())
        x = math.sqrt(after) * clean
        x = x + math.sqrt(1 - after) * (math.sqrt(1 - zeta) * eps + math.sqrt(zeta) * fresh)
    assert x is not None
    torch.testing.assert_close(run(problem, published("diffpir")), x, atol=1e-9, rtol=0)


def test_dds(problem: Problem) -> None:
    """Chung 2024, Algorithm 1 (VP, noisy data): M conjugate-gradient steps from each denoised image, then DDIM."""
    steps, solves, gamma, eta, mask = 50, 5, 1.0, 0.85, mask_of(problem)
    # Equally spaced times, which fall between two of the 1000: the level between theirs.
    log_sigma = 0.5 * np.log((1 - ALPHA_BAR) / ALPHA_BAR)
    levels = np.exp(np.interp(np.linspace(0, 999, steps), np.arange(1000), log_sigma))
    bars = [*(1 / (1 + levels**2)), 1.0]
    rng = ChainRandom(3, CHAINS)
    x = math.sqrt(1 - bars[0]) * rng.at(0).normal(problem.zeros())
    for k, (bar, after) in enumerate(pairwise(bars), start=1):
        eps = noise_prediction(problem, x, bar)
        start = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
        clean = conjugate_gradients(mask, gamma, start + gamma * mask * problem.y, start, solves)
        fresh = rng.at(k).normal(problem.zeros())
        x = math.sqrt(after) * clean + math.sqrt(1 - after) * (math.sqrt(1 - eta**2) * eps + eta * fresh)
    # The power iteration finds the operator's norm, 1, to 1e-4.
    torch.testing.assert_close(run(problem, published("dds")), x, atol=2e-4, rtol=0)


def conjugate_gradients(mask: Tensor, gamma: float, b: Tensor, x: Tensor, count: int) -> Tensor:
    """Steps towards (I + gamma A'A) x = b, A a mask, from x; each row by itself."""

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1).view(-1, 1, 1, 1)

    r = b - x - gamma * mask * x
    p, square = r, dot(r, r)
    for _ in range(count):
        if float(square.max()) < 1e-24:
            break
        product = p + gamma * mask * p
        step = square / dot(p, product)
        x, r = x + step * p, r - step * product
        new = dot(r, r)
        p, square = r + new / square * p, new
    return x


def test_pnp_dm(problem: Problem) -> None:
    """Wu 2024, Algorithms 1 and 2, with the schedule and the reverse equation of its code (mode edm_sde)."""
    steps, inner, mask = 12, 100, mask_of(problem)
    ramp = np.arange(inner) / (inner - 1)
    grid = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    rng = ChainRandom(3, CHAINS)
    x = problem.zeros()
    for k in range(steps):
        at, rho = rng.at(k + 1), max(10 * 0.9**k, 0.3)
        # The likelihood step, exact for a mask: a Gaussian of precision mask / sigma_y^2 + 1 / rho^2, drawn by perturbing both.
        around = x + rho * at.normal(x)
        data = problem.y + SIGMA_Y * at.normal(problem.y)
        z = torch.where(mask > 0, (data / SIGMA_Y**2 + around / rho**2) / (1 / SIGMA_Y**2 + 1 / rho**2), around)
        below = [float(level) for level in grid if level < rho] + [0.0]
        x = z
        for level, after in pairwise(below):
            slope = 2 / level * x - 2 / level * denoise(problem, x, level)
            x = x + (after - level) * slope
            if after > 0:
                x = x + math.sqrt(level - after) * math.sqrt(2 * level) * at.normal(x)
    torch.testing.assert_close(run(problem, published("pnp-dm", steps=steps)), x, atol=1e-8, rtol=0)


def test_red_diff(problem: Problem) -> None:
    """Mardani 2024, Algorithm 1, with the constants of its code: Adam, lambda 0.25, weight sigma."""
    steps = 60
    levels = published("red-diff", steps=steps).schedule(problem).tolist()
    rng = ChainRandom(3, CHAINS)
    mu = problem.linear.baseline(problem.y, problem.sigma).detach().requires_grad_()
    optimiser = torch.optim.Adam([mu], lr=0.1, betas=(0.9, 0.99))
    for k, sigma in enumerate(levels[:-1], start=1):
        bar, noise = 1 / (1 + sigma**2), rng.at(k).normal(problem.zeros())
        eps = noise_prediction(problem, math.sqrt(bar) * mu.detach() + math.sqrt(1 - bar) * noise, bar)
        residual = (problem.y - problem.operator(mu)).flatten(1)
        loss = 0.5 * residual.square().sum(1) / problem.dof()
        loss = loss + 0.25 * math.sqrt((1 - bar) / bar) * ((eps - noise) * mu).flatten(1).mean(1)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    torch.testing.assert_close(run(problem, published("red-diff", steps=steps)), mu.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_score_sde_takes_pixels_as_if_they_were_exact(sigma_y: float, problem: Problem) -> None:
    """Song 2021, Algorithm 2 and appendix I: after each half-step the known pixels are y noised to the level of x."""
    steps, snr, mask = 60, 0.16, mask_of(problem)
    exact = make_problem(
        problem.known, problem.operator, invsolve.Gaussian(sigma_y), problem.y, problem.image_shape, Scale()
    )
    levels = [*np.geomspace(problem.prior.sigma_max, problem.prior.sigma_min, steps), 0.0]
    rng = ChainRandom(3, CHAINS)

    def replaced(x: Tensor, sigma: float, at: ChainRandom) -> Tensor:
        return torch.where(mask > 0, problem.y + sigma * at.normal(x), x)

    start = rng.at(0)
    x = replaced(levels[0] * start.normal(problem.zeros()), levels[0], start)
    for k, (sigma, after) in enumerate(pairwise(levels), start=1):
        at = rng.at(k)
        step = sigma**2 - after**2
        mean = x + step * (denoise(problem, x, sigma) - x) / sigma**2
        if after == 0:
            x = torch.where(mask > 0, problem.y, mean)
            break
        x = replaced(mean + math.sqrt(step) * at.normal(x), after, at)
        # 2 (snr |n| / |score|)^2 with the squares that are expected: d, and d (sigma^2 - V) / sigma^4, V the error of D.
        length = 2 * snr**2 * after**4 / max(after**2 - problem.prior.error(after), 0.1 * after**2)
        score, noise = (denoise(problem, x, after) - x) / after**2, at.normal(x)
        x = replaced(x + length * score + math.sqrt(2 * length) * noise, after, at)
    # Noise of zero is solved to single precision.
    torch.testing.assert_close(run(exact, published("score-sde", steps=steps)), x, atol=1e-6, rtol=0)


def test_mbir(problem: Problem) -> None:
    """Chung 2023, Algorithm 2: predictor, corrector, one ADMM sweep of one CG step a level, its variables kept; three slices."""
    steps, snr, weight, penalty, mask = 40, 0.16, 2e-4, 0.025, mask_of(problem)
    volume = replace(problem, through_plane=AlongRows())
    levels = [*np.geomspace(problem.prior.sigma_max, problem.prior.sigma_min, steps), 0.0]
    # Differences to the next slice, zero at the last.
    forward = torch.tensor([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)

    def across(matrix: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("ij,jckl->ickl", matrix, v)

    rng = ChainRandom(3, CHAINS)
    z = levels[0] * rng.at(0).normal(problem.zeros())
    d, u = torch.zeros_like(z), torch.zeros_like(z)
    for k, (sigma, after) in enumerate(pairwise(levels), start=1):
        at = rng.at(k)
        score = (denoise(problem, z, sigma) - z) / sigma**2
        z = z + (sigma**2 - after**2) * score
        if after > 0:
            z = z + math.sqrt(sigma**2 - after**2) * at.normal(z)
            score, noise = (denoise(problem, z, after) - z) / after**2, at.normal(z)
            for row in range(3):
                length = 2 * (snr * float(noise[row].norm()) / float(score[row].norm())) ** 2
                z[row] += length * score[row] + math.sqrt(2 * length) * noise[row]

        def system(v: Tensor) -> Tensor:
            return mask * v + penalty * across(forward.T @ forward, v)

        rest = mask * problem.y + penalty * across(forward.T, d - u) - system(z)
        z = z + float((rest * rest).sum() / (rest * system(rest)).sum()) * rest
        reached = across(forward, z) + u
        d = reached.sign() * (reached.abs() - weight / penalty).clamp_min(0)
        u = reached - d
    # The power iteration finds the operator's norm, 1, to 1e-4.
    torch.testing.assert_close(run(volume, published("mbir", steps=steps)), z, atol=3e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("diffpir", 100), ("dds", 50), ("pnp-dm", 100), ("red-diff", 1000), ("mbir", 2000), ("score-sde", 1000)],
)
def test_the_preset_has_the_papers_number_of_steps(name: str, steps: int, problem: Problem) -> None:
    assert len(published(name).schedule(problem)) == steps + 1


def test_what_is_given_beside_a_preset_wins_and_an_unknown_preset_is_one_line() -> None:
    assert published("diffpir", steps=7) == invsolve.strategy(
        "diffpir", steps=7, zeta=0.1, start=math.inf, grid="quadratic", variance="paper"
    )
    with pytest.raises(invsolve.UserError, match=r"'diffpir' has no preset 'publishd'\. Did you mean 'published'\?"):
        invsolve.strategy("diffpir", preset="publishd")
    with pytest.raises(invsolve.UserError, match="'dps' has no parameter 'preset'"):
        invsolve.strategy("dps", preset="published")


@pytest.mark.parametrize("name", registry.available("strategy"))
def test_every_preset_can_be_made(name: str) -> None:
    for preset in getattr(registry.find("strategy", name), "presets", {}):
        invsolve.strategy(name, preset=preset)
