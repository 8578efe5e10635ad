"""FISTA with total variation (Beck & Teboulle 2009): accelerated gradient steps, each followed by a total-variation proximal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.numerics.linalg import rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._differences import divergence, gradient


@dataclass(frozen=True)
class FistaTV(Strategy):
    """Accelerated gradient steps with a total-variation proximal (Beck 2009); no prior.

    The least |y - Ax|^2 / (2 sigma^2) + weight TV(x), by FISTA.

    Beck and Teboulle, IEEE TIP 2009: a gradient step of length 1 / L, L = |A|^2 / sigma^2, then the proximal map of TV by
    their fast gradient projection on its dual, `inner` steps that begin at the last dual; both accelerated (section 5,
    without the monotone variant and without bounds on pixels). `tv` minimises the same with its `weight`, or finds the image
    of least TV that explains the data without one. Known bias: piecewise constant images; the weight decides how well the
    data are fitted and is not found here; no uncertainty.

    Args:
        steps: iterations, one forward and one adjoint operator call each.
        weight: of the total variation, x in network units: one over the mean length of the differences of the images expected.
        inner: steps of gradient projection in each proximal map; they cost no operator calls.
    """

    name = "fista-tv"
    paper: ClassVar[Paper | None] = Paper(
        "Fast Gradient-Based Algorithms for Constrained Total Variation Image Denoising and Deblurring Problems",
        ("Amir Beck", "Marc Teboulle"),
        2009,
        "doi:10.1109/TIP.2009.2028250",
    )
    builds_on: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "Nonlinear total variation based noise removal algorithms",
            ("Leonid I. Rudin", "Stanley Osher", "Emad Fatemi"),
            1992,
            "doi:10.1016/0167-2789(92)90242-F",
        ),
    )
    cost: ClassVar[str] = "none"

    steps: int = 200
    weight: float = 15.0
    inner: int = 10

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1, "weight": -1}
    needs: ClassVar[tuple[str, ...]] = ("linear", "gaussian")
    draws: ClassVar[bool] = False
    mean_error: ClassVar[float] = 0.9
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"steps": 60},)

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(self.steps)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = problem.baseline()
        one = torch.ones(problem.batch, dtype=x.dtype, device=x.device)
        return {"x": x, "ahead": x, "dual": torch.zeros_like(gradient(x)), "pace": one}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        # A margin, because the norm is found to 1e-4 from below.
        largest = 1.001 * problem.operator_norm() ** 2
        slope, residual = problem.data_gradient(state["ahead"])
        variance = torch.as_tensor(problem.sigma, dtype=slope.dtype, device=slope.device) ** 2
        strength = self.weight / largest * variance.reshape(-1, *[1] * (slope.ndim - 1))
        x, dual = smoothed(state["ahead"] - slope / largest, strength, state["dual"], self.inner)
        pace = (1 + (1 + 4 * state["pace"] ** 2).sqrt()) / 2
        ahead = x + rows((state["pace"] - 1) / pace, x) * (x - state["x"])
        return {"x": x, "ahead": ahead, "dual": dual, "pace": pace, "residual": problem.misfit(residual)}


def smoothed(z: Tensor, strength: Tensor, dual: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """argmin_x |x - z|^2 / 2 + strength TV(x) by fast gradient projection (Algorithm FGP), and its dual.

    Args:
        z: (B, C, *spatial).
        strength: >= 0, broadcasts against z.
        dual: where to begin, shaped like `gradient(z)`: fields of length 1 at most.
        steps: iterations.
    """
    # A bound of the squared norm of `gradient`: 4 an axis.
    length = 1 / (4.0 * (z.ndim - 2) * strength.clamp_min(torch.finfo(z.dtype).tiny))[:, None]
    ahead, pace = dual, 1.0
    for _ in range(steps):
        moved = ahead + length * gradient(z + strength * divergence(ahead))
        moved = moved / torch.linalg.vector_norm(moved, dim=1, keepdim=True).clamp_min(1.0)
        after = (1 + math.sqrt(1 + 4 * pace**2)) / 2
        ahead, dual, pace = moved + (pace - 1) / after * (moved - dual), moved, after
    return z + strength * divergence(dual), dual
