"""free-hunch: whole runs against a transcription with dense matrices, its covariance, and what it makes of a prior's spectrum."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import invsolve
from invsolve.bench.gaussian import Compression
from invsolve.contracts.problem import Problem
from invsolve.engine.batch import run_batch
from invsolve.networks.gaussian_start import GaussianStart
from invsolve.numerics.random import ChainRandom
from invsolve.testing.distances import compare
from invsolve.testing.exact import exact_posterior
from invsolve.testing.field import Field
from invsolve.testing.operators import dense

CHAINS = [(0, 0), (0, 1), (1, 0)]
SIZE, SIGMA_Y = 6, 0.05


class Curved(Field):
    """A field seen through a bent denoiser: no covariance of it is the same everywhere, and none is told beforehand."""

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        straight = super().denoise(x, sigma)
        return straight + 0.3 * torch.tanh(straight / 0.1) * 0.1

    def modes(self, like: torch.Tensor) -> None:
        return None


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Half of the pixels; the slope of D varies by a third."""
    posed = exact_posterior(samples=3, size=SIZE, dtype=torch.float64, sigma=SIGMA_Y).problem
    posed.known = Curved(SIZE)
    posed.known.sigma_max = 80.0
    return posed


class Dense:
    """Rissanen 2025, section 3, in dense matrices: covariance and Hessian, each updated in time and in space as they print it."""

    def __init__(self, covariance: np.ndarray, sigma: float) -> None:
        self.covariance, self.sigma = covariance, sigma

    def hessian(self) -> np.ndarray:
        """Of log p: (C / sigma^2 - 1) / sigma^2, Tweedie's second formula."""
        eye = np.eye(len(self.covariance))
        return (self.covariance / self.sigma**2 - eye) / self.sigma**2

    def in_time(self, x: np.ndarray, mean: np.ndarray, sigma: float) -> np.ndarray:
        """To another noise level; returns D there at the same x."""
        eye, score, before = np.eye(len(x)), (mean - x) / self.sigma**2, self.hessian()
        inverse = np.linalg.inv(before)
        after = np.linalg.inv(inverse - (sigma**2 - self.sigma**2) * eye)
        delta = sigma**-2 - self.sigma**-2
        self.covariance, self.sigma = np.linalg.inv(np.linalg.inv(self.covariance) + delta * eye), sigma
        np.testing.assert_allclose(self.hessian(), after, atol=1e-6 * abs(after).max())
        return x + sigma**2 * after @ (inverse @ score)

    def in_space(self, move: np.ndarray, mean: np.ndarray, foretold: np.ndarray) -> None:
        """BFGS."""
        change, c = self.sigma**2 * (mean - foretold), self.covariance
        if move @ change > 1e-6 * np.linalg.norm(move) * np.linalg.norm(change):
            seen = c @ move
            self.covariance = c - np.outer(seen, seen) / (move @ seen) + np.outer(change, change) / (move @ change)


class Conditional:
    """E[x0 | x, y] of one chain, which remembers where D was asked before."""

    def __init__(self, problem: Problem, row: int, sigma: float) -> None:
        self.prior, self.y = problem.prior, problem.y[row].numpy().ravel()
        self.matrix, eye = dense(problem.linear, problem.image_shape)[0].numpy(), np.eye(SIZE**2)
        start = np.linalg.inv(eye / self.prior.error(self.prior.sigma_max) + eye / sigma**2)
        self.hunch, self.corrected = Dense(start, sigma), 0
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, x: np.ndarray, sigma: float) -> np.ndarray:
        def at(flat: torch.Tensor) -> torch.Tensor:
            return self.prior.denoise(flat.view(1, 1, SIZE, SIZE), torch.tensor(sigma, dtype=flat.dtype)).flatten()

        mean, hunch = at(torch.from_numpy(x)).numpy(), self.hunch
        jacobian = torch.autograd.functional.jacobian(at, torch.from_numpy(x)).numpy()
        if self.seen:
            there, mean_there = self.seen[-1]
            foretold = hunch.in_time(there, mean_there, sigma) if sigma != hunch.sigma else mean_there
            if 1 < sigma < 10:
                hunch.in_space(x - there, mean, foretold)
                self.corrected += 1
        self.seen.append((x, mean))
        gram = self.matrix @ hunch.covariance @ self.matrix.T + SIGMA_Y**2 * np.eye(len(self.matrix))
        return mean + sigma**2 * jacobian.T @ self.matrix.T @ np.linalg.solve(gram, self.y - self.matrix @ mean)


def test_published(problem: Problem) -> None:
    """Theirs: conditional EDM by Heun, one vector-Jacobian product a call, from the identity; whole runs."""
    steps, prior = 12, problem.prior
    ramp = np.linspace(1, 0, steps)
    levels = [*((prior.sigma_min ** (1 / 7) + ramp * (80 ** (1 / 7) - prior.sigma_min ** (1 / 7))) ** 7), 0.0]
    start = levels[0] * ChainRandom(3, CHAINS).at(0).normal(problem.zeros()).flatten(1).numpy()
    images = []
    for row, x in enumerate(start):
        conditional = Conditional(problem, row, levels[0])
        for sigma, after in pairwise(levels):
            slope = (x - conditional(x, sigma)) / sigma
            end = x + (after - sigma) * slope
            if after > 0:
                end = x + (after - sigma) * (slope + (end - conditional(end, after)) / after) / 2
            x = end
        assert conditional.corrected > 3
        images.append(x)
    strategy = invsolve.strategy("free-hunch", preset="published", steps=steps, iterations=200)
    ours = run_batch(problem, strategy, ChainRandom(3, CHAINS)).images.flatten(1).numpy()
    np.testing.assert_allclose(ours, np.stack(images), atol=1e-3)


def test_products_want_a_prior_that_has_them(problem: Problem) -> None:
    mute = replace(problem, known=Curved(SIZE))
    mute.prior.differentiable = False
    with pytest.raises(invsolve.UserError, match="products='learn' needs a prior that can be differentiated"):
        invsolve.strategy("free-hunch", products="learn").init(mute, ChainRandom(0, CHAINS))


class Silent(Field):
    """A field that does not tell its spectrum."""

    def modes(self, like: torch.Tensor) -> None:
        return None


def test_products_teach_what_no_spectrum_told() -> None:
    """Two network passes a step, where `mmps` takes four: at 30 evaluations its mean, and its widths within 3 %."""
    posed = exact_posterior(Compression(), samples=128)
    posed.problem.known = Silent()
    figures = compare(invsolve.strategy("free-hunch", products="learn", steps=15), posed)
    assert figures["evaluations"] == 30
    assert figures["mean_error"] < 0.05 + 128**-0.5
    assert 0.97 < figures["std_ratio"] < 1.03 + 3 * figures_error(128)
    untold = compare(invsolve.strategy("free-hunch", steps=15), posed)
    # As it states: the way of x alone tells too little.
    assert untold["mean_error"] > 0.4


def figures_error(draws: int) -> float:
    """Standard error of a width over all pixels; some twenty directions of the posterior have most of its variance."""
    return (2 * (draws - 1) * 20) ** -0.5


@pytest.mark.parametrize(
    ("prior", "covariance"),
    [
        (invsolve.load_prior("gaussian-field", size=[5, 8], std=0.3), None),
        (invsolve.load_prior("levy", length=9), 0.1**2 * np.minimum.outer(np.arange(1, 10), np.arange(1, 10))),
    ],
    ids=["gaussian-field", "levy"],
)
def test_a_stated_spectrum_is_the_covariance(prior: invsolve.Prior, covariance: np.ndarray | None) -> None:
    covariance = prior.covariance().numpy() if covariance is None else covariance
    shape = [side for side in prior.event_shape if side is not None]
    units = torch.eye(len(covariance), dtype=torch.float64).view(-1, *shape)
    modes = prior.modes(units)
    assert modes is not None
    images = modes.from_basis(modes.variance * modes.to_basis(units)).flatten(1)
    np.testing.assert_allclose(images.numpy(), covariance, atol=1e-12)


def test_a_measured_gaussian_states_its_denoiser_and_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    known = GaussianStart((6, 5), torch.zeros(1, 3, 2), 0.1 + torch.rand(1, 3, 2, generator=generator), rest=0.02)
    x = torch.randn(2, 1, 6, 5, dtype=torch.float64, generator=generator)
    modes = known.modes(x)
    torch.testing.assert_close(modes.from_basis(modes.to_basis(x)), x)
    # All of the variance of a pixel that is in no mode kept.
    assert modes.variance.sum().item() == pytest.approx(known.power.sum().item() + 0.02 * 30)
    kept = torch.zeros_like(modes.variance)
    kept[:, :3, :2] = 1
    shrunk = modes.from_basis(kept * modes.variance / (modes.variance + 0.3**2) * modes.to_basis(x))
    torch.testing.assert_close(shrunk, known.denoise(x, torch.tensor(0.3, dtype=x.dtype)))
