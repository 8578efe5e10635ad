"""Every registered policy: the conformance kit, operators for which each fixed order makes sense, and the two exact ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import registry, testing
from invsolve.contracts.acquisition import Knowledge
from invsolve.errors import UserError
from invsolve.registry.check import instances
from tests.support.acquisition import SIGMA, Columns, bench

KNOWN: dict[str, Any] = registry.available("policy")


def order(name: str, operator: invsolve.Operator, count: int, seed: int = 3, **parameters: Any) -> list[int]:
    assert isinstance(operator, invsolve.MaskableOperator)
    groups = operator.groups
    blank = torch.zeros(groups, dtype=torch.bool)
    knowledge = Knowledge(operator, blank, torch.ones(groups, dtype=torch.float64), seed)
    return list(invsolve.policy(name, **parameters).ask(knowledge, count))


@pytest.mark.parametrize("name", KNOWN)
def test_the_kit_finds_nothing(name: str) -> None:
    for policy in instances(KNOWN[name], "policy", name):
        report = testing.check_policy(policy)
        assert report, report


@pytest.mark.parametrize("wrong", ["twice", "acquired", "torch", "changes"])
def test_the_kit_finds_what_is_wrong(wrong: str) -> None:
    class Wrong(invsolve.Policy):
        name = "wrong"

        def ask(self, knowledge: Knowledge, count: int) -> list[int]:
            open_ = (~knowledge.acquired).nonzero().flatten().tolist()
            if wrong == "torch":
                open_ = [open_[int(torch.randint(len(open_), ()))]] if open_ else []
            if wrong == "changes":
                knowledge.acquired[:] = True
            return {"twice": open_[:1] * 2, "acquired": [0]}.get(wrong, open_[:count])

    assert not testing.check_policy(Wrong())


def test_orders_fit_the_operators_groups() -> None:
    lines = invsolve.operator("mri", image_size=8)
    points: Any = invsolve.operator("mri", image_size=[8, 8], acceleration=2, mask="poisson-disc", centre_fraction=0.0)
    pixels = invsolve.operator("inpainting", fraction=1.0, image_size=5)
    movie = invsolve.operator("mri-cine", image_size=[3, 4, 6])
    angles = invsolve.operator("ct", image_size=8, angles=10)
    rows = invsolve.operator("compressive", image_size=4, fraction=1.0)
    assert order("centre-out", lines, 3) == [4, 3, 5]
    # The middle pixel, then its four neighbours in the order of their numbers.
    assert order("centre-out", pixels, 5) == [12, 7, 11, 13, 17]
    # The middle line of each frame, then the lines beside it.
    assert order("centre-out", movie, 4) == [3, 9, 15, 2]
    assert len(set(order("radial", points, points.groups))) == points.groups
    # The first spoke is the middle row, from the middle.
    assert order("radial", pixels, 5) == [12, 11, 13, 10, 14]
    refused = {
        "centre-out": (angles, rows),
        "variable-density": (angles, rows),
        "uniform": (rows,),
        "poisson-disc": (rows,),
    }
    refused |= {"radial": (lines, angles, rows), "golden-angle": (rows, pixels)}
    for name, operators in refused.items():
        for operator in operators:
            with pytest.raises(UserError, match=f"policy '{name}' makes no sense here"):
                order(name, operator, 1)
    for name in ("random", "uniform", "poisson-disc", "golden-angle"):
        assert sorted(order(name, angles, 10)) == list(range(10))


def test_a_poisson_disc_order_keeps_its_distance() -> None:
    pixels = invsolve.operator("inpainting", fraction=1.0, image_size=16)
    chosen = order("poisson-disc", pixels, 40, growth=0.0)
    places = np.array([divmod(group, 16) for group in chosen])
    away = np.linalg.norm(places[:, None] - places, axis=-1)[~np.eye(40, dtype=bool)].min()
    # Discs of radius r that fill the plane at random cover it with a density of 0.55 / (pi r^2 / 4) (random sequential addition).
    assert away >= 0.7 * math.sqrt(0.547 * 4 * 256 / (math.pi * 40))
    # By chance alone the nearest two of 40 would be neighbours.
    at_random = np.array([divmod(group, 16) for group in order("random", pixels, 40)])
    assert np.linalg.norm(at_random[:, None] - at_random, axis=-1)[~np.eye(40, dtype=bool)].min() < away
    # With growth the middle is denser.
    grown = np.array([divmod(group, 16) for group in order("poisson-disc", pixels, 40, growth=4.0)])
    assert np.linalg.norm(grown - 8, axis=1).mean() < np.linalg.norm(places - 8, axis=1).mean()


class Mixing(invsolve.MaskableOperator):
    """Three groups of rows that are not orthonormal, complex."""

    name = "mixing"

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(6, 8, generator=generator, dtype=torch.complex128)
        self.group_index = torch.arange(6) // 2
        self.image_shape, self.complex_image = (1, 2, 4), True

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(self.matrix.dtype) @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y.to(self.matrix.dtype) @ self.matrix.conj()).view(-1, 1, 2, 4)


def test_adasense_takes_the_rows_that_capture_most_of_the_covariance() -> None:
    operator = Mixing()
    images = torch.randn(9, 1, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.complex128)
    blank = torch.zeros(3, dtype=torch.bool)
    knowledge = Knowledge(operator, blank, torch.ones(3, dtype=torch.float64), 0, operator(images))
    away = (images - images.mean(0)).flatten(1).numpy()
    captured = []
    for group in range(3):
        # Coefficients in an orthonormal basis of what the rows measure, by singular values.
        basis = np.linalg.svd(operator.matrix[operator.group_index == group].numpy(), full_matrices=False)[2]
        captured.append((np.abs(away @ basis.T) ** 2).sum())
    assert list(invsolve.policy("adasense").ask(knowledge, 3)) == np.argsort(captured)[::-1].tolist()


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_gaussian_optimum_is_the_greedy_one(at_once: int) -> None:
    case = bench(Columns())
    session = invsolve.acquire(
        case.operator,
        case.prior,
        noise=invsolve.Gaussian(SIGMA),
        policy="gaussian-optimal",
        budget=6,
        at_once=at_once,
        particles=2,
    )
    for _ in session.rounds(case.measure):
        pass
    chosen, greedy = session.acquired, case.greedy(6)
    # Where two are alike by symmetry, rounding chooses; what they bring is the same.
    for k in range(1, 7):
        assert case.information(chosen[:k]) == pytest.approx(case.information(greedy[:k]), rel=1e-6)


def test_the_gaussian_optimum_needs_a_covariance() -> None:
    prior = invsolve.load_prior("gaussian-mixture", means=torch.zeros(1, 1, 12, 12))
    session = invsolve.acquire(Columns(), prior, noise=invsolve.Gaussian(SIGMA), policy="gaussian-optimal", budget=2)
    with pytest.raises(UserError, match=r"has no covariance\(\)"):
        session.ask()


def test_forms_of_the_entropy_agree_where_the_mixture_is_wide() -> None:
    deviations = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = Columns(5)
    knowledge = Knowledge(operator, torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.float64), 0)
    index = torch.arange(10) % 5
    cls = KNOWN["entropy"]
    entropy = cls(width=1e3).score(deviations, index, knowledge)
    pairwise = cls(width=1e3, form="pairwise").score(deviations, index, knowledge)
    assert torch.allclose(entropy, pairwise, rtol=1e-4)
    # Beyond that limit: (1/N) sum_i ln (1/N) sum_j exp(+d_ij^2 / 2 width^2), written out.
    published = cls(form="pairwise").score(deviations, index, knowledge)
    rows = (deviations * 5**0.5).numpy().reshape(6, 2, 5)
    squared = ((rows[:, None] - rows) ** 2).sum(2)
    expected = np.log(np.exp(squared / (2 * squared.mean())).mean(1)).mean(0)
    assert np.allclose(published.numpy(), expected)


def test_neighbours_are_suppressed() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(400, 1, 9, 9, generator=generator, dtype=torch.float64)
    predicted[..., 4] *= 3
    predicted[..., 5] *= 2.9
    predicted[..., 0] *= 2
    ones = torch.ones(9, dtype=torch.float64)
    knowledge = Knowledge(Columns(9), torch.zeros(9, dtype=torch.bool), ones, 0, predicted)
    assert list(invsolve.policy("variance", together="alone").ask(knowledge, 2)) == [4, 5]
    # Beside the first pick the score falls by 1 - exp(-1/2) = 0.39, below that of a column further off.
    assert list(invsolve.policy("variance", together="suppressed").ask(knowledge, 2)) == [4, 0]
