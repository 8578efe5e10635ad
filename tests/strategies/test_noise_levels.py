"""Every strategy at every noise level it takes: few counts and many, Gaussian and Poisson, against quadrature."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import api, registry
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.engine import Options
from invsolve.errors import Unsuited
from invsolve.registry.check import instances
from invsolve.testing.distances import run

SIZE, DRAWS = 6, 16
#: Members of those that state that they take more of them than there are pixels.
ENSEMBLES = {"enkg": 256}
PIXELS = SIZE * SIZE
#: Counts a pixel on average; at the last the noise is a tenth of what the images vary by.
COUNTS = (0.25, 2.5, 25.0, 500.0)


class Pixels(invsolve.Prior):
    """Independent pixels, 5 +- 1."""

    sigma_min, sigma_max = 0.002, 80.0

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x + 5 * sigma**2) / (1 + sigma**2)

    def error(self, sigma: float) -> float:
        return sigma**2 / (1 + sigma**2)


class Everything(MaskableOperator):
    """Each pixel, as a linear operator."""

    image_shape = (1, SIZE, SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.group_index = torch.arange(PIXELS).view(1, SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


class Same(invsolve.Operator):
    """The same physics, not known to be linear."""

    image_shape = (1, SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


#: In which of its two forms the operator is taken, to spare time; at the second level in both.
FORMS: dict[float, invsolve.Operator] = {0.25: Same(), 25.0: Everything(), 500.0: Everything()}


def noise_of(kind: str, counts: float) -> invsolve.Noise:
    """Noise whose standard deviation, at the mean of 10, is that of so many counts."""
    return invsolve.Poisson(counts / 10) if kind == "poisson" else invsolve.Gaussian(10 / math.sqrt(counts))


@cache
def measured(kind: str, counts: float) -> Tensor:
    """2 x + noise, (1, 1, SIZE, SIZE)."""
    x = 5 + torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return invsolve.simulate(x, Same(), noise_of(kind, counts), seed=1)


def quadrature(y: Tensor, noise: invsolve.Noise) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of each pixel, (PIXELS,), by sums over a grid."""
    grid = torch.linspace(0, 12, 6001, dtype=torch.float64)
    data = y.flatten().double()[:, None]
    if isinstance(noise, invsolve.Poisson):
        rate = noise.gain * 2 * grid.clamp_min(1e-12)
        log = noise.gain * data * rate.log() - rate
    else:
        grid = grid - 1  # Gaussian noise lets the image be negative: -1 .. 11, six standard deviations about the mean
        assert isinstance(noise, invsolve.Gaussian)
        log = -((data - 2 * grid) ** 2) / (2 * torch.as_tensor(noise.sigma) ** 2)
    weight = torch.softmax(log - (grid - 5) ** 2 / 2, 1)
    mean = (weight * grid).sum(1)
    return mean, ((weight * grid**2).sum(1) - mean**2).sqrt()


def strategies() -> list[Any]:
    known = registry.available("strategy").items()
    # Without a prior there is no posterior to be held to.
    return [
        pytest.param(made[0], id=name)
        for name, cls in known
        if issubclass(cls, invsolve.Strategy) and "prior" in cls.needs
        for made in [instances(cls, "strategy", name)]
    ]


#: The two levels between, which the others bracket, take as long again.
BETWEEN = [pytest.param(c, marks=pytest.mark.slow) if c in (0.25, 25.0) else c for c in COUNTS]


@pytest.mark.parametrize("counts", BETWEEN)
@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
@pytest.mark.parametrize("strategy", strategies())
def test_a_strategy_keeps_its_claims_at_any_noise_that_it_takes(
    strategy: invsolve.Strategy, kind: str, counts: float
) -> None:
    noise, y = noise_of(kind, counts), measured(kind, counts)
    for operator in (Everything(), Same()) if counts == COUNTS[1] else (FORMS[counts],):
        mean, std = quadrature(y, noise)
        rows = ENSEMBLES.get(strategy.name, DRAWS)
        problem = make_problem(Pixels(), operator, noise, y.expand(rows, *y.shape[1:]), (1, SIZE, SIZE), Scale())
        try:
            outcome = run(strategy, problem, seed=2)
        except Unsuited:
            continue
        images = outcome.images.flatten(1).double()
        if outcome.used is not None:
            # What was not acquired is as the prior knows it.
            known = outcome.used[0].flatten()
            mean, std = torch.where(known, mean, 5.0), torch.where(known, std, 1.0)
        # The mean of DRAWS draws is off by 1 / sqrt(DRAWS), and its mean square over the pixels by sqrt(2 / pixels) of itself.
        chance = (1 + 3 * math.sqrt(2 / PIXELS)) / DRAWS if strategy.draws else 0.0
        off = float(((images.mean(0) - mean) / std).square().mean().sqrt())
        assert off <= math.sqrt(strategy.mean_error**2 + chance), type(operator).__name__
        if strategy.draws:
            # The variance of all draws together has 2 / (PIXELS (DRAWS - 1)) of relative variance.
            width = float((images.var(0).mean() / std.square().mean()).sqrt())
            low, high = strategy.std_ratio
            error = 3 / math.sqrt(2 * PIXELS * (DRAWS - 1))
            assert low * (1 - error) <= width <= high * (1 + error), type(operator).__name__


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_dps_refuses_noise_that_it_would_fit_and_names_what_would_do(kind: str) -> None:
    with pytest.raises(invsolve.UserError) as caught:
        invsolve.reconstruct(measured(kind, 2.5), Same(), prior=Pixels(), strategy="dps", noise=noise_of(kind, 2.5))
    line = str(caught.value)
    assert line.startswith("strategy 'dps' needs noise well below what the prior's images vary by; it is ")
    assert line.endswith(" would do")
    assert "mmps" in line
    assert "\n" not in line
    # sqrt(10 / 0.25) / 2 over a spread of 1, where the noise is known beforehand.
    assert kind == "poisson" or "it is 3.2 of that" in line


def test_low_noise_is_judged_in_network_units() -> None:
    # The prior's images vary by 1000 in physical units: noise of 20 is little, though 20 times their spread in its own.
    y = 1000 * measured("gaussian", 500.0)
    noise, scale = invsolve.Gaussian(1000 * 10 / math.sqrt(500.0)), invsolve.Scale(1000.0, 0.0)
    measurement = invsolve.Measurement(y, Everything(), noise)
    assert api.plan(measurement, Pixels(), "mcg", Options(scale=scale)).strategy.name == "mcg"
    assert float(torch.as_tensor(noise.sigma)) > 100 * Pixels().error(80.0)


def test_low_noise_is_judged_by_the_noisiest_item() -> None:
    y = measured("gaussian", 500.0).expand(2, 1, SIZE, SIZE)
    for levels, refused in (((0.4, 0.4), False), ((0.4, 10.0), True)):
        sigma = torch.tensor(levels).view(2, 1, 1, 1)
        measurement = invsolve.Measurement(y, Everything(), invsolve.Gaussian(sigma))
        if refused:
            with pytest.raises(invsolve.UserError, match=r"needs noise well below .*; it is 5 of that"):
                api.plan(measurement, Pixels(), "dps", Options())
        else:
            api.plan(measurement, Pixels(), "dps", Options())
