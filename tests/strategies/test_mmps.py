"""`mmps` beyond a linear operator and an exact denoiser: tangents, counting noise, Jacobians that are no covariance."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.operator import matching
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.engine.batch import run_batch
from invsolve.engine.needs import check_needs
from invsolve.numerics import schedules, spectrum
from invsolve.numerics.krylov import GCR
from invsolve.numerics.linalg import norm
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.priors.analytic.gaussian import GaussianField
from invsolve.plugins.strategies._local import local
from invsolve.plugins.strategies._multistep import extrapolation
from invsolve.plugins.strategies.mmps import MMPS
from tests.support import bounds

SIZE = 8


class Projections(invsolve.LinearOperator):
    """Half as many random projections as pixels; no closed-form prox."""

    image_shape = (1, SIZE, SIZE)

    def __init__(self) -> None:
        pixels = SIZE * SIZE
        self.matrix = torch.randn(pixels // 2, pixels, generator=torch.Generator().manual_seed(0)) / math.sqrt(pixels)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ matching(self.matrix, x).T


class Hidden(invsolve.Operator):
    """A linear operator that does not say so."""

    def __init__(self, inner: invsolve.LinearOperator) -> None:
        self.inner = inner
        self.image_shape = inner.image_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.forward(x)


class Bent(invsolve.Operator):
    """x + x^2 / 2 in every pixel: its slope varies threefold over the prior's images."""

    image_shape = (1, SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * x**2


class Counted(invsolve.LinearOperator):
    image_shape = (1, SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


def white(mean: float, std: float) -> GaussianField:
    return GaussianField(SIZE, mean=mean, spectrum=torch.full((SIZE, SIZE), std**2))


def pixelwise(prior: GaussianField, y: Tensor, log_likelihood: Any) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of independent pixels, by quadrature; y (pixels,)."""
    grid = torch.linspace(-3, 4, 20001, dtype=torch.float64)
    std = float(prior.spectrum.mean().sqrt())
    log = log_likelihood(grid[:, None], y.double()) - (grid[:, None] - prior.mean) ** 2 / (2 * std**2)
    weight = (log - log.max(0).values).exp()
    weight = weight / weight.sum(0)
    mean = (weight * grid[:, None]).sum(0)
    return mean, (weight * (grid[:, None] - mean) ** 2).sum(0).sqrt()


def samples_of(
    prior: invsolve.Prior, operator: invsolve.Operator, noise: invsolve.contracts.noise.Noise, y: Tensor, count: int
) -> Tensor:
    problem = make_problem(prior, operator, noise, y.expand(count, *y.shape[1:]), (1, SIZE, SIZE), Scale())
    strategy = invsolve.strategy("mmps")
    check_needs(strategy, problem)
    return run_batch(problem, strategy, ChainRandom(1, [(0, s) for s in range(count)])).images.flatten(1).double()


#: What `mmps` claims. Its known bias, a Gaussian in place of p(x0 | x_sigma), and its finite number of steps are in it.
CLAIMED_ERROR, CLAIMED_WIDTH = MMPS.mean_error, MMPS.std_ratio
DRAWS, PIXELS = 1024, SIZE**2


def distance(images: Tensor, mean: Tensor, std: Tensor) -> tuple[float, float]:
    """Error of the samples' mean in posterior sd (rms), and their sd over the posterior's."""
    error = ((images.mean(0) - mean) / std).square().mean().sqrt()
    return float(error), float((images.std(0).square().mean() / std.square().mean()).sqrt())


def test_a_bent_operator_against_quadrature() -> None:
    prior, sigma = white(0.2, 0.3), 0.1
    truth = prior.sample(ChainRandom(0, [(0, 0)]), torch.zeros(1))
    y = invsolve.simulate(truth, Bent(), invsolve.Gaussian(sigma))

    def log_likelihood(x: Tensor, y: Tensor) -> Tensor:
        return -((y - x - 0.5 * x**2) ** 2) / (2 * sigma**2)

    mean, std = pixelwise(prior, y.flatten(), log_likelihood)
    error, ratio = distance(samples_of(prior, Bent(), invsolve.Gaussian(sigma), y, DRAWS), mean, std)
    assert error < bounds.rms_error(DRAWS, PIXELS, CLAIMED_ERROR), error
    assert bounds.between(ratio, CLAIMED_WIDTH, bounds.width_error(DRAWS, PIXELS)), ratio


def test_counts_against_quadrature() -> None:
    prior, gain = white(1.0, 0.25), 50.0
    truth = prior.sample(ChainRandom(0, [(0, 0)]), torch.zeros(1)).clamp_min(0.05)
    y = invsolve.simulate(truth, Counted(), invsolve.Poisson(gain))

    def log_likelihood(x: Tensor, y: Tensor) -> Tensor:
        rate = (gain * x).clamp_min(1e-6)
        return gain * y * rate.log() - rate

    mean, std = pixelwise(prior, y.flatten(), log_likelihood)
    error, ratio = distance(samples_of(prior, Counted(), invsolve.Poisson(gain), y, DRAWS), mean, std)
    assert error < bounds.rms_error(DRAWS, PIXELS, CLAIMED_ERROR), error
    assert bounds.between(ratio, CLAIMED_WIDTH, bounds.width_error(DRAWS, PIXELS)), ratio


def linear_problem(operator: invsolve.Operator, rows: int = 3) -> Problem:
    prior = GaussianField(SIZE, std=0.15)
    truth = prior.sample(ChainRandom(0, [(0, 0)]), torch.zeros(1, dtype=torch.float64))
    y = operator.to(torch.float64)(truth)
    return make_problem(prior, operator, invsolve.Gaussian(0.02), y.expand(rows, -1), (1, SIZE, SIZE), Scale())


def test_a_linear_operator_that_does_not_say_so_gives_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = [(0, 0), (0, 1), (1, 0)]
    # With one product a step, because where the noise dominates only an operator that says so is spared the others; and
    # with the same inner solver, because only its small matrix is decomposed.
    monkeypatch.setattr(spectrum, "SMALL", (0, 0))
    strategy = invsolve.strategy("mmps", solves=1)
    known, hidden = (
        run_batch(linear_problem(operator), strategy, ChainRandom(3, chains)).images
        for operator in (Projections(), Hidden(Projections()))
    )
    torch.testing.assert_close(hidden, known, atol=1e-7, rtol=0)


class Spectrum(invsolve.Operator):
    """Squares of x in complex numbers: |x|^2 + i x of each pixel."""

    image_shape = (1, SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x**2, x.roll(1, -1) * x)


@pytest.mark.parametrize("operator", [Bent(), Spectrum()])
def test_the_tangent_is_the_derivative_and_its_transpose(operator: invsolve.Operator) -> None:
    generator = torch.Generator().manual_seed(0)
    point, step = (torch.randn(2, 1, SIZE, SIZE, dtype=torch.float64, generator=generator) for _ in range(2))
    y = operator(point + 0.1)
    problem = make_problem(None, operator, invsolve.Gaussian(0.1), y, (1, SIZE, SIZE), Scale())
    near = local(problem, point)
    h = 1e-6
    slope = (operator(point + h * step) - operator(point - h * step)) / (2 * h)
    torch.testing.assert_close(near.forward(step), slope, atol=1e-8, rtol=0)
    other = near.residual(step)
    torch.testing.assert_close(other, y - operator(point) - near.forward(step - point))
    left = (near.forward(step).conj() * other).real.sum()
    torch.testing.assert_close((step * near.adjoint(other)).sum(), left)


@pytest.mark.parametrize(
    "operator",
    [
        invsolve.operator("inpainting", fraction=0.5, image_size=SIZE),
        invsolve.operator("blur", sigma=0.8),
        invsolve.operator("mri", acceleration=2, image_size=SIZE),
        Projections(),
    ],
    ids=["inpainting", "blur", "mri", "no closed form"],
)
def test_a_direction_comes_with_its_adjoint(operator: invsolve.LinearOperator) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, SIZE, SIZE, dtype=torch.float64, generator=generator)
    operator = operator.to(torch.float64)
    y = operator(x.to(torch.complex128) if operator.complex_image else x)
    problem = make_problem(None, operator, invsolve.Gaussian(0.1), y, (1, SIZE, SIZE), Scale())
    near = local(problem, torch.zeros_like(x))
    p, pulled = near.direction(problem.y, 0.3)
    torch.testing.assert_close(pulled, near.adjoint(p), atol=1e-10, rtol=1e-8)
    if not isinstance(operator, Projections):  # whose inner solver stops early
        # p solves (sigma_y^2 + v A A') p = y up to a factor.
        applied = 0.1**2 * p + 0.3 * near.forward(pulled)
        factor = (applied.conj() * problem.y).real.sum() / applied.abs().square().sum()
        torch.testing.assert_close(factor * applied, problem.y)


def test_minimal_residual_is_the_dense_solution_without_symmetry() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 12, 12, dtype=torch.float64, generator=generator)
    skew = torch.randn(2, 12, 12, dtype=torch.float64, generator=generator)
    matrix = root @ root.mT / 12 + 0.3 * (skew - skew.mT) / 12**0.5 + 0.1 * torch.eye(12, dtype=torch.float64)
    b = torch.randn(2, 12, dtype=torch.float64, generator=generator)

    def system(p: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
        return (matrix @ p[..., None])[..., 0], 2 * pulled

    def direction(r: Tensor) -> tuple[Tensor, Tensor]:
        return r, r.clone()

    zero = torch.zeros_like(b)
    u, image, rest = GCR(12).solve(system, direction, b)
    torch.testing.assert_close(u, torch.linalg.solve(matrix, b), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(image, 2 * u)
    torch.testing.assert_close(rest, zero, atol=1e-8, rtol=0)
    # Few products: never further from the data than before, with any start, and a good start is used up at once.
    sizes = [norm(GCR(k).solve(system, direction, b)[2]) for k in (1, 3, 6)]
    assert bool((sizes[0] <= norm(b)).all() and (sizes[1] <= sizes[0]).all() and (sizes[2] <= sizes[1]).all())
    again, _, rest = GCR(1).solve(system, direction, b, (5 * u, 5 * u))
    torch.testing.assert_close(again, u, atol=1e-7, rtol=0)


def width(variance: float, steps: int, churn: float, coefficient: Callable[[float], float]) -> float:
    """Standard deviation over the right one of samples of N(0, variance), the covariance of (x, last D) followed exactly."""
    levels = schedules.geometric(steps, 0.002, 20.0).tolist()
    joint = torch.tensor([[levels[0] ** 2, 0.0], [0.0, 0.0]], dtype=torch.float64)
    for k, (sigma, after) in enumerate(pairwise(levels)):
        gain = variance / (variance + sigma**2)
        if after == 0:
            return float(gain * (joint[0, 0] / variance).sqrt())
        h = math.log(sigma / after)
        carried = coefficient(h) if k else 0.0
        share = 1 - math.exp(-h * (1 + churn))
        step = torch.tensor([[1 - share + share * gain * (1 + carried), -share * carried], [gain, 0.0]]).to(joint)
        joint = step @ joint @ step.T
        joint[0, 0] += after**2 * (1 - math.exp(-2 * h * churn))
    raise AssertionError("a schedule ends at zero")


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_the_extrapolation_keeps_the_width_of_gaussians_of_any_size(churn: float) -> None:
    for std in (0.03, 0.1, 0.3, 1.0):
        assert abs(width(std**2, 28, churn, lambda h: extrapolation(h, churn)) - 1) < 0.004
    # DPM-Solver++ 2M.
    assert width(0.1**2, 28, churn, lambda h: 0.5) > 1.005 + 0.01 * churn


class Learned(invsolve.Prior):
    """A Gaussian's denoiser as a network would have it: its Jacobian has a skew part and one negative eigenvalue.

    Args:
        skew: of the Jacobian, relative to its symmetric part.
        negative: eigenvalue where it should be small and positive.
    """

    event_shape = (1, SIZE, SIZE)

    def __init__(self, field: GaussianField, skew: float, negative: float) -> None:
        self.field, self.skew, self.negative = field, skew, negative
        self.values, self.vectors = torch.linalg.eigh(field.covariance())
        part = torch.randn(SIZE**2, SIZE**2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        part = part - part.T
        self.part = part / torch.linalg.matrix_norm(part, 2)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        gain = self.values / (self.values + sigma.double() ** 2)
        root = gain.sqrt()
        gain = gain.clone()
        # Only while the true gain is small too: else it would be another prior.
        gain[0] = torch.where(gain[0] < 0.2, -self.negative, gain[0])
        core = torch.diag(gain) + self.skew * root[:, None] * self.part * root
        matrix = (self.vectors @ core @ self.vectors.T).to(x.dtype)
        return (x.flatten(1) @ matrix.T).view_as(x)

    def error(self, sigma: float) -> float:
        return self.field.error(sigma)


def mean_with(prior: Learned, covariance: Tensor, matrix: Tensor, sigma: float, y: Tensor) -> Tensor:
    """Mean of the sampler's images (pixels,) with this D, but with the exact covariance, solved exactly, in every step.

    A transcription in dense matrices: D is linear here, and so the mean goes through the steps as an image does.
    """
    strategy, eye = MMPS(), torch.eye(PIXELS, dtype=torch.float64)
    levels = strategy.schedule(
        make_problem(prior, Projections(), invsolve.Gaussian(sigma), y[None], (1, SIZE, SIZE), Scale())
    )
    mean, before = torch.zeros(PIXELS, dtype=torch.float64), None
    for level, after in pairwise(levels.tolist()):
        denoised = prior.denoise(mean.view(1, 1, SIZE, SIZE), torch.tensor(level, dtype=torch.float64)).flatten()
        unknown = level**2 * covariance @ torch.linalg.inv(covariance + level**2 * eye)
        gram = matrix @ unknown @ matrix.T + sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
        estimate = denoised + unknown @ matrix.T @ torch.linalg.solve(gram, y - matrix @ denoised)
        forecast = estimate
        if after > 0 and before is not None:
            forecast = estimate + extrapolation(math.log(level / after), strategy.churn) * (estimate - before)
        kept = (after / level) ** (1 + strategy.churn)
        mean, before = kept * mean + (1 - kept) * forecast, estimate
    return mean


@pytest.mark.parametrize(("skew", "negative"), [(0.05, 0.0), (0.0, 0.1), (0.05, 0.3)])
def test_a_jacobian_that_is_no_covariance_does_as_well_as_the_covariance(skew: float, negative: float) -> None:
    # The skew part makes D itself wrong, by 0.1 to 0.4 on these data: with the exact covariance in every solve the same.
    field, sigma, count = GaussianField(SIZE, std=0.15), 0.02, 512
    operator = Projections().to(torch.float64)
    matrix, covariance = operator.matrix.double(), field.covariance()
    gram = matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = torch.linalg.solve(gram, matrix @ covariance).T
    posterior = covariance - gain @ matrix @ covariance
    std = posterior.diagonal().sqrt()
    prior = Learned(field, skew, negative)
    operator = operator.to(torch.float32)
    limit = bounds.rms_error(count, bounds.dimensions(posterior / torch.outer(std, std)), CLAIMED_ERROR)
    for item in range(4):
        truth = field.sample(ChainRandom(0, [(item, 0)]), torch.zeros(1, dtype=torch.float64)).flatten()
        y = (
            matrix @ truth
            + sigma * ChainRandom(0, [(item, 1)]).normal(torch.zeros(1, len(matrix), dtype=torch.float64))[0]
        )
        images = samples_of(prior, operator, invsolve.Gaussian(sigma), y[None].float(), count)
        error, ratio = distance(images, mean_with(prior, covariance, matrix, sigma, y), std)
        assert error < limit, (item, error)
        assert bounds.between(ratio, CLAIMED_WIDTH, bounds.width_error(count, bounds.dimensions(posterior))), ratio
