"""PnP-Flow (Martin 2025): gradient steps on the data, and a flow's denoiser between them, averaged over its noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class PnPFlow(Strategy):
    """Gradient steps, with a flow's denoiser between them (Martin 2025); low noise.

    u = x - rate (1 - t)^alpha A'(A x - y), then x = mean of `draws_a_step` values of D(u + sigma n, sigma), sigma = (1 - t) / t.

    Martin, Gagneux, Hagemann and Steidl, ICLR 2025, Algorithm 3, in variance-exploding coordinates; the operator is divided by
    its norm. Their gradient step has sigma_y^2 for its length, so that sigma_y cancels: `alpha`, set by hand for each task,
    stands for it (denoising 0.8, box inpainting 0.5, super-resolution 0.3, deblurring and random inpainting 0.01). The first
    step is D at the largest noise that the prior knows, theirs at an infinite one.

    Known bias: a mean over the noise, so a point estimate; it knows no noise level, and images differ by the noise of the
    last steps only. What the operator hardly passes on, as along some directions of tomography, stays near the prior's mean.

    Args:
        steps: noise levels, equally spaced in the flow's time.
        draws_a_step: network calls a step, over which is averaged.
        alpha: how fast the gradient step shortens as t goes to 1.
        rate: length of the gradient step at first, in units of one over the squared norm of A.
    """

    name = "pnp-flow"
    paper: ClassVar[Paper | None] = Paper(
        "PnP-Flow: Plug-and-Play Image Restoration with Flow Matching",
        ("Ségolène Martin", "Anne Gagneux", "Paul Hagemann", "Gabriele Steidl"),
        2024,
        "arXiv:2410.02423",
    )
    cost: ClassVar[str] = "5 forward"

    steps: int = 100
    draws_a_step: int = 5
    alpha: float = 0.01
    rate: float = 1.0

    draws: ClassVar[bool] = False
    data_strength: ClassVar[Mapping[str, int]] = {"alpha": -1, "steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian", "low-noise")
    mean_error: ClassVar[float] = 1.1

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // self.draws_a_step, 2))

    def schedule(self, problem: Problem) -> Tensor:
        # t = k / N: the last level is not zero but that of t = 1 - 1 / N.
        time = torch.arange(1, self.steps, dtype=torch.float64) / self.steps
        inside = ((1 - time) / time).clamp(problem.prior.sigma_min, problem.prior.sigma_max)
        return torch.cat([inside.new_full((1,), problem.prior.sigma_max), inside, inside.new_zeros(1)])

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": problem.zeros()}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        # The first step is that of t = 0, where (1 - t)^alpha is 1, whatever level stands for it.
        left = (self.steps - rng.step + 1) / self.steps
        slope, residual = problem.data_gradient(state["x"])
        u = state["x"] - self.rate * left**self.alpha / problem.operator_norm() ** 2 * slope
        total = torch.zeros_like(u)
        for _ in range(self.draws_a_step):
            total = total + problem.denoise(u + sigma * rng.normal(u), sigma)
        return {"x": total / self.draws_a_step, "residual": problem.misfit(residual)}
