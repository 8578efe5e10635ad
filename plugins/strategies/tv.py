"""Total variation: the classical edge-preserving reconstruction, by the primal-dual method; no prior needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.numerics.linalg import norm, rows
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class TotalVariation(Strategy):
    """Least total variation that explains the data to within the noise; no prior.

    The image of least total variation that explains the data to within the noise, or the penalised form.

    Rudin, Osher & Fatemi 1992, solved by Chambolle & Pock 2011, Algorithm 1. Without `weight` it minimises TV(x) subject to
    |y - Ax| <= discrepancy * its expected value, so nothing needs tuning. Known bias: it prefers piecewise constant images,
    and gives no uncertainty.

    Args:
        steps: iterations, one forward and one adjoint operator call each.
        weight: if given, minimise |y - Ax|^2 / (2 sigma^2) + weight TV(x) instead, x in network units.
        discrepancy: how much of the expected residual norm is allowed.
        balance: ratio of dual to primal step; changes speed only.
    """

    name = "tv"
    cost: ClassVar[str] = "none"
    advice: ClassVar[tuple[str, str]] = ("without a prior", "")

    steps: int = 400
    weight: float | None = None
    discrepancy: float = 1.0
    balance: float = 10.0

    data_strength: ClassVar[Mapping[str, int]] = {"weight": -1, "discrepancy": -1, "steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("linear", "gaussian")
    draws: ClassVar[bool] = False
    mean_error: ClassVar[float] = 0.75

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(self.steps)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = problem.baseline()
        data, edges = torch.zeros_like(problem.y), torch.zeros_like(self.edges(problem, x))
        return {"x": x, "bar": x, "data": data, "edges": edges}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        scale = problem.operator_norm()
        largest = math.sqrt(1 + self.edges_norm(problem))
        primal, dual = 0.99 / (largest * self.balance), 0.99 * self.balance / largest
        predicted = problem.operator(state["bar"])
        residual = predicted - problem.y
        data = self._data_dual(problem, state["data"] + dual * residual / scale, dual, scale)
        edges = state["edges"] + dual * self.edges(problem, state["bar"])
        edges = edges / torch.linalg.vector_norm(edges, dim=1, keepdim=True).clamp_min(1.0)
        x = state["x"] - primal * (problem.linear.adjoint(data) / scale + self.edges_adjoint(problem, edges))
        return {"x": x, "bar": 2 * x - state["x"], "data": data, "edges": edges, "residual": problem.misfit(residual)}

    def edges(self, problem: Problem, x: Tensor) -> Tensor:
        """The differences whose length is penalised: (B, C, *s) -> (B, kinds, C, *s)."""
        return gradient(x)

    def edges_adjoint(self, problem: Problem, p: Tensor) -> Tensor:
        """The transpose of `edges`."""
        return -divergence(p)

    def edges_norm(self, problem: Problem) -> float:
        """A bound of the squared norm of `edges`: 4 an axis."""
        return 4.0 * (len(problem.image_shape) - 1)

    def _data_dual(self, problem: Problem, p: Tensor, dual: float, scale: float) -> Tensor:
        """Proximal map of the conjugate of the data term, which is a function of (Ax - y) / scale."""
        if self.weight is None:
            radius = self.discrepancy * problem.expected_misfit() / scale
            return p * rows((1 - dual * radius / norm(p).clamp_min(1e-30)).clamp_min(0), p)
        strength = self.weight * torch.as_tensor(problem.sigma).to(p.real) ** 2 / scale**2
        return p / (1 + dual * strength)


@dataclass(frozen=True)
class VolumeTotalVariation(TotalVariation):
    """`tv` over a volume whose slices are the items.

    `tv` of a volume whose slices are the items of the file: total variation along the slices' axes and across them.

    Rudin, Osher & Fatemi 1992, isotropic in all three axes; each slice meets its own data to within the noise. Known bias: as
    for `tv`, piecewise constant volumes and no uncertainty.

    Args:
        steps: iterations, one forward and one adjoint operator call each.
        weight: if given, minimise |y - Ax|^2 / (2 sigma^2) + weight TV(x) instead, x in network units.
        discrepancy: how much of the expected residual norm is allowed.
        balance: ratio of dual to primal step; changes speed only.
        through_plane: factor of the differences across slices, such as pixel size over slice distance; 0 leaves the slices alone.
    """

    name = "tv-3d"
    cost: ClassVar[str] = "none"
    advice: ClassVar[tuple[str, str]] = ("", "")

    through_plane: float = 1.0

    couples_items: ClassVar[bool] = True

    def edges(self, problem: Problem, x: Tensor) -> Tensor:
        return torch.cat([gradient(x), self.through_plane * problem.through_plane.difference(x)[:, None]], 1)

    def edges_adjoint(self, problem: Problem, p: Tensor) -> Tensor:
        return self.through_plane * problem.through_plane.transpose(p[:, -1]) - divergence(p[:, :-1])

    def edges_norm(self, problem: Problem) -> float:
        return super().edges_norm(problem) + 4 * self.through_plane**2


def gradient(x: Tensor) -> Tensor:
    """Forward differences along every spatial axis, zero at the far edge: (B, C, *s) -> (B, axes, C, *s)."""
    parts = []
    for axis in range(2, x.ndim):
        pad = torch.zeros_like(x.narrow(axis, 0, 1))
        parts.append(torch.cat([x.diff(dim=axis), pad], axis))
    return torch.stack(parts, 1)


def divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of `gradient`."""
    total = torch.zeros_like(p[:, 0])
    for k in range(p.shape[1]):
        axis = k + 2
        inner = p[:, k].narrow(axis, 0, p.shape[axis + 1] - 1)
        pad = torch.zeros_like(inner.narrow(axis, 0, 1))
        total = total + torch.cat([inner, pad], axis) - torch.cat([pad, inner], axis)
    return total
