"""ADS against a transcription of its paper's formulas, and what it acquires, uses and stores."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import api
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.problem import Problem
from invsolve.contracts.result import Reconstruction
from invsolve.contracts.scale import Scale
from invsolve.engine.batch import run_batch
from invsolve.engine.options import Options
from invsolve.numerics.random import ChainRandom
from invsolve.testing.exact import exact_posterior
from tests.support.types import offered

ITEMS, PARTICLES = 2, 4
CHAINS = [(item, particle) for item in range(ITEMS) for particle in range(PARTICLES)]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Two items of four particles, each with data of its own; 32 groups of one pixel each."""
    base = exact_posterior(samples=ITEMS * PARTICLES, size=8, dtype=torch.float64).problem
    factor = torch.tensor([1.0, -2.0], dtype=torch.float64).repeat_interleave(PARTICLES).view(-1, 1, 1, 1)
    return replace(base, y=base.y * factor, samples_per_item=PARTICLES)


def entropy(y: Tensor, width: float) -> list[float]:
    """H_l = -(1/N) sum_i ln (1/N) sum_j exp(-d_ij,l^2 / (2 width^2)) of each number of y (particles, numbers)."""
    count = len(y)
    return [
        -sum(
            math.log(
                sum(math.exp(-(float(y[i, group] - y[j, group]) ** 2) / (2 * width**2)) for j in range(count)) / count
            )
            for i in range(count)
        )
        / count
        for group in range(y.shape[1])
    ]


def rms_distance(y: Tensor) -> float:
    """Root mean square of y_i - y_j (particles, numbers), over all pairs and numbers."""
    squares = [float(((a - b) ** 2).mean()) for a in y for b in y]
    return math.sqrt(sum(squares) / len(squares))


def test_the_update_and_the_choice_are_the_papers_in_vp_coordinates(problem: Problem) -> None:
    steps, budget, omega = 12, 5, 0.7
    strategy = invsolve.strategy("ads", steps=steps, budget=budget, omega=omega, window=(0.0, 0.5), width=0.8)
    levels = strategy.schedule(problem).tolist()
    bars = [1 / (1 + sigma**2) for sigma in levels]
    where = problem.operator.measured().flatten().nonzero().flatten()
    due = [math.floor(budget * min(k / 6, 1.0) + 1e-9) for k in range(steps + 1)]
    for item in range(ITEMS):
        mine = slice(item * PARTICLES, (item + 1) * PARTICLES)
        y = problem.y[mine].flatten(1)[:, where]
        rng = ChainRandom(3, CHAINS)
        x = (rng.at(0).normal(problem.zeros()) * levels[0] * math.sqrt(bars[0]))[mine]
        acquired = torch.zeros(len(where), dtype=torch.float64)
        for k in range(steps):
            bar, after = bars[k], bars[k + 1]
            x = x.detach().requires_grad_()
            x0 = problem.prior.denoise(x / math.sqrt(bar), torch.tensor(levels[k], dtype=x.dtype))
            seen = x0.flatten(1)[:, where]
            # One Frobenius norm over all particles; its gradient where it is zero counts as zero.
            norm = (acquired * (y - seen)).square().sum().sqrt()
            gradient = torch.zeros_like(x)
            if acquired.any():
                (gradient,) = torch.autograd.grad(norm, x)
            x, x0, seen = x.detach(), x0.detach(), seen.detach()
            noise = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
            x = math.sqrt(after) * x0 + math.sqrt(1 - after) * noise - omega / problem.operator_norm() * gradient
            for _ in range(due[k + 1] - due[k]):
                score = torch.tensor(entropy(seen, 0.8 * rms_distance(seen)), dtype=torch.float64)
                acquired[score.masked_fill(acquired > 0, -math.inf).argmax()] = 1.0
        ours = run_batch(problem, strategy, ChainRandom(3, CHAINS))
        torch.testing.assert_close(ours.images[mine], x, atol=1e-7, rtol=0)
        order = ours.diagnostics["acquired_at"][mine]
        assert torch.equal((order[:, : len(where)] >= 0).double(), acquired.expand(PARTICLES, -1))
        assert bool((order[:, len(where) :] == -1).all())


def test_more_of_the_same_particles_are_each_pulled_less() -> None:
    # The common norm of n equal particles is sqrt(n) times one's, so that each gets 1 / sqrt(n) of the pull.
    strategy = invsolve.strategy("ads", initial=tuple(range(32)), budget=32)
    pulls = []
    for count in (4, 16):
        exact = exact_posterior(samples=count, size=8, dtype=torch.float64)
        problem = replace(exact.problem, samples_per_item=count)
        x = torch.full_like(problem.zeros(), 0.1)
        order = torch.zeros(count, 32, dtype=torch.int32)
        rng = ChainRandom(0, [(0, 0)] * count)
        with torch.no_grad():
            moved = strategy.step(problem, {"x": x.clone(), "order": order}, 0.5, 0.5, rng.at(1))["x"]
        pulls.append(float((moved - x)[0].norm()))
    assert pulls[1] == pytest.approx(pulls[0] / 2)


@pytest.mark.parametrize("kind", ["mixture", "variance"])
def test_the_score_of_a_group_is_the_papers_over_its_entries(kind: str) -> None:
    operator = invsolve.operator("mri", image_size=6)
    assert isinstance(operator, MaskableOperator)
    draws = torch.randn(3, 1, 6, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    problem = Problem(None, operator, invsolve.Gaussian(0.1), draws, (1, 6, 6), samples_per_item=3)
    score = offered(invsolve.strategy("ads", entropy=kind, width=0.7)).score(problem, draws, 6)
    columns = draws[:, 0]  # (particles, rows, columns): a group is a column, rows and both parts of a number together
    squared = [[[float((a[:, c] - b[:, c]).abs().square().sum()) for b in columns] for a in columns] for c in range(6)]
    mean = sum(sum(sum(row) for row in group) for group in squared) / (6 * 9)
    width = 0.7 * math.sqrt(mean)
    wanted = []
    for group in squared:
        if kind == "variance":
            wanted.append(sum(map(sum, group)) / 9)
        else:
            logs = [math.log(sum(math.exp(-d / (2 * width**2)) for d in row) / 3) for row in group]
            wanted.append(-sum(logs) / 3)
    torch.testing.assert_close(score, torch.tensor([wanted], dtype=torch.float64))


@pytest.mark.parametrize("name", ["ct", "mri"])
def test_the_stored_baseline_is_of_what_was_acquired(name: str) -> None:
    operator = invsolve.operator(name, image_size=8, **({"angles": 8} if name == "ct" else {}))
    prior = invsolve.load_prior("gaussian-field", size=8)
    truth = prior.sample(ChainRandom(3, [(i, 0) for i in range(2)]), torch.zeros(1))
    y = invsolve.simulate(truth, operator, invsolve.Gaussian(0.01))
    measurement = invsolve.Measurement(y, operator, invsolve.Gaussian(0.01))
    run = api.plan(measurement, prior, invsolve.strategy("ads", steps=12, budget=3), Options(samples=2, scale=Scale()))
    run.linear_too = True
    whole = api.Memory(2)
    run.execute(whole)
    order = whole.stack("acquired_at")[:, 0]
    for item in range(2):
        problem = run.problem([(item, 0)])
        kept = problem.maskable.group_mask(order[item : item + 1] >= 0).expand(problem.y.shape)
        # (A' M A + rho) x = A' M y, written out; rho as `LinearOperator.baseline` states it.
        unit = torch.eye(64).view(64, 1, 8, 8)
        matrix = torch.view_as_real(problem.operator(unit) + 0j)
        matrix = (matrix * kept[0][..., None]).flatten(1).double().T
        data = torch.view_as_real(problem.y[0] + 0j).flatten().double()
        rho = max((0.01 / 0.5) ** 2, 1e-6 * problem.operator_norm() ** 2)
        system = matrix.T @ matrix + rho * torch.eye(64, dtype=torch.float64)
        right = matrix.T @ data
        solution = whole.stack("linear")[item].flatten().double()
        # Conjugate gradients stop at a residual of 1e-5.
        assert float((system @ solution - right).norm() / right.norm()) < 3e-5


class TestADS:
    def run(self, **settings: Any) -> tuple[Reconstruction, invsolve.Operator]:
        operator = invsolve.operator("mri", image_size=16)
        prior = invsolve.load_prior("gaussian-field", size=16, std=0.3)
        truth = prior.sample(ChainRandom(3, [(i, 0) for i in range(2)]), torch.zeros(1))
        y = invsolve.simulate(truth, operator, invsolve.Gaussian(0.01))
        strategy = invsolve.strategy("ads", **{"steps": 120, "budget": 6, **settings})
        rec = invsolve.reconstruct(y, operator, prior, noise=invsolve.Gaussian(0.01), strategy=strategy, samples=6)
        return rec, operator

    @pytest.mark.discrepant(*(f"settings{k}" for k in (0, 2, 3, 4, 5)))  # all but the whole budget
    @pytest.mark.parametrize(
        "settings",
        [{}, {"budget": 16}, {"budget": 1}, {"initial": (7, 8, 9)}, {"window": (0.1, 0.3)}, {"entropy": "variance"}],
    )
    def test_the_budget_is_met_exactly_and_no_group_twice(self, settings: dict) -> None:
        rec, _ = self.run(**settings)
        order = rec.diagnostics["acquired_at"]
        budget = settings.get("budget", 6)
        assert order.shape == (2, 6, 16)
        assert ((order >= 0).sum(-1) == budget).all()
        for group in settings.get("initial", ()):
            assert (order[..., group] == 0).all()

    @pytest.mark.discrepant
    def test_particles_share_a_mask_and_items_do_not_have_to(self) -> None:
        rec, _ = self.run()
        order = rec.diagnostics["acquired_at"]
        assert (order == order[:, :1]).all()
        assert not (order[0] == order[1]).all()

    @pytest.mark.discrepant
    def test_it_uses_only_what_it_acquired(self) -> None:
        # What is never acquired may be anything, even wrong by orders of magnitude.
        operator = invsolve.operator("mri", image_size=16)
        prior = invsolve.load_prior("gaussian-field", size=16, std=0.3)
        truth = prior.sample(ChainRandom(3, [(0, 0)]), torch.zeros(1))
        y = invsolve.simulate(truth, operator, invsolve.Gaussian(0.01))
        strategy = invsolve.strategy("ads", steps=100, budget=3, initial=(7, 8, 9))
        spoiled = y.clone()
        spoiled[..., [0, 1, 15]] = 1e4
        runs = [
            invsolve.reconstruct(
                v, operator, prior, noise=invsolve.Gaussian(0.01), strategy=strategy, samples=2
            ).samples
            for v in (y, spoiled)
        ]
        assert torch.equal(*runs)

    @pytest.mark.discrepant
    def test_the_first_choice_is_where_the_prior_is_most_uncertain(self) -> None:
        # k-space columns of a stationary field are independent: their variance is the spectrum, largest at the centre.
        rec, _ = self.run(budget=1, window=(0.6, 0.7))
        chosen = rec.diagnostics["acquired_at"][:, 0].argmax(-1)
        assert ((chosen - 8).abs() <= 1).all()

    @pytest.mark.discrepant
    def test_more_measurements_leave_less_uncertainty(self) -> None:
        spread = [float(self.run(budget=b, window=(0.0, 0.4))[0].std.mean()) for b in (2, 6, 14)]
        assert spread[0] > spread[1] > spread[2]

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"budget": 17}, "budget 17"),
            ({"initial": (99,)}, "initial"),
            ({"budget": 1, "initial": (1, 2)}, "budget 1"),
        ],
    )
    def test_impossible_budgets_are_refused(self, settings: dict, text: str) -> None:
        with pytest.raises(invsolve.UserError, match=text):
            self.run(**settings)

    def test_one_particle_is_refused(self) -> None:
        operator = invsolve.operator("inpainting", fraction=0.5, image_size=8)
        prior = invsolve.load_prior("gaussian-field", size=8)
        with pytest.raises(invsolve.UserError, match="samples"):
            invsolve.reconstruct(torch.zeros(1, 1, 8, 8), operator, prior, noise=invsolve.Gaussian(0.1), strategy="ads")
