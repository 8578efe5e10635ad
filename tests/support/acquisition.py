"""A small instrument with a Gaussian prior, for which the best choices and the posterior are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import invsolve

SIDE, SIGMA = 12, 0.05

#: The same for the command line: columns of an image, and a prior that varies from place to place.
PLUGIN = f"""
import torch
import invsolve
from invsolve.plugins.priors.analytic.gaussian import GaussianField


class Columns(invsolve.MaskableOperator):
    name = "columns"

    def __init__(self, size: int = {SIDE}) -> None:
        super().__init__()
        self.image_shape = (1, size, size)
        self.group_index = torch.arange(size).expand(1, size, size).contiguous()

    def forward(self, x):
        return x

    def adjoint(self, y):
        return y


class Small(GaussianField):
    name = "small-field"

    def __init__(self) -> None:
        super().__init__(size={SIDE}, std=0.3, length=2.0)


@invsolve.hookimpl
def invsolve_operators():
    return {{"columns": Columns}}


@invsolve.hookimpl
def invsolve_priors():
    return {{"small-field": Small}}
"""


def plugin(folder: Path) -> Path:
    path = folder / "small.py"
    path.write_text(PLUGIN)
    return path


class Columns(invsolve.MaskableOperator):
    """The image itself, column by column."""

    name = "columns"

    def __init__(self, size: int = SIDE) -> None:
        super().__init__()
        self.image_shape = (1, size, size)
        self.group_index = torch.arange(size).expand(1, size, size).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


@dataclass
class Bench:
    """An instrument that measures pixels, the image in it, and the covariance of its prior."""

    operator: invsolve.MaskableOperator
    prior: invsolve.Prior
    covariance: np.ndarray
    y: Tensor

    def measure(self, groups: Sequence[int]) -> np.ndarray:
        index = self.operator.group_index.expand(self.y.shape)
        return np.stack([self.y[index == group].numpy() for group in groups])

    def pixels(self, groups: list[int]) -> np.ndarray:
        return np.flatnonzero(np.isin(self.operator.group_index.expand(self.y.shape).flatten().numpy(), groups))

    def information(self, groups: list[int]) -> float:
        """ln det(1 + A C A' / sigma^2) / 2 of what these groups measure."""
        where = self.pixels(groups)
        return float(np.linalg.slogdet(np.eye(len(where)) + self.covariance[np.ix_(where, where)] / SIGMA**2)[1] / 2)

    def greedy(self, budget: int) -> list[int]:
        picked: list[int] = []
        for _ in range(budget):
            others = [group for group in range(self.operator.groups) if group not in picked]
            picked.append(max(others, key=lambda group: self.information([*picked, group])))
        return picked

    def posterior(self, groups: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the image given these groups' values."""
        where = self.pixels(groups)
        data = self.y.flatten().numpy()[where]
        gain = np.linalg.solve(
            self.covariance[np.ix_(where, where)] + SIGMA**2 * np.eye(len(where)), self.covariance[where]
        ).T
        return gain @ data, self.covariance - gain @ self.covariance[where]


def bench(operator: invsolve.Operator, seed: int = 0) -> Bench:
    assert isinstance(operator, invsolve.MaskableOperator)
    prior: Any = invsolve.load_prior("gaussian-field", size=SIDE, std=0.3, length=2.0)
    covariance = prior.covariance().numpy()
    rng = np.random.default_rng(seed)
    truth = np.linalg.cholesky(covariance + 1e-10 * np.eye(len(covariance))) @ rng.standard_normal(len(covariance))
    y = truth + SIGMA * rng.standard_normal(len(truth))
    return Bench(operator, prior, covariance, torch.as_tensor(y).view(1, SIDE, SIDE))
