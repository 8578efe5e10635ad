"""D-Flow (Ben-Hamu 2024): the noise from which a flow ends at an image that fits the data, by L-BFGS through the flow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.errors import UserError
from invsolve.numerics.linalg import norm, size_of
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies import _lbfgs as lbfgs
from invsolve.plugins.strategies._flow import midpoint, times


@dataclass(frozen=True)
class DFlow(Strategy):
    """The noise from which a flow ends at an image that fits the data, by L-BFGS (Ben-Hamu 2024).

    Minimise |y - A Phi(w)|^2 + lambda (|w|^2 / 2 - (d - 1) ln |w|) over w, Phi the flow in midpoint steps.

    Ben-Hamu et al., ICML 2024, Algorithm 1 with the regulariser of their section 3.4, the negative log density of a normal
    vector's norm. w starts as sqrt(blend) Phi^-1(A'y / |A|^2) + sqrt(1 - blend) n. Their lambda is set by hand; here it
    is 2 sigma_y^2, with which the sum is a negative log density. Their line search is strong Wolfe's; here a step is halved until
    the value falls. One run is one L-BFGS of `steps` iterations; theirs starts anew every 20.

    Known bias: an optimum, so no draw: images differ by their starts, as far as there are several optima. The prior
    is on |w| alone, so that w may turn to wherever the data pull it: noise is fitted where few steps cannot tell it from image.
    All activations of the flow are in memory at once. L-BFGS that has not arrived multiplies rounding: batches of other sizes
    agree to a hundredth.

    Args:
        steps: iterations of L-BFGS; one gradient through the flow each, up to 4 where the step must be shortened.
        flow_steps: steps of the midpoint rule, two network calls each.
        weight: lambda; None: 2 sigma_y^2.
        blend: part of the start's variance that comes from the data; 0 for noise alone, as with operators that are not linear.
        history: pairs of steps that L-BFGS remembers.
    """

    name = "d-flow"
    paper: ClassVar[Paper | None] = Paper(
        "D-Flow: Differentiating through Flows for Controlled Generation",
        ("Heli Ben-Hamu", "Omri Puny", "Itai Gat", "Brian Karrer", "Uriel Singer", "Yaron Lipman"),
        2024,
        "arXiv:2402.14017",
    )
    cost: ClassVar[str] = "10 forward + 10 backward"

    steps: int = 20
    flow_steps: int = 5
    weight: float | None = None
    blend: float = 0.1
    history: int = 10

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"published": {"weight": 0.001, "steps": 60}}
    draws: ClassVar[bool] = False
    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "operator-gradient", "gaussian")
    mean_error: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.flow_steps < 1 or self.history < 1 or not 0 <= self.blend <= 1:
            raise UserError("strategy 'd-flow': flow_steps and history must be at least 1, blend from 0 to 1")

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // (4 * self.flow_steps) - 1, 1))

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(self.steps)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        w = rng.normal(problem.zeros())
        if self.blend and isinstance(problem.operator, LinearOperator):
            image = problem.linear.adjoint(problem.y) / problem.operator_norm() ** 2
            back = midpoint(problem, image, times(self.flow_steps, problem)[::-1])
            w = math.sqrt(self.blend) * back + math.sqrt(1 - self.blend) * w
        return lbfgs.start(w, lambda w: self.objective(problem, w), self.history)

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        return lbfgs.iterate(state, lambda w: self.objective(problem, w))

    def objective(self, problem: Problem, w: Tensor) -> tuple[Tensor, Tensor]:
        """Value (B,) and gradient, both over lambda, at w (B, C, *spatial)."""
        # Data free of noise are met to a thousandth of their norm.
        least = 1e-3 * norm(problem.y) / problem.dof() ** 0.5
        weight = 2 * problem.noise_level().maximum(least) ** 2 if self.weight is None else self.weight
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            fit = norm(problem.residual(self.flow(problem, w))) ** 2
            length = norm(w)
            value = fit / weight + length**2 / 2 - (size_of(w.shape[1:]) - 1) * length.log()
            (gradient,) = torch.autograd.grad(value.sum(), w)
        return value.detach(), gradient

    def flow(self, problem: Problem, w: Tensor) -> Tensor:
        """Phi(w): the image at which the flow from w ends."""
        return midpoint(problem, w, times(self.flow_steps, problem))

    def result(self, problem: Problem, state: State) -> Tensor:
        return self.flow(problem, state["x"])
