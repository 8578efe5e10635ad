"""Strategies against independent transcriptions and closed forms."""

import math
from typing import Any

import pytest
import torch

import invsolve
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.engine.batch import run_batch
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.testing.exact import exact_posterior
from tests.support.types import narrow

CHAINS = [(0, 0), (0, 1), (1, 0)]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return exact_posterior(samples=3, dtype=torch.float64).problem


def alpha_bar(sigma: float) -> float:
    return 1 / (1 + sigma**2)


@pytest.mark.parametrize("zeta", [1.0, 0.7])
def test_dps_is_the_papers_algorithm_in_vp_coordinates(zeta: float) -> None:
    # Wide enough for the clamp to the prior's range to bite.
    problem = exact_posterior(samples=3, pixel_std=0.8, dtype=torch.float64).problem
    problem.prior.data_range = (0.0, 255.0)
    steps = 20
    strategy = invsolve.strategy("dps", steps=steps, zeta=zeta)
    clamped = 0
    levels = strategy.schedule(problem).tolist()
    rng = ChainRandom(3, CHAINS)
    x = rng.at(0).normal(problem.zeros()) * levels[0] * math.sqrt(alpha_bar(levels[0]))
    for k in range(steps):
        bar, bar_next = alpha_bar(levels[k]), alpha_bar(levels[k + 1])
        x = x.detach().requires_grad_()
        denoised = problem.prior.denoise(x / math.sqrt(bar), torch.tensor(levels[k], dtype=x.dtype))
        eps = (x - math.sqrt(bar) * denoised) / math.sqrt(1 - bar)
        x0 = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
        clamped += int((x0.abs() > 1).sum())
        x0 = x0.clamp(-1, 1)
        norm = (problem.y - problem.operator(x0)).flatten(1).norm(dim=1)
        (gradient,) = torch.autograd.grad(norm.sum(), x)
        alpha = bar / bar_next  # one step of the chain thinned to these times
        mean = math.sqrt(bar_next) * (1 - alpha) / (1 - bar) * x0 + math.sqrt(alpha) * (1 - bar_next) / (1 - bar) * x
        variance = (1 - alpha) * (1 - bar_next) / (1 - bar)
        x = mean + math.sqrt(variance) * rng.at(k + 1).normal(problem.zeros()) - zeta * gradient
    ours = run_batch(problem, strategy, ChainRandom(3, CHAINS)).images
    torch.testing.assert_close(ours, x.detach(), atol=1e-6, rtol=0)
    assert clamped


def test_fitted_dps_is_exact_for_one_measured_number() -> None:
    class Line(invsolve.LinearOperator):
        """The sum of the first row of pixels: one number, so that one gradient reaches all that it tells."""

        image_shape = (1, 16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, 0].sum(-1, keepdim=True)

    problem = exact_posterior(Line(), samples=3, dtype=torch.float64).problem
    sigma = 0.3
    z = sigma * ChainRandom(5, CHAINS).normal(problem.zeros())
    covariance = problem.prior.covariance()
    row = torch.zeros(1, 256, dtype=torch.float64)
    row[0, :16] = 1
    # Two measurements of x0: z itself with noise sigma, and y.
    data = torch.cat([torch.eye(256, dtype=torch.float64), row])
    noise = torch.diag(torch.tensor([sigma**2] * 256 + [problem.largest_sigma() ** 2], dtype=torch.float64))
    gain = covariance @ data.T @ torch.linalg.inv(data @ covariance @ data.T + noise)
    wanted = torch.cat([z.flatten(1), problem.y], 1) @ gain.T
    estimate = invsolve.strategy("dps-fitted").step(problem, {"x": z}, sigma, 0.0, ChainRandom(3, CHAINS).at(1))["x"]
    torch.testing.assert_close(estimate.flatten(1), wanted, atol=1e-9, rtol=0)


def test_red_diff_is_the_reference_update_in_vp_notation(problem: Problem) -> None:
    steps, lam, lr = 20, 0.25, 0.1
    strategy = invsolve.strategy("red-diff", steps=steps, weight=lam, learning_rate=lr)
    levels = strategy.schedule(problem).tolist()
    rng = ChainRandom(3, CHAINS)
    mu = problem.linear.baseline(problem.y, problem.sigma).detach().requires_grad_()
    optimiser = torch.optim.Adam([mu], lr=lr, betas=(0.9, 0.99))
    for k in range(steps):
        bar = alpha_bar(levels[k])
        noise = rng.at(k + 1).normal(problem.zeros())
        x_t = math.sqrt(bar) * mu.detach() + math.sqrt(1 - bar) * noise
        denoised = problem.prior.denoise(x_t / math.sqrt(bar), torch.tensor(levels[k], dtype=mu.dtype))
        eps = (x_t - math.sqrt(bar) * denoised) / math.sqrt(1 - bar)
        snr_inverse = math.sqrt((1 - bar) / bar)
        residual = (problem.y - problem.operator(mu)).flatten(1)
        loss = 0.5 * (residual**2).sum(1) / problem.dof()
        loss = loss + lam * snr_inverse * ((eps - noise) * mu).flatten(1).mean(1)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    ours = run_batch(problem, strategy, ChainRandom(3, CHAINS)).images
    torch.testing.assert_close(ours, mu.detach(), atol=1e-6, rtol=0)


def test_red_diff_by_the_noise_gets_closer_with_more_steps_and_the_published_weight_does_not() -> None:
    exact = exact_posterior(narrow(invsolve.LinearOperator, invsolve.operator("blur", sigma=1.5)), samples=4)

    def errors(**given: Any) -> list[float]:
        """Distance of the images from the posterior mean, in posterior sd, at 100, 400 and 1600 steps."""
        distances = []
        for steps in (100, 400, 1600):
            strategy = invsolve.strategy("red-diff", steps=steps, **given)
            images = run_batch(exact.problem, strategy, ChainRandom(0, [(0, s) for s in range(4)])).images
            distances.append(float(((images.flatten(1).double() - exact.mean) / exact.std).square().mean().sqrt()))
        return distances

    ours, published = errors(), errors(weight=0.25)
    assert ours[0] > ours[1] > ours[2]
    assert ours[2] < 0.3
    assert published[0] < published[1] < published[2]


def identity_problem(y: torch.Tensor, sigma: float) -> Problem:
    everything = invsolve.operator("inpainting", mask=torch.ones(y.shape[-2:]))
    return make_problem(None, everything, invsolve.Gaussian(sigma), y, tuple(y.shape[1:]), Scale())


def test_total_variation_of_a_step_has_a_closed_form() -> None:
    y = torch.zeros(1, 1, 6, 10, dtype=torch.float64)
    y[..., 4:] = 1.0
    sigma, weight = 0.5, 0.6
    strategy = invsolve.strategy("tv", weight=weight, steps=3000, tolerance=1e-6)
    x = run_batch(identity_problem(y, sigma), strategy, ChainRandom(0, [(0, 0)])).images
    # Each plateau moves towards the other by weight sigma^2 over its width.
    wanted = torch.where(y > 0, 1 - weight * sigma**2 / 6, weight * sigma**2 / 4).double()
    torch.testing.assert_close(x, wanted, atol=2e-4, rtol=0)


def test_total_variation_meets_the_discrepancy() -> None:
    y = torch.randn(2, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y[1] += torch.linspace(0, 3, 12, dtype=torch.float64)
    problem = identity_problem(y, 0.4)
    x = run_batch(problem, invsolve.strategy("tv", steps=3000, tolerance=1e-5), ChainRandom(0, [(0, 0), (1, 0)])).images
    misfit = problem.misfit(problem.residual(x))
    torch.testing.assert_close(misfit, problem.expected_misfit(), atol=1e-3, rtol=0)


def test_schedules_descend_to_zero_within_the_priors_range() -> None:
    for levels in (schedules.edm(9, 0.02, 30.0), schedules.ddpm_linear(9, 0.02, 30.0)):
        assert levels.shape == (10,)
        assert bool((levels.diff() < 0).all())
        assert float(levels[-1]) == 0
        assert 0.02 <= float(levels[-2]) <= float(levels[0]) <= 30.0 + 1e-9
    full = schedules.ddpm_linear(1000)
    assert abs(float(full[0]) - 157.41) < 0.05
    assert abs(float(full[-2]) - 0.0100) < 1e-4
