"""Gibbs samplers between noise levels: mgdm and denoising-mcmc, whole runs against transcriptions of their papers."""

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
from invsolve.numerics.random import SHARED, ChainRandom
from invsolve.testing.exact import exact_posterior

CHAINS = [(0, 0), (0, 1), (1, 0)]
SIGMA_Y = 0.05


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Half of the pixels of an 8 x 8 image; a prior that knows every level of the DDPM schedule."""
    posed = exact_posterior(samples=3, size=8, dtype=torch.float64, sigma=SIGMA_Y).problem
    posed.prior.sigma_min, posed.prior.sigma_max = 0.002, 400.0
    return posed


class Process:
    """Variance-preserving diffusion at the 1000 times of the DDPM schedule, time 0 the least noise."""

    def __init__(self, problem: Problem) -> None:
        self.bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        self.problem = problem

    def clean(self, x: Tensor, bar: float) -> Tensor:
        """x0 predicted from x = sqrt(bar) x0 + sqrt(1 - bar) n."""
        sigma = math.sqrt((1 - bar) / bar)
        return self.problem.prior.denoise(x / math.sqrt(bar), torch.tensor(sigma, dtype=x.dtype))

    @staticmethod
    def bridge(low: Tensor, high: Tensor, s: float, t: float, ell: float) -> tuple[Tensor, float]:
        """Mean and standard deviation of x_t given x_s = low and x_ell = high, by the cumulated products at these times."""
        s_to_t, t_to_ell, s_to_ell = t / s, ell / t, ell / s
        std = math.sqrt((1 - t_to_ell) * (1 - s_to_t) / (1 - s_to_ell))
        of_high = math.sqrt((1 - s_to_t - std**2) / (1 - s_to_ell))
        return of_high * high + (math.sqrt(s_to_t) - of_high * math.sqrt(s_to_ell)) * low, std


def test_mgdm(problem: Problem) -> None:
    """Janati 2025, Algorithms 1 to 3, with the settings of its code; torch's own Adam fits the Gaussian."""
    steps, late_from, least = 8, 8 * 70 / 97, 10
    process, rng = Process(problem), ChainRandom(3, CHAINS)
    mask, y = problem.operator.measured(), problem.y
    assert mask is not None
    log_sigma = 0.5 * np.log((1 - process.bar) / process.bar)
    grid = np.exp(np.interp(np.linspace(999, 0, steps + 3), np.arange(1000), log_sigma))
    bars = 1 / (1 + grid**2)
    x_above = math.sqrt(1 - bars[0]) * rng.at(0).normal(problem.zeros())
    clean = process.clean(x_above, bars[0])
    drawn = 0
    for k in range(1, steps + 1):
        above, here, at = bars[k - 1], bars[k], rng.at(k)
        below = round(999 * (1 - (k + 1) / (steps + 2)))
        late = k > late_from
        tau = below
        if not late and below > least:
            uniform = ChainRandom(3, [(0, SHARED)]).at(k).uniform().item()
            tau, drawn = least + int(uniform * (below - least)), drawn + 1
        bar, fits, rate = process.bar[tau], 20 if late else 5, 0.01 if k <= 11 else 0.03
        mean, std = process.bridge(clean, x_above, 1.0, here, above)
        x = mean + std * rng.at(k).normal(mean)
        prior_mean, prior_std = process.bridge(clean, x, 1.0, bar, here)
        vmean = prior_mean.clone().requires_grad_()
        vlog = torch.full_like(prior_mean, math.log(prior_std)).requires_grad_()
        optimiser = torch.optim.Adam([vmean, vlog], lr=rate)
        for _ in range(fits):
            optimiser.zero_grad()
            sample = vmean + vlog.exp() * at.normal(x)
            away = y - mask * process.clean(sample, bar)
            loss = away.square().sum() / (2 * SIGMA_Y**2) + 0.5 * ((sample - prior_mean) / prior_std).square().sum()
            (loss - vlog.sum()).backward()
            optimiser.step()
        middle = (vmean + vlog.exp() * at.normal(x)).detach()
        times = [int(t) for t in np.linspace(tau, 0, min(20, tau + 1))]
        clean = middle
        for bar_t, bar_s in pairwise([*process.bar[times[:-1]], 1.0]):
            # DDIM with eta = 1.
            x0 = process.clean(clean, bar_t)
            eps = (clean - math.sqrt(bar_t) * x0) / math.sqrt(1 - bar_t)
            noise = math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
            clean = math.sqrt(bar_s) * x0 + math.sqrt(max(1 - bar_s - noise**2, 0)) * eps
            clean = clean + noise * at.normal(x) if bar_s < 1 else clean
        mean, std = process.bridge(middle, x_above, bar, here, above)
        x_above = mean + std * at.normal(mean)
    assert drawn > 3
    ours = run_batch(problem, invsolve.strategy("mgdm", steps=steps), ChainRandom(3, CHAINS)).images
    torch.testing.assert_close(ours, clean, atol=1e-6, rtol=0)


def test_denoising_mcmc(problem: Problem) -> None:
    """Kim and Ye 2023, Denoising Langevin Gibbs and Karras' Algorithm 1 from each chain's own level, in NumPy."""
    chain, stops, eta, prior = 6, 5, 0.2, problem.prior
    mask, y, start = problem.operator.measured(), problem.y.numpy(), problem.linear.baseline(problem.y, SIGMA_Y).numpy()
    assert mask is not None
    seen = mask.numpy()
    known = np.geomspace(prior.sigma_min, prior.sigma_max, 64)
    errors = np.log([prior.error(level) for level in known])

    def error(level: float) -> float:
        return float(np.exp(np.interp(np.log(level), np.log(known), errors)))

    def denoised(x: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """D; and the pixels measured moved to the mean of y and D by their precisions."""
        clean = prior.denoise(torch.from_numpy(x)[None], torch.tensor(level, dtype=torch.float64))[0].numpy()
        weight = error(level) / (error(level) + SIGMA_Y**2)
        return clean, clean + seen.reshape(x.shape) * weight * (y[0] - clean)

    rng, images = ChainRandom(3, CHAINS), []
    first = rng.at(0).normal(problem.zeros()).numpy()
    noise = [rng.at(k).normal(problem.zeros()).numpy() for k in range(1, chain + 1)]
    for row in range(len(CHAINS)):
        x, level = start[row] + 0.5 * first[row], 0.5
        for k in range(chain):
            clean, moved = denoised(x, level)
            estimate = np.sqrt(np.square(x - clean).mean() + error(level))
            x = x + eta / 2 * (moved - x) / level**2 + np.sqrt(eta) * noise[k][row]
            level = estimate
        roots = level ** (1 / 7) + np.linspace(0, 1, stops) * (prior.sigma_min ** (1 / 7) - level ** (1 / 7))
        for here, after in pairwise([*(roots**7), 0.0]):
            slope = (x - denoised(x, here)[1]) / here
            end = x + (after - here) * slope
            if after > 0:
                end = x + (after - here) * (slope + (end - denoised(end, after)[1]) / after) / 2
            x = end
        images.append(x)
    strategy = invsolve.strategy("denoising-mcmc", chain=chain, denoising=stops, eta=eta)
    ours = run_batch(problem, strategy, ChainRandom(3, CHAINS)).images
    np.testing.assert_allclose(ours.numpy(), np.stack(images), atol=1e-8)


def test_denoising_mcmc_has_somewhere_to_go() -> None:
    with pytest.raises(invsolve.UserError, match="'denoising-mcmc': chain must be 0 or more, denoising 1 or more"):
        invsolve.strategy("denoising-mcmc", denoising=0)
