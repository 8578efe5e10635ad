"""FlowChef (Patel 2024): the straight step of a rectified flow, and the data's gradient at D added in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._inversion import origin


@dataclass(frozen=True)
class FlowChef(Strategy):
    """Gradients that skip the network, added in full (Patel 2024); forward only.

    Euler's step of the flow, and the gradient of |y - A(D)|^2 taken at D and subtracted from x ("gradient skipping").

    Patel et al., 2024, Algorithm 1, in variance-exploding coordinates: x' = D + (sigma'/sigma)(x - D) - s (1 + sigma') grad,
    without the gradient in the last step, as their code. Their loss is the mean of squares over the m numbers measured, with
    s set by hand: 500 for 64 x 64 x 3 pixels. Here `strength` is 2 s / m, of an operator divided by its norm: 500 there is
    0.081. `flowchef-fitted` finds its lengths from operator and noise.

    Known bias: the length knows no noise level; each step pulls x by the same part of the residual, so the data's noise is
    fitted the more closely the more steps there are, and the spread of the images is no uncertainty: none where all is
    measured, that of the prior where the operator hardly passes anything on, as along some directions of tomography, where
    the mean is off by more than one posterior standard deviation, too.

    Args:
        steps: network calls, forward only, equally spaced in the flow's time t = sigma / (1 + sigma).
        strength: part of the residual that a step removes where the operator passes an image on in full.
        inverted: part of the start's variance that is the linear reconstruction, brought back to noise by BDIA; 0: noise alone.
    """

    name = "flowchef"
    paper: ClassVar[Paper | None] = Paper(
        "Steering Rectified Flow Models in the Vector Field for Controlled Image Generation",
        ("Maitreya Patel", "Song Wen", "Dimitris N. Metaxas", "Yezhou Yang"),
        2024,
        "arXiv:2412.00100",
    )
    builds_on: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "Exact Diffusion Inversion via Bi-directional Integration Approximation",
            ("Guoqiang Zhang", "J. P. Lewis", "W. Bastiaan Kleijn"),
            2023,
            "arXiv:2307.10829",
        ),
    )

    steps: int = 100
    strength: float = 0.08
    inverted: float = 0.0

    draws: ClassVar[bool] = False
    data_strength: ClassVar[Mapping[str, int]] = {"strength": 1, "steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "operator-gradient", "gaussian", "low-noise")
    mean_error: ClassVar[float] = 0.65

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.straight(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": origin(problem, self.schedule(problem).tolist(), self.inverted, rng)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x = state["x"]
        estimate = problem.denoise(x, sigma)
        gradient, residual = problem.data_gradient(estimate)
        x = estimate + sigma_next / sigma * (x - estimate)
        if sigma_next > 0:
            x = x - self.strength * (1 + sigma_next) / problem.linear_norm() ** 2 * gradient
        return {"x": x, "residual": problem.misfit(residual)}
