"""Gaussian noise that differs by item, coil and entry: the exact posterior, each item by itself, and what cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import api, registry
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.engine import Options, slabs
from invsolve.engine.batch import run_batch
from invsolve.numerics.krylov import CG
from invsolve.numerics.random import ChainRandom
from invsolve.registry.check import instances
from invsolve.testing.cases import expecting
from invsolve.testing.operators import dense
from invsolve.testing.strategies import strategy_cases

SIZE = 8
#: Claims that do not hold here, and why.
KNOWN = {
    "ddlm": {"mean": "states that noise that differs by pixel is taken for white"},
    "flowdps": dict.fromkeys(("mean", "width"), "states that the noisier entries are fitted least"),
}
#: Members of those that state that they take as many of them as there are pixels.
ENSEMBLES = {"enkg": 256}
HELD = ("mean", "width", "widths along the eigenvectors")


def uneven(*shape: int, low: float = 0.03, high: float = 0.09) -> Tensor:
    """Standard deviations between two bounds, log-uniform."""
    return low * (high / low) ** torch.rand(shape, generator=torch.Generator().manual_seed(0))


def strategies(*needs: str) -> list[Any]:
    """One instance of each strategy with a prior that declares these needs."""
    known = registry.available("strategy").items()
    return [
        pytest.param(instances(cls, "strategy", name)[0], id=name)
        for name, cls in known
        if issubclass(cls, invsolve.Strategy) and {"prior", *needs} <= set(cls.needs)
    ]


@pytest.mark.parametrize("strategy", strategies())
def test_a_strategy_keeps_its_claims_where_each_pixel_has_its_own_noise(strategy: invsolve.Strategy) -> None:
    samples = ENSEMBLES.get(strategy.name, 64)
    cases = strategy_cases(strategy, sigma=uneven(1, 16, 16), samples=samples)
    for case in expecting(cases, KNOWN.get(strategy.name, {})):
        if case.name in HELD and (strategy.draws or case.name == "mean"):
            finding = case.finding()
            assert finding.ok, str(finding)


def short(name: str) -> invsolve.Strategy:
    """A strategy at a cost of about 12 evaluations a sample."""
    return invsolve.strategy(name).at_cost(12)


def images(y: Tensor, operator: invsolve.Operator, sigma: Any, name: str, items: range, batch: int = 8) -> Tensor:
    """Samples of some items of y, (items, samples, C, *spatial), with their numbers among all."""
    prior = invsolve.load_prior("gaussian-field", size=SIZE, std=0.5)
    samples = 2
    measurement = invsolve.Measurement(y, operator, invsolve.Gaussian(sigma))
    planned = api.plan(measurement, prior, short(name), Options(samples=samples, batch_size=batch, dtype="float64"))
    planned.only = items
    sink = api.Memory(len(y))
    planned.execute(sink)
    return sink.stack("samples")


# Few members are quick, and are told to be few.
@pytest.mark.filterwarnings("ignore:strategy 'enkg'")
@pytest.mark.parametrize("name", [p.id for p in strategies() if not p.values[0].couples_items])
def test_an_item_with_its_own_noise_is_what_it_is_by_itself(name: str) -> None:
    operator = invsolve.operator("inpainting", fraction=0.6, image_size=SIZE)
    y = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * operator.measured()
    level = torch.tensor([0.02, 0.05, 0.12]).view(3, 1, 1, 1)
    together = images(y, operator, level, name, range(3))
    maps = level * (1 + torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2)))
    by_map = images(y, operator, maps, name, range(3))
    for item in range(3):
        alone = images(y, operator, float(level[item]), name, range(item, item + 1))
        torch.testing.assert_close(together[item : item + 1], alone, atol=1e-6, rtol=0)
        alone = images(y, operator, maps[item], name, range(item, item + 1), batch=2)
        torch.testing.assert_close(by_map[item : item + 1], alone, atol=1e-6, rtol=0)
    assert float((by_map - together).abs().max()) > 1e-3


def test_slices_of_a_volume_each_with_a_map_of_its_own() -> None:
    operator = invsolve.operator("ct", image_size=SIZE, angles=6)
    y = torch.randn(3, *operator.measurement_shape((1, SIZE, SIZE)), generator=torch.Generator().manual_seed(1))
    maps = uneven(*y.shape, low=0.05, high=0.5)
    prior = invsolve.load_prior("gaussian-field", size=SIZE, std=0.5)
    # With no total variation across them the slices are solved one by one, in one batch.
    strategy = invsolve.strategy("dds-3d", steps=6, weight=0.0)

    def run(given: Tensor, sigma: Tensor, items: range) -> Tensor:
        problem = make_problem(
            prior, operator.double(), invsolve.Gaussian(sigma), given.double(), (1, SIZE, SIZE), Scale()
        )
        return run_batch(problem, strategy, ChainRandom(0, [(k, 0) for k in items])).images

    together = run(y, maps, range(3))
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], run(y[k : k + 1], maps[k], range(k, k + 1)), atol=1e-8, rtol=0)
    planned = api.plan(
        invsolve.Measurement(y, operator, invsolve.Gaussian(maps)), prior, strategy, Options(dtype="float64")
    )
    sink = api.Memory(3)
    planned.execute(sink)
    torch.testing.assert_close(sink.stack("samples")[:, 0], together, atol=1e-8, rtol=0)
    with pytest.raises(invsolve.UserError, match="needs the whole volume in one process: start it without torchrun"):
        slabs.share_volumes(planned)


COILS = torch.randn(2, SIZE, SIZE, 2, generator=torch.Generator().manual_seed(3))
OPERATORS: dict[str, tuple[str, dict[str, Any], int]] = {
    "inpainting": ("inpainting", {"fraction": 0.6, "image_size": SIZE}, 1),
    "blur": ("blur", {"sigma": 1.0}, 1),
    "ct": ("ct", {"image_size": SIZE, "angles": 5}, 1),
    "mri real": ("mri", {"image_size": SIZE, "acceleration": 2}, 1),
    "mri": ("mri", {"image_size": SIZE, "acceleration": 2}, 2),
    "mri coils": ("mri", {"coil_maps": COILS, "acceleration": 2}, 2),
}


def data_of(name: str) -> tuple[invsolve.Operator, Tensor, tuple[int, ...]]:
    """An operator in double precision, two measurements that say nothing, and the shape of the prior's images."""
    kind, given, channels = OPERATORS[name]
    operator = invsolve.operator(kind, **given).to(torch.float64)
    blank = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.complex128 if operator.complex_image else torch.float64)
    numbers = torch.randn(
        2, *operator(blank).shape[1:], 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    y = torch.view_as_complex(numbers) if operator.complex_image else numbers[..., 0]
    mask = operator.measured()
    return operator, y if mask is None else y * mask, (channels, SIZE, SIZE)


def numbers(y: Tensor) -> Tensor:
    """The real numbers of measurements, (B, numbers), real and imaginary part after one another."""
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


def weighted_solution(matrix: Tensor, precision: Tensor, data: Tensor, variance: float) -> Tensor:
    """(A' W A + 1 / variance)^-1 A' W data of each row, (B, pixels)."""
    normal = matrix.T @ (precision[:, None] * matrix) + torch.eye(matrix.shape[1], dtype=torch.float64) / variance
    return torch.linalg.solve(normal, matrix.T @ (precision * data).T).T


@pytest.mark.parametrize("name", OPERATORS)
def test_the_data_step_is_the_weighted_least_squares_of_dense_algebra(name: str) -> None:
    operator, y, shape = data_of(name)
    sigma, factor = uneven(*y.shape[1:], low=0.05, high=0.5).double(), 2.0
    plain, problem = (
        make_problem(None, operator, invsolve.Gaussian(level), y, shape, Scale(factor, 0.3)) for level in (1.0, sigma)
    )
    assert isinstance(problem.sigma, float), "white in every row"
    matrix, _ = dense(plain.linear, shape)
    precision = (factor / sigma.flatten()) ** 2
    precision = precision.repeat_interleave(2) if y.is_complex() else precision
    wanted = weighted_solution(matrix, precision, numbers(plain.y), 0.2)
    step = problem.tikhonov(problem.residual(problem.blank()), 0.2, CG(1e-13, 500)).flatten(1)
    torch.testing.assert_close(step, wanted, atol=1e-8, rtol=0)
    # The residual of an image over the noise of each number that was measured.
    mask = operator.measured()
    kept = torch.ones(y.shape[1:], dtype=torch.bool) if mask is None else mask.expand(y.shape[1:])
    rest = (plain.residual(wanted.view(-1, *shape)) * factor / sigma)[:, kept]
    ratio, count = problem.discrepancy(wanted.view(-1, *shape))
    real = 2 if y.is_complex() else 1
    torch.testing.assert_close(ratio, (rest.abs().square().sum(1) / (real * int(kept.sum()))).sqrt(), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        count, torch.full((2,), real * float(kept.sum()), dtype=torch.float64), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize(
    "shape", [(1,), (SIZE,), (SIZE, 1), (2, 1, 1), (2, SIZE, SIZE), (3, 1, 1, 1), (1, 2, 1, 1), (3, 2, SIZE, 1)]
)
def test_any_shape_that_broadcasts_is_the_map_that_it_stands_for(shape: tuple[int, ...]) -> None:
    operator = invsolve.operator("mri", coil_maps=COILS)
    sigma, whole = uneven(*shape), (3, 2, SIZE, SIZE)
    truth = torch.zeros(3, 1, SIZE, SIZE)
    unit = invsolve.simulate(truth, operator, invsolve.Gaussian(1.0), seed=3)
    y = invsolve.simulate(truth, operator, invsolve.Gaussian(sigma), seed=3)
    torch.testing.assert_close(y, sigma * unit, atol=1e-7, rtol=1e-6)
    prior = invsolve.load_prior("gaussian-field", size=SIZE, std=0.5)

    def run(given: Tensor) -> Tensor:
        planned = api.plan(
            invsolve.Measurement(y, operator, invsolve.Gaussian(given)),
            prior,
            short("diffpir"),
            Options(dtype="float64"),
        )
        sink = api.Memory(3)
        planned.execute(sink)
        return sink.stack("samples")

    torch.testing.assert_close(run(sigma), run(sigma.expand(whole).clone()), atol=2e-3, rtol=0)


def test_the_linear_reconstruction_of_coils_weighs_each_by_its_noise() -> None:
    operator, _, shape = data_of("mri coils")
    sigma = torch.tensor([0.01, 1.0]).view(2, 1, 1).double()
    truth = torch.randn(1, 1, SIZE, SIZE, dtype=torch.complex128, generator=torch.Generator().manual_seed(5)) / 2
    y = invsolve.Gaussian(sigma).sample(operator(truth), ChainRandom(0, [(0, 0)]))
    problem = make_problem(None, operator, invsolve.Gaussian(sigma), y, shape, Scale())
    plain = make_problem(None, operator, invsolve.Gaussian(1.0), y, shape, Scale())
    matrix, _ = dense(plain.linear, shape)
    precision = sigma.expand(y.shape[1:]).flatten().repeat_interleave(2) ** -2
    image, data = problem.baseline().flatten(1), matrix.T @ (precision * numbers(y)).T
    # Lightly regularised, as SENSE is: by a thousandth of the largest eigenvalue.
    normal = matrix.T @ (precision[:, None] * matrix)
    ridge = max(4.0, 1e-3 * float(torch.linalg.eigvalsh(normal)[-1]))
    rest = normal @ image.T + ridge * image.T - data
    # As near as the solve promises.
    assert float(rest.norm() / data.norm()) <= 1.001 * CG().tolerance
    error = float((image - numbers(truth)).norm() / numbers(truth).norm())
    # What least squares makes of it that takes all coils for alike, as lightly regularised.
    alike = torch.linalg.solve(
        matrix.T @ matrix + 1e-3 * float(plain.operator_norm()) ** 2 * torch.eye(len(matrix.T)), matrix.T @ numbers(y).T
    ).T
    assert error < 0.3 * float((alike - numbers(truth)).norm() / numbers(truth).norm())


class Pixels(invsolve.Prior):
    """Independent pixels, 0 +- 1."""

    sigma_min, sigma_max = 0.002, 80.0

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma**2)

    def error(self, sigma: float) -> float:
        return sigma**2 / (1 + sigma**2)


class Bend(invsolve.Operator):
    """The image itself, not known to be linear."""

    image_shape = (1, SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return 1.0 * x


@pytest.mark.parametrize("name", ["mmps", "daps", "dps-fitted", "flowchef-fitted"])
def test_an_operator_that_is_not_linear_has_noise_of_each_pixel_too(name: str) -> None:
    strategy, draws, pixels = invsolve.strategy(name), 16, SIZE * SIZE
    sigma = uneven(1, SIZE, SIZE, low=0.3, high=3.0)
    y = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * (1 + sigma**2).sqrt()
    problem = make_problem(
        Pixels(), Bend(), invsolve.Gaussian(sigma), y.expand(draws, 1, SIZE, SIZE), (1, SIZE, SIZE), Scale()
    )
    images = run_batch(problem, strategy, ChainRandom(1, [(0, s) for s in range(draws)])).images.flatten(1)
    variance = (sigma**2 / (1 + sigma**2)).flatten()
    off = float(((images.mean(0) - variance * (y / sigma**2).flatten()) / variance.sqrt()).square().mean().sqrt())
    # The mean of the draws is off by 1 / sqrt(draws), its mean square over the pixels by sqrt(2 / pixels) of itself.
    assert off <= math.sqrt(strategy.mean_error**2 + (1 + 3 * math.sqrt(2 / pixels)) / draws)
    low, high = strategy.std_ratio
    width, error = float((images.var(0).mean() / variance.mean()).sqrt()), 3 / math.sqrt(pixels * (draws - 1))
    assert low * (1 - error) <= width <= high * (1 + error)


@pytest.mark.parametrize(
    ("sigma", "line"),
    [
        (
            torch.ones(4),
            r"sigma \(4,\) does not broadcast against y \(3, 1, 8, 8\): give one number, one per item \(3, 1, 1, 1\)",
        ),
        (torch.ones(2, 1, 1, 1), r"sigma \(2, 1, 1, 1\) does not broadcast"),
        (
            torch.ones(SIZE).index_fill(0, torch.tensor([2]), 0.0),
            "sigma is 0 for some measured entries and not for others",
        ),
        (torch.tensor([1.0, math.inf]), "sigma must be >= 0 and finite, got inf"),
        (torch.tensor([1.0, math.nan]), "sigma must be >= 0 and finite, got nan"),
        (torch.tensor([1j]), "sigma must be real numbers, got complex64"),
    ],
)
def test_noise_that_does_not_fit_is_one_line(sigma: Tensor, line: str) -> None:
    operator, prior = invsolve.operator("blur", sigma=1.0), invsolve.load_prior("gaussian-field", size=SIZE)
    with pytest.raises(invsolve.UserError, match=line) as caught:
        invsolve.reconstruct(
            torch.zeros(3, 1, SIZE, SIZE), operator, prior=prior, noise=invsolve.Gaussian(sigma), strategy="dds"
        )
    assert "\n" not in str(caught.value)


def test_noise_of_zero_everywhere_in_an_item_stays_exact_beside_others() -> None:
    operator, y, shape = data_of("inpainting")
    sigma = torch.stack([torch.zeros(1, SIZE, SIZE), uneven(1, SIZE, SIZE)]).double()
    problem = make_problem(None, operator, invsolve.Gaussian(sigma), y, shape, Scale())
    assert float(torch.as_tensor(problem.sigma).flatten()[0]) == 0
    torch.testing.assert_close(problem.y[0], y[0])
