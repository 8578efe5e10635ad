"""Bimodal distances: two groups are told from one, points of one Gaussian are not."""

from __future__ import annotations

import math

import pytest
import torch

from invsolve.api import closing
from invsolve.numerics.grouping import grouping, limit
from invsolve.plugins.strategies.mmps import MMPS


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("count", [8, 40, 400])
def test_points_of_one_gaussian_are_one_group(size: int, count: int) -> None:
    assert all(grouping(normal(count, size)) < limit(count) for _ in range(20))


@pytest.mark.parametrize(("size", "count", "apart"), [(1, 40, 10.0), (1, 400, 6.0), (100, 8, 80.0)])
def test_two_groups_are_seen(size: int, count: int, apart: float) -> None:
    points = normal(count, size)
    points[: count // 4, 0] += apart
    assert grouping(points) > limit(count)


def test_the_cut_is_where_two_tight_groups_part() -> None:
    """Six points at -1 and 1, each moved by 0.1 at most: near distances 0.1 or 0.2 or 0, far ones about 2; by hand."""
    near = torch.tensor([0.1, 0.1, 0.2, 0.1, 0.1, 0.2], dtype=torch.float64)
    x = torch.tensor([-1.1, -1.0, -0.9, 0.9, 1.0, 1.1], dtype=torch.float64)
    far = (x[:3, None] - x[3:]).abs().flatten()
    within = (near - near.mean()).square().sum() + (far - far.mean()).square().sum()
    expected = (far.mean() - near.mean()) / (within / 15).sqrt()
    assert grouping(x[:, None]) == pytest.approx(float(expected), rel=1e-9)


def test_too_few_points_and_equal_ones_say_nothing() -> None:
    assert math.isnan(grouping(normal(5, 3)))
    assert grouping(torch.ones(8, 3)) == 0.0


def test_samples_in_groups_are_remarked_on_with_the_strategy_that_weighs_them() -> None:
    told = {"grouping": torch.tensor([[50.0] * 8, [3.0] * 8])}
    (line,) = closing.remarks(told, MMPS())
    assert "the samples of 1 of 2 items fall into groups" in line
    assert "'tds' weighs several" in line
    assert closing.remarks({"grouping": torch.full((1, 4), torch.nan)}, MMPS()) == []
