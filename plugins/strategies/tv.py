"""Total variation: the classical edge-preserving reconstruction, by the primal-dual method; no prior needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.numerics.linalg import norm, rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._differences import divergence, gradient

#: Iterations from one look at whether an image is done to the next.
_EVERY = 10


@dataclass(frozen=True)
class TotalVariation(Strategy):
    """Least total variation that explains the data to within the noise; no prior.

    The image of least total variation that explains the data to within the noise, or the penalised form.

    Rudin, Osher & Fatemi 1992, solved by Chambolle & Pock 2011, Algorithm 1. Without `weight` it minimises TV(x) subject to
    |y - Ax| <= discrepancy * its expected value, so nothing needs tuning. An image is done when the duality gap, what the
    constraint is violated by and what the dual one is violated by are each below `tolerance` of their size. Known bias: it
    prefers piecewise constant images, and gives no uncertainty.

    Args:
        steps: iterations at most, one forward and one adjoint operator call each; where they end before an image is done, the
            diagnostic `at_ceiling` says so.
        weight: if given, minimise |y - Ax|^2 / (2 sigma^2) + weight TV(x) instead, x in network units.
        discrepancy: how much of the expected residual norm is allowed.
        tolerance: relative. At 0.002 images of 30 views were within 0.05 dB of their limit.
        balance: ratio of dual to primal step; changes speed only.
    """

    name = "tv"
    paper: ClassVar[Paper | None] = Paper(
        "Nonlinear total variation based noise removal algorithms",
        ("Leonid I. Rudin", "Stanley Osher", "Emad Fatemi"),
        1992,
        "doi:10.1016/0167-2789(92)90242-F",
    )
    builds_on: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "A First-Order Primal-Dual Algorithm for Convex Problems with Applications to Imaging",
            ("Antonin Chambolle", "Thomas Pock"),
            2011,
            "doi:10.1007/s10851-010-0251-1",
        ),
    )
    cost: ClassVar[str] = "none"
    advice: ClassVar[tuple[str, str]] = ("without a prior", "")

    steps: int = 4000
    weight: float | None = None
    discrepancy: float = 1.0
    tolerance: float = 0.002
    balance: float = 30.0

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1, "discrepancy": -1, "weight": -1}
    needs: ClassVar[tuple[str, ...]] = ("linear", "gaussian")
    draws: ClassVar[bool] = False
    mean_error: ClassVar[float] = 0.75

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(self.steps)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = problem.baseline()
        edges = self.edges(problem, x)
        size = lengths(edges).flatten(1).sum(1)
        converged = torch.zeros_like(size, dtype=torch.int32)
        data = torch.zeros_like(problem.y)
        return {"x": x, "bar": x, "data": data, "edges": torch.zeros_like(edges), "size": size, "converged": converged}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        scale = problem.operator_norm()
        largest = math.sqrt(1 + self.edges_norm(problem))
        # Images that are done stay as they are, whatever else is in the batch: their steps have no length.
        going = 1.0 - state["converged"].to(state["x"])
        primal, dual = 0.99 / (largest * self.balance) * going, 0.99 * self.balance / largest * going
        predicted = problem.operator(state["bar"])
        residual = predicted - problem.y
        data = state["data"] + rows(dual, residual) * residual / scale
        data = self._data_dual(problem, data, dual, scale)
        differences = self.edges(problem, state["bar"])
        edges = state["edges"] + rows(dual, differences) * differences
        edges = edges / torch.linalg.vector_norm(edges, dim=1, keepdim=True).clamp_min(1.0)
        slope = problem.linear.adjoint(data) / scale + self.edges_adjoint(problem, edges)
        x = state["x"] - rows(primal, slope) * slope
        converged = state["converged"]
        if rng.step % _EVERY == 0:
            done = self._done(problem, state, residual / scale, differences, data, slope)
            converged = torch.maximum(converged, done.expand_as(converged).to(converged))
        new = {"x": x, "bar": 2 * x - state["x"], "data": data, "edges": edges, "size": state["size"]}
        return {**new, "converged": converged, "residual": problem.misfit(residual)}

    def _done(
        self, problem: Problem, state: State, residual: Tensor, differences: Tensor, data: Tensor, slope: Tensor
    ) -> Tensor:
        """Whether nothing is left to gain, (B,), or (1,) of a volume.

        Args:
            residual: (A x - y) / |A| at the iterate `bar`.
            differences: `edges` of it.
            data: the dual variable of the data term.
            slope: what the dual constraint, that the transposes of both dual variables cancel, is violated by.
        """
        inner, scale = problem.through_plane.inner, problem.operator_norm()
        length = lengths(differences)
        variation = inner(length.sqrt(), length.sqrt())
        # An image that is flat has no variation for the others to be a part of.
        least = 0.1 * inner(state["size"][:, None].sqrt(), state["size"][:, None].sqrt())
        dual = -inner(problem.y / scale, data)
        if self.weight is None:
            radius = (self.discrepancy * problem.expected_misfit() / scale)[:, None]
            allowed = radius.maximum(0.01 * norm(problem.y)[:, None] / scale)
            beyond = (norm(residual)[:, None] - radius).clamp_min(0)
            violated = (inner(beyond, beyond) / inner(allowed, allowed)).sqrt()
            primal, dual = variation, dual - inner(radius, norm(data)[:, None])
        else:
            strength = self._strength(problem, data, scale)
            primal = variation + inner(residual / strength, residual) / 2
            dual, violated = dual - inner(strength * data, data) / 2, torch.zeros_like(variation)
        size = primal.maximum(least).clamp_min(torch.finfo(primal.dtype).tiny)
        image = state["bar"]
        against = (inner(slope, slope) * inner(image, image)).sqrt() / size
        worst = torch.stack([(primal - dual).abs() / size, violated, against]).amax(0)
        return worst < self.tolerance

    def edges(self, problem: Problem, x: Tensor) -> Tensor:
        """The differences whose length is penalised: (B, C, *s) -> (B, kinds, C, *s)."""
        return gradient(x)

    def edges_adjoint(self, problem: Problem, p: Tensor) -> Tensor:
        """The transpose of `edges`."""
        return -divergence(p)

    def edges_norm(self, problem: Problem) -> float:
        """A bound of the squared norm of `edges`: 4 an axis."""
        return 4.0 * (len(problem.image_shape) - 1)

    def _data_dual(self, problem: Problem, p: Tensor, dual: Tensor, scale: float) -> Tensor:
        """Proximal map of the conjugate of the data term, which is a function of (Ax - y) / scale."""
        if self.weight is None:
            radius = self.discrepancy * problem.expected_misfit() / scale
            return p * rows((1 - dual * radius / norm(p).clamp_min(1e-30)).clamp_min(0), p)
        return p / (1 + rows(dual, p) * self._strength(problem, p, scale))

    def _strength(self, problem: Problem, p: Tensor, scale: float) -> Tensor:
        """weight sigma^2 / scale^2: the data term is |(Ax - y) / scale|^2 over twice that."""
        assert self.weight is not None
        return self.weight * torch.as_tensor(problem.sigma).to(p.real) ** 2 / scale**2


@dataclass(frozen=True)
class VolumeTotalVariation(TotalVariation):
    """`tv` over a volume whose slices are the items.

    `tv` of a volume whose slices are the items of the file: total variation along the slices' axes and across them.

    Rudin, Osher & Fatemi 1992, isotropic in all three axes; each slice meets its own data to within the noise. Known bias: as
    for `tv`, piecewise constant volumes and no uncertainty.

    Args:
        steps: iterations at most, one forward and one adjoint operator call each.
        weight: if given, minimise |y - Ax|^2 / (2 sigma^2) + weight TV(x) instead, x in network units.
        discrepancy: how much of the expected residual norm is allowed.
        tolerance: relative, of the volume as a whole.
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


def lengths(differences: Tensor) -> Tensor:
    """Length of the differences of each pixel over their kinds: (B, kinds, C, *s) -> (B, C, *s)."""
    return torch.linalg.vector_norm(differences, dim=1)
