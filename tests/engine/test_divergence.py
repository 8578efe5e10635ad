"""A run that diverged, or whose samples are none of the prior's images, is never passed over in silence."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import registry
from invsolve.api.discrepancy import DiscrepancyWarning
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import State
from invsolve.numerics.random import ChainRandom
from tests.support.types import Cli

SIZE = 12
SIGMA = 0.1


@pytest.fixture(scope="module")
def prior() -> invsolve.Prior:
    return invsolve.load_prior("gaussian-field", size=SIZE, std=0.4)


class Squared(invsolve.Operator):
    """y = (B x)^2, B a blur: a magnitude of which only the square is seen."""

    image_shape = (1, SIZE, SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.blur = invsolve.operator("blur", sigma=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(x) ** 2


def sabotaged(name: str, factor: float) -> invsolve.Strategy:
    """A registered strategy, short, whose result is multiplied."""
    cls: Any = registry.find("strategy", name)

    class Wild(cls):
        def result(self, problem: Problem, state: State) -> Tensor:
            image: Tensor = super().result(problem, state)
            return factor * (1 + image)

    given = {"steps": 4} if "steps" in cls.__dataclass_fields__ else {}
    given |= {"particles": 2} if "particles" in cls.__dataclass_fields__ else {}
    made: invsolve.Strategy = Wild(**given)
    return made


# Few members are quick, and are told to be few.
@pytest.mark.filterwarnings("ignore:strategy 'enkg'")
@pytest.mark.parametrize("factor", [1e3, 1e30])
@pytest.mark.parametrize("name", registry.available("strategy"))
def test_a_strategy_that_ends_far_out_is_told(name: str, factor: float, prior: invsolve.Prior) -> None:
    operator = invsolve.operator("inpainting", fraction=0.5, image_size=SIZE)
    y = invsolve.simulate(prior.sample(ChainRandom(0, [(0, 0)]), torch.zeros(1)), operator, invsolve.Gaussian(SIGMA))
    with pytest.warns(DiscrepancyWarning) as told:
        rec = invsolve.reconstruct(
            y, operator, prior, noise=invsolve.Gaussian(SIGMA), strategy=sabotaged(name, factor), samples=2
        )
    assert "the strategy diverged" in next(str(w.message) for w in told if w.category is DiscrepancyWarning)
    assert "not judged" not in rec.diagnostics["discrepancy_report"]


def test_a_diverging_data_term_is_told_with_the_parameter_that_made_it(prior: invsolve.Prior) -> None:
    truth = prior.sample(ChainRandom(0, [(0, 0)]), torch.zeros(1))
    y = invsolve.simulate(truth, Squared(), invsolve.Gaussian(0.01))
    dps = invsolve.strategy("dps", steps=40, zeta=30.0)
    with pytest.warns(DiscrepancyWarning, match=r"the strategy diverged: .*its data steps are too long \(lower zeta"):
        rec = invsolve.reconstruct(y, Squared(), prior, noise=invsolve.Gaussian(0.01), strategy=dps, samples=2)
    # The field has a standard deviation of 0.4: five times the four of its range are 8.
    assert float(rec.mean.abs().max()) > 8
    gentle = invsolve.strategy("dps", steps=40, zeta=0.1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        calm = invsolve.reconstruct(y, Squared(), prior, noise=invsolve.Gaussian(0.01), strategy=gentle, samples=2)
    assert not any("diverged" in str(w.message) for w in told)
    assert float(calm.mean.abs().max()) < 2


def test_an_infinite_residual_is_no_unknown_one(prior: invsolve.Prior) -> None:
    operator = invsolve.operator("inpainting", fraction=1.0, image_size=SIZE)
    y = torch.zeros(3, 1, SIZE, SIZE)

    def ratio(sigma: float, value: float) -> list[float]:
        posed = make_problem(prior, operator, invsolve.Gaussian(sigma), y, (1, SIZE, SIZE), Scale())
        numbers: list[float] = posed.discrepancy(torch.full_like(y, value))[0].tolist()
        return numbers

    assert ratio(0.5, 1.0) == pytest.approx([2.0] * 3)
    assert ratio(0.5, 1e38) == [math.inf] * 3
    assert ratio(0.5, math.nan) == [math.inf] * 3
    assert all(math.isnan(value) for value in ratio(0.0, 1.0))


def test_where_images_lie_in_the_priors_range() -> None:
    y = torch.zeros(2, 1, SIZE, SIZE)
    images = torch.zeros_like(y)
    images[1, 0, 0, 0], images[1, 0, 0, 1] = 3.0, -1.0

    def reach(prior: invsolve.Prior) -> tuple[list[float], list[float]]:
        operator = invsolve.operator("blur", sigma=1.0)
        posed = make_problem(prior, operator, invsolve.Gaussian(0.1), y, (1, SIZE, SIZE), Scale())
        far, span = posed.reach(images)
        return far.tolist(), span.tolist()

    # Four standard deviations of 0.5 about a mean of 1: from -1 to 3.
    far, span = reach(invsolve.load_prior("gaussian-field", size=SIZE, std=0.5, mean=1.0))
    assert far == pytest.approx([0.5, 1.0], rel=1e-5)
    assert all(map(math.isnan, span))
    # A stated range is -1 to 1.
    far, span = reach(invsolve.load_prior("natural"))
    assert far == pytest.approx([0.0, 3.0])
    assert span == pytest.approx([0.0, 2.0])


def test_the_command_tells_in_json_that_is_json(images: Path, tmp_path: Path, cli: Cli) -> None:
    plugin, scan, out = tmp_path / "wild.py", tmp_path / "scan.h5", tmp_path / "recon.h5"
    plugin.write_text(
        '''"""A strategy that diverges."""
from dataclasses import dataclass

from invsolve import Strategy, hookimpl


@dataclass(frozen=True)
class Wild(Strategy):
    """Diverges."""

    name = "wild"
    needs = ()

    def schedule(self, problem):
        import torch

        return torch.zeros(2)

    def init(self, problem, rng):
        return {"x": problem.zeros()}

    def step(self, problem, state, sigma, sigma_next, rng):
        return {"x": state["x"] + 1e30}


@hookimpl
def invsolve_strategies():
    return {"wild": Wild}
'''
    )
    cli("simulate", images, "-o", scan, "--operator", "inpainting", "--set", "fraction=0.5")
    code, text, err = cli("reconstruct", scan, "-o", out, "--strategy", "wild", "--plugin", plugin, "--json")
    assert code == 0, err
    assert "warning: the strategy diverged" in err

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    told = json.loads(text, parse_constant=refuse)["discrepancy"]
    assert told["ratio"] is None
    assert "diverged" in told["warning"]
    with h5py.File(out) as file:
        assert (file["diagnostics/discrepancy"][:] == math.inf).all()
    code, _, err = cli("report", out, "-o", tmp_path / "page.html", "--plugin", plugin)
    assert code == 0, err
    assert "The strategy diverged" in (tmp_path / "page.html").read_text()
