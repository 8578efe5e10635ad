"""FlowDPS (Kim 2025): a flow's clean part moved to the data and blended, its noise partly renewed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._proximal import renoise


@dataclass(frozen=True)
class FlowDPS(Strategy):
    """A flow's denoised image moved to the data and blended, its noise partly renewed (Kim 2025).

    D3 by three gradient steps from D on |A'y - A'A x|, D^ = (1 - t) D + t D3, z' = D^ + sigma' (sqrt(1 - h^2) eps + h n).

    Kim, Kim and Ye, ICCV 2025, Algorithm 1, in variance-exploding coordinates: t = sigma / (1 + sigma), h^2 = 1 / (1 + sigma').
    Theirs works on the latents of Stable Diffusion 3 through the decoder, by steps of length 15 along the gradient of the norm
    itself; here the prior is one of images, the operator is divided by its norm, and a step is `strength` times the gradient
    of half the square, which knows how far there is to go. The network is not differentiated.

    Known bias: no noise level enters, and little of the data does at the end, where t goes to 0: what the operator does not
    pass on in full is not fitted (along some directions of tomography it stays the prior's), what it does pass on comes out
    too wide. The noise renewed is no posterior's. Where the data's noise differs from entry to entry, the noisier ones are
    fitted least, and the mean is further off still.

    Args:
        steps: network calls, forward only, equally spaced in the flow's time t = sigma / (1 + sigma).
        inner: gradient steps a level.
        strength: of a gradient step; between 0 and 2, at which it oscillates.
    """

    name = "flowdps"
    paper: ClassVar[Paper | None] = Paper(
        "FlowDPS: Flow-Driven Posterior Sampling for Inverse Problems",
        ("Jeongsol Kim", "Bryan Sangwoo Kim", "Jong Chul Ye"),
        2025,
        "arXiv:2503.08136",
    )

    steps: int = 28
    inner: int = 3
    strength: float = 1.9

    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian", "low-noise")
    mean_error: ClassVar[float] = 1.0
    std_ratio: ClassVar[tuple[float, float]] = (0.7, 1.3)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.5, 2.0)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.straight(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, operator, size = state["x"], problem.linear, problem.operator_norm() ** 2
        estimate = problem.denoise(x, sigma)
        residual = problem.residual(estimate)
        moved = estimate
        for _ in range(self.inner):
            back = operator.adjoint(problem.residual(moved)) / size
            moved = moved + self.strength * operator.normal(back) / size
        share = sigma / (1 + sigma)
        clean = (1 - share) * estimate + share * moved
        fresh = math.sqrt(1 / (1 + sigma_next))
        x = renoise(clean, (x - estimate) / sigma, rng.normal(x), sigma_next, fresh)
        return {"x": x, "residual": problem.misfit(residual)}
