"""Policies: their orders, their scores against closed forms, and how near the greedy optimum their choices come."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import invsolve
from invsolve import policy, registry
from invsolve.contracts.acquisition import Knowledge, Policy
from invsolve.errors import UserError
from tests.support.acquisition import SIGMA, Columns, bench

KNOWN: dict[str, Any] = registry.available("policy")
ADAPTIVE = [name for name, cls in KNOWN.items() if cls.particles]
#: Those that have an order for columns.
FIXED = [name for name, cls in KNOWN.items() if not cls.particles and not cls.covariance and name != "radial"]


def all_of(chosen: Policy, groups: int, at_once: int) -> list[int]:
    order: list[int] = []
    acquired = torch.zeros(groups, dtype=torch.bool)
    while not acquired.all():
        picks = chosen.ask(Knowledge(Columns(groups), acquired, torch.ones(groups, dtype=torch.float64), 3), at_once)
        order += picks
        acquired[list(picks)] = True
    return order


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_order_has_every_group_once_however_many_are_asked_for(name: str) -> None:
    for groups in (1, 2, 7, 12, 64):
        order = all_of(policy(name), groups, 1)
        assert sorted(order) == list(range(groups))
        assert all_of(policy(name), groups, 5) == order


def test_orders_that_are_known() -> None:
    assert all_of(policy("centre-out"), 5, 1) == [2, 1, 3, 0, 4]
    assert all_of(policy("uniform"), 8, 1) == [0, 4, 2, 6, 1, 5, 3, 7]
    # Multiples of the golden ratio of 8 groups: 0, 4.94, 1.89, 6.83, 3.78, ...
    assert all_of(policy("golden-angle"), 8, 1)[:5] == [0, 4, 1, 6, 3]


def test_variable_density_follows_its_weights() -> None:
    groups, draws = 16, 2000
    weights = (1 - (np.abs(np.arange(groups) - groups // 2) / (groups // 2 + 1))) ** 3.0
    counts = np.zeros(groups)
    blank = torch.zeros(groups, dtype=torch.bool)
    for seed in range(draws):
        counts[policy("variable-density").ask(Knowledge(Columns(groups), blank, torch.ones(groups), seed), 1)[0]] += 1
    expected = draws * weights / weights.sum()
    # The first pick is one multinomial draw; Pearson's statistic has groups - 1 degrees of freedom, sd sqrt(2 dof).
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < (groups - 1) + 4 * math.sqrt(2 * (groups - 1))


def test_scores_of_many_gaussian_particles_are_the_closed_forms() -> None:
    # Two groups of two entries each, with covariances of their own, in units of the noise's variance.
    covariances = [torch.tensor([[2.0, 0.5], [0.5, 1.0]]), torch.tensor([[0.3, 0.0], [0.0, 0.1]])]
    count = 3000
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat(
        [
            torch.randn(count, 2, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(c.double()).T
            for c in covariances
        ],
        1,
    )
    index = torch.tensor([0, 0, 1, 1])
    deviations = (rows - rows.mean(0)) / (count - 1) ** 0.5
    eigen = [torch.linalg.eigvalsh(c.double()) for c in covariances]
    # Relative standard error of a variance from N draws is sqrt(2 / N); five of them.
    bound = 5 * math.sqrt(2 / count)
    knowledge = Knowledge(Columns(2), torch.zeros(2, dtype=torch.bool), torch.ones(2), 0)
    information = KNOWN["information"]().score(deviations, index, knowledge)
    for group, values in enumerate(eigen):
        assert float(information[group]) == pytest.approx(float((1 + values).log().sum() / 2), rel=bound)
        variance = KNOWN["variance"]().score(deviations, index, knowledge)[group]
        assert float(variance) == pytest.approx(float(values.sum()), rel=bound)
    width = math.sqrt(sum(2 * float(v.sum()) for v in eigen) / 2)
    entropy = KNOWN["entropy"]().score(deviations[:1000] * (2999 / 999) ** 0.5, index, knowledge)
    for group, values in enumerate(eigen):
        # -E ln E' exp(-|x - x'|^2 / 2 w^2) of x, x' ~ N(0, C).
        exact = ((1 + values / width**2).log() / 2 + values / (width**2 + values) / 2).sum()
        assert float(entropy[group]) == pytest.approx(float(exact), rel=5 * math.sqrt(2 / 1000))


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("budget", [2, 3, 6])
def test_columns_bring_nearly_the_information_of_the_greedy_optimum(name: str, budget: int) -> None:
    case = bench(Columns())
    session = invsolve.acquire(
        case.operator, case.prior, noise=invsolve.Gaussian(SIGMA), policy=name, budget=budget, particles=16, seed=1
    )
    for _ in session.rounds(case.measure):
        pass
    assert len(session.acquired) == budget
    assert case.information(session.acquired) >= 0.98 * case.information(case.greedy(budget))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [10, 25])
def test_pixels_bring_nearly_the_information_of_the_greedy_optimum(budget: int) -> None:
    case = bench(invsolve.operator("inpainting", fraction=1.0, image_size=12))
    session = invsolve.acquire(
        case.operator, case.prior, noise=invsolve.Gaussian(SIGMA), policy="entropy", budget=budget, particles=32, seed=1
    )
    for _ in session.rounds(case.measure):
        pass
    assert case.information(session.acquired) >= 0.98 * case.information(case.greedy(budget))


def test_groups_of_one_round_are_conditioned_on_one_another() -> None:
    # Two groups that say the same, and a third that is a little less uncertain: the third is worth more than the twin.
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    predicted = torch.stack([3 * a, 3 * a, 2.9 * b], 1).view(200, 1, 1, 3)
    knowledge = Knowledge(
        Columns(3),
        torch.zeros(3, dtype=torch.bool),
        torch.ones(3, dtype=torch.float64),
        0,
        predicted.expand(-1, 1, 3, 3),
    )
    # AdaSense takes the largest scores, as published.
    for name in set(ADAPTIVE) - {"adasense"}:
        assert 2 in policy(name).ask(knowledge, 2)


def test_cost_is_what_a_group_is_divided_by() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(200, 1, 2, 2, generator=generator, dtype=torch.float64)
    costs = torch.tensor([1.0, 10.0], dtype=torch.float64)
    for name in ADAPTIVE:
        knowledge = Knowledge(Columns(2), torch.zeros(2, dtype=torch.bool), costs, 0, predicted)
        assert list(policy(name).ask(knowledge, 1)) == [0]


def test_unknown_policies_and_parameters_are_refused() -> None:
    with pytest.raises(UserError, match="unknown policy 'entropie'"):
        policy("entropie")
    with pytest.raises(UserError, match=r"policy 'entropy'.*depth"):
        policy("entropy", depth=3)
