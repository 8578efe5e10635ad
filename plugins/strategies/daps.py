"""DAPS: decoupled annealing posterior sampling (Zhang 2024), for any differentiable operator and any noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._likelihood import draw
from invsolve.plugins.strategies._reverse import reverse


@dataclass(frozen=True)
class DAPS(Strategy):
    """Estimate, draw given the data, re-noise (Zhang 2024); any differentiable operator, any noise.

    At each noise level: estimate the image, draw it again given the data, and put the next level's noise on the draw.

    Zhang et al., CVPR 2025 (arXiv 2407.01521), Algorithm 1. The estimate x_hat is where the probability flow from x_sigma
    ends; the draw is from N(x_hat, r^2 I) p(y | x). Where that is Gaussian it is drawn exactly (the paper runs Langevin
    steps of a tuned length), else by Metropolis-adjusted Langevin, whose step length finds itself. The levels are those of
    the prior, so the last draw is as sharp as the prior allows (the paper ends at 0.1).

    Known bias: x_0 given x_sigma is taken for white around x_hat, so what is smooth in the image is drawn too narrow or
    too wide; with more than one step of the flow x_hat is itself as wide as the prior and hidden parts come out too wide.

    Args:
        steps: noise levels.
        flow_steps: network calls per level along the probability flow. The paper takes 5. With 1, x_hat is the posterior
            mean D, to which the measured r^2 belongs.
        variance: r^2: "measured", the prior's own mean squared error at the level, or "paper", sigma^2.
        iterations: Langevin proposals a level, where the draw is not Gaussian.
        start: noise level to start from, network units; default and limit: the prior's largest.
    """

    name = "daps"
    paper: ClassVar[Paper | None] = Paper(
        "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing",
        ("Bingliang Zhang", "Wenda Chu", "Julius Berner", "Chenlin Meng", "Anima Anandkumar", "Yang Song"),
        2024,
        "arXiv:2407.01521",
    )

    steps: int = 100
    flow_steps: int = 1
    variance: Literal["measured", "paper"] = "measured"
    iterations: int = 20
    start: float | None = None

    needs: ClassVar[tuple[str, ...]] = ("prior", "operator-gradient", "noise-slope")
    mean_error: ClassVar[float] = 0.3
    std_ratio: ClassVar[tuple[float, float]] = (0.95, 1.1)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.95, 1.15)
    examples = ({"steps": 40},)

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // self.flow_steps, 2))

    def schedule(self, problem: Problem) -> Tensor:
        top = problem.prior.sigma_max if self.start is None else min(self.start, problem.prior.sigma_max)
        return schedules.edm(self.steps, problem.prior.sigma_min, top)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        return {"x": x, "pace": x.new_zeros(problem.batch)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        estimate, _ = reverse(problem, state["x"], sigma, self.flow_steps, 0.0, rng)
        variance = sigma**2 if self.variance == "paper" else problem.prior.error(sigma)
        image, pace = draw(problem, estimate, variance, estimate, state["pace"], self.iterations, rng)
        residual = problem.misfit(problem.residual(image))
        x = image + sigma_next * rng.normal(image) if sigma_next > 0 else image
        return {"x": x, "pace": pace, "residual": residual}
