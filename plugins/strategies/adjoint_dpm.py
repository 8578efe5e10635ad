"""AdjointDPM (Pan 2024): the noise whose probability flow fits the data, its gradient exact by the adjoint method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.linalg import norm, rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies import _lbfgs as lbfgs
from invsolve.plugins.strategies._flow import adjoint, descend
from invsolve.plugins.strategies._inversion import origin


@dataclass(frozen=True)
class AdjointDPM(Strategy):
    """The noise whose whole probability flow fits the data, its gradient by the adjoint method (Pan 2024).

    w by L-BFGS on |y - A Phi(sigma_max w)|^2 / 2 sigma_y^2 + hold |w|^2 / 2, Phi Euler's method (DDIM) on `flow_steps` levels.

    Pan et al., ICLR 2024: the gradient with respect to the start of the probability flow solves an equation of its own, backwards
    in sigma, da / dsigma = -(d eps / dx)' a, so that no more than one network's activations are in memory. Theirs integrates
    the states back along with a, which leaves an error of the solver in the gradient; here the states, images and no
    activations, are kept, and the gradient is exact for the steps taken. Theirs customises generation by a loss; the
    loss here is the posterior's negative log density in w, and L-BFGS descends it (ours).

    Known bias: an optimum, so no draw; images differ by their starts where there are several optima. With a Gaussian prior the
    optimum is the posterior's mean but for Euler's error; else it is the image of the likeliest noise, not the likeliest image.
    L-BFGS that has not arrived multiplies rounding: batches of other sizes agree to a hundredth.

    Args:
        steps: iterations of L-BFGS; one gradient through the flow each, up to 4 where the step must be shortened.
        flow_steps: noise levels of the flow.
        hold: weight of the noise's own density; 1 is that of the posterior, 0 fits the data alone.
        history: pairs of steps that L-BFGS remembers.
        inverted: part of the start's variance that is the linear reconstruction, brought back to noise by BDIA; 0: noise alone.
    """

    name = "adjoint-dpm"
    paper: ClassVar[Paper | None] = Paper(
        "AdjointDPM: Adjoint Sensitivity Method for Gradient Backpropagation of Diffusion Probabilistic Models",
        ("Jiachun Pan", "Jun Hao Liew", "Vincent Y. F. Tan", "Jiashi Feng", "Hanshu Yan"),
        2023,
        "arXiv:2307.10711",
    )
    builds_on: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "Exact Diffusion Inversion via Bi-directional Integration Approximation",
            ("Guoqiang Zhang", "J. P. Lewis", "W. Bastiaan Kleijn"),
            2023,
            "arXiv:2307.10829",
        ),
    )
    cost: ClassVar[str] = "flow_steps x (2 forward + backward)"

    steps: int = 30
    flow_steps: int = 10
    hold: float = 1.0
    history: int = 10
    inverted: float = 0.0

    draws: ClassVar[bool] = False
    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "operator-gradient", "gaussian")
    mean_error: ClassVar[float] = 0.65

    def __post_init__(self) -> None:
        if self.flow_steps < 1 or self.history < 1 or self.hold < 0:
            raise UserError("strategy 'adjoint-dpm': flow_steps and history must be at least 1, hold not negative")

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // (3 * self.flow_steps), 1))

    def levels(self, problem: Problem) -> list[float]:
        return schedules.edm(self.flow_steps, problem.prior.sigma_min, problem.prior.sigma_max).tolist()

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(self.steps)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        levels = self.levels(problem)
        w = origin(problem, levels, self.inverted, rng) / levels[0]
        return lbfgs.start(w, lambda w: self.objective(problem, w), self.history)

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        return lbfgs.iterate(state, lambda w: self.objective(problem, w))

    def objective(self, problem: Problem, w: Tensor) -> tuple[Tensor, Tensor]:
        """Value (B,) and gradient at w (B, C, *spatial)."""
        levels = self.levels(problem)
        states = descend(problem, levels[0] * w, levels)
        slope, residual = problem.data_gradient(states[-1])
        # Data free of noise are met to a thousandth of their norm.
        noise = problem.noise_level().maximum(1e-3 * problem.misfit(problem.y) / problem.dof() ** 0.5)
        value = (norm(residual) / noise).square() / 2 + self.hold * norm(w) ** 2 / 2
        return value, levels[0] * adjoint(problem, states, levels, slope / rows(noise, w) ** 2) + self.hold * w

    def result(self, problem: Problem, state: State) -> Tensor:
        levels = self.levels(problem)
        return descend(problem, levels[0] * state["x"], levels)[-1]
