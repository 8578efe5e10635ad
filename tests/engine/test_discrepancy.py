"""The residual of the samples against the noise: exact draws fit it, wrong noise and weak strategies are told."""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import pytest
import torch

import invsolve
from invsolve import registry
from invsolve.api.discrepancy import DiscrepancyWarning
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics.random import ChainRandom
from tests.support import bounds
from tests.support.types import Cli, linear_operator

SIZE = 12
SIGMA = 0.1


@pytest.fixture(scope="module")
def prior() -> invsolve.Prior:
    return invsolve.load_prior("gaussian-field", size=SIZE, std=0.4)


@pytest.fixture(scope="module")
def operator() -> invsolve.Operator:
    return invsolve.operator("inpainting", fraction=0.5, image_size=SIZE)


@pytest.fixture(scope="module")
def y(prior: invsolve.Prior, operator: invsolve.Operator) -> torch.Tensor:
    truth = prior.sample(ChainRandom(0, [(i, 0) for i in range(6)]), torch.zeros(1))
    return invsolve.simulate(truth, operator, invsolve.Gaussian(SIGMA), seed=1)


def run(
    y: torch.Tensor,
    operator: LinearOperator,
    prior: invsolve.Prior,
    sigma: float = SIGMA,
    strategy: str | invsolve.Strategy = "moment",
    **options: Any,
) -> invsolve.Reconstruction:
    return invsolve.reconstruct(
        y, operator, prior, noise=invsolve.Gaussian(sigma), strategy=strategy, samples=2, **options
    )


def problem(y: torch.Tensor, noise: invsolve.Gaussian, operator: invsolve.Operator) -> Problem:
    return make_problem(None, operator, noise, y, (1, SIZE, SIZE), Scale())


class TestDefinition:
    def test_the_truth_has_ratio_one_within_the_spread(self, operator: invsolve.Operator) -> None:
        truth = torch.randn(400, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        y = operator(truth + SIGMA * noise)
        ratio, numbers = problem(y, invsolve.Gaussian(SIGMA), operator).discrepancy(truth)
        count = int(operator.measured().sum())
        assert numbers.tolist() == pytest.approx([count] * 400)
        assert float(ratio.square().mean()) == pytest.approx(1, abs=2 * bounds.width_error(400, count))
        assert float(ratio.std()) == pytest.approx(1 / math.sqrt(2 * count), rel=bounds.width_error(400))

    def test_complex_data_count_twice(self) -> None:
        mri = invsolve.operator("mri", image_size=SIZE, acceleration=2)
        y = torch.zeros(3, *mri.measurement_shape((1, SIZE, SIZE)), dtype=torch.complex128)
        posed = problem(y, invsolve.Gaussian(0.5), mri)
        ratio, numbers = posed.discrepancy(torch.zeros(3, 1, SIZE, SIZE, dtype=torch.float64))
        assert ratio.tolist() == [0.0] * 3
        assert numbers.tolist() == pytest.approx([posed.dof()] * 3)

    def test_only_what_was_used_counts(self, y: torch.Tensor, operator: invsolve.Operator) -> None:
        posed = problem(y, invsolve.Gaussian(SIGMA), operator)
        used = torch.zeros(y.shape, dtype=torch.bool)
        used[..., :3, :] = True
        ratio, numbers = posed.discrepancy(torch.zeros_like(y), used)
        seen = (operator.measured() & used[0]).sum()
        assert numbers.tolist() == pytest.approx([float(seen)] * len(y))
        expected = y[..., :3, :].flatten(1).norm(dim=1) / (SIGMA * seen.sqrt())
        torch.testing.assert_close(ratio, expected)

    def test_no_noise_is_not_judged(self, y: torch.Tensor, operator: LinearOperator, prior: invsolve.Prior) -> None:
        rec = run(y, operator, prior, sigma=0.0)
        assert "not judged" in rec.diagnostics["discrepancy_report"]


class TestJudgement:
    def test_the_right_noise_fits(self, y: torch.Tensor, operator: LinearOperator, prior: invsolve.Prior) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DiscrepancyWarning)
            rec = run(y, operator, prior)
        assert rec.diagnostics["discrepancy"].shape == (6, 2)
        # A draw from the posterior leaves what the truth leaves, of which there are six.
        error = bounds.width_error(6 + 1, int(operator.measured().sum()))
        assert float(rec.diagnostics["discrepancy"].mean()) == pytest.approx(1, abs=error)
        assert "(accepted: 0.80 to 1.20)" in rec.diagnostics["discrepancy_report"]

    @pytest.mark.parametrize(
        ("stated", "text"),
        [
            (0.3, r"smaller than stated \(sigma 0.3 is stated, 0\.[12]"),
            (0.04, r"larger than stated .*, 0.(09|1)\d* would"),
        ],
    )
    def test_wrong_noise_where_the_prior_leaves_little_free(
        self, operator: LinearOperator, stated: float, text: str
    ) -> None:
        smooth = invsolve.load_prior("gaussian-field", size=SIZE, std=0.4, length=8.0, decay=4.0)
        truth = smooth.sample(ChainRandom(0, [(i, 0) for i in range(4)]), torch.zeros(1))
        y = invsolve.simulate(truth, operator, invsolve.Gaussian(SIGMA), seed=1)
        with pytest.warns(DiscrepancyWarning, match=text):
            run(y, operator, smooth, sigma=stated)

    def test_too_weak_a_strategy_and_its_own_parameters(
        self, y: torch.Tensor, operator: LinearOperator, prior: invsolve.Prior
    ) -> None:
        weak = invsolve.strategy("dps-fitted", steps=40, zeta=0.01)
        with pytest.warns(DiscrepancyWarning, match=r"raise zeta, now 0.01, or take more steps, now 40"):
            rec = run(y, operator, prior, strategy=weak)
        assert rec.diagnostics["discrepancy_report"].startswith("warning: the samples miss the data")

    def test_one_bad_item_among_many(self, y: torch.Tensor, operator: LinearOperator, prior: invsolve.Prior) -> None:
        spoiled = y.clone()
        spoiled[2] += 3 * torch.randn(y.shape[1:], generator=torch.Generator().manual_seed(2)) * operator.measured()
        with pytest.warns(DiscrepancyWarning, match="in 1 of 6 items"):
            run(spoiled, operator, prior)

    def test_few_numbers_excuse_much(self, prior: invsolve.Prior) -> None:
        mask = torch.zeros(SIZE, SIZE)
        mask[0, :3] = 1
        y = torch.full((1, 1, SIZE, SIZE), 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", DiscrepancyWarning)
            run(y, linear_operator("inpainting", mask=mask), prior)

    def test_point_estimates_may_fit_closely(self, y: torch.Tensor, operator: LinearOperator) -> None:
        @dataclass(frozen=True)
        class Copy(Strategy):
            draws: ClassVar[bool] = False

            def schedule(self, problem: Problem) -> torch.Tensor:
                return torch.tensor([1.0, 0.0])

            def init(self, problem: Problem, rng: ChainRandom) -> State:
                return {"x": problem.y.clone()}

            def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
                return state

        class Anything(invsolve.Prior):
            def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
                return x

        with warnings.catch_warnings():
            warnings.simplefilter("error", DiscrepancyWarning)
            rec = run(y, operator, Anything(), strategy=Copy())
        assert float(rec.diagnostics["discrepancy"].max()) == 0

    def test_active_acquisition_is_judged_by_what_it_acquired(
        self, y: torch.Tensor, operator: LinearOperator, prior: invsolve.Prior
    ) -> None:
        # It must pay no heed to pixels that it never saw, however strange.
        everything = linear_operator("inpainting", mask=torch.ones(SIZE, SIZE))
        full = torch.zeros(1, 1, SIZE, SIZE)
        strategy = invsolve.strategy("ads", steps=20, budget=5, initial=(0, 1, 2, 3, 4))
        rec = run(full, everything, prior, strategy=strategy)
        assert rec.diagnostics["discrepancy_dof"].tolist() == [[5.0, 5.0]]


@pytest.mark.parametrize("name", registry.available("strategy"))
def test_strength_names_parameters(name: str) -> None:
    cls: Any = registry.find("strategy", name)
    assert isinstance(cls.data_strength, Mapping)
    assert set(cls.data_strength) <= set(cls.__dataclass_fields__)
    assert set(cls.data_strength.values()) <= {1, 0, -1}


def test_command_tells(images: Path, tmp_path: Path, cli: Cli) -> None:
    scan, out = tmp_path / "scan.h5", tmp_path / "recon.h5"
    cli("simulate", images, "-o", scan, "--operator", "inpainting", "--set", "fraction=0.5", "--noise", "gaussian:0.1")
    with h5py.File(scan) as file:
        size = file["y"].shape[-1]
    assert size == 16
    plugin = tmp_path / "small.py"
    plugin.write_text(
        '"""A prior of the right size."""\n'
        "from invsolve import hookimpl\nfrom invsolve.plugins.priors.analytic.gaussian import GaussianField\n\n\n"
        "class Small(GaussianField):\n"
        '    """A Gaussian field of 16 pixels."""\n'
        "    def __init__(self) -> None:\n        super().__init__(size=16, std=0.5)\n\n\n"
        "@hookimpl\ndef invsolve_priors():\n"
        '    return {"small": Small}\n'
    )
    call = ["reconstruct", scan, "-o", out, "--prior", "small", "--plugin", plugin, "--overwrite"]
    weak = ["--strategy", "dps-fitted", "--set", "steps=20", "--set", "zeta=0.001"]
    code, text, err = cli(*call, *weak, "--json")
    assert code == 0, err
    assert "warning: the samples miss the data" in err
    assert "raise zeta, now 0.001" in err
    assert json.loads(text)["discrepancy"]["ratio"] > 1.2
    code, text, err = cli(*call, "--strategy", "moment", "--samples", 2)
    assert code == 0, err
    assert "residual of the samples" in err
    assert "warning" not in err
