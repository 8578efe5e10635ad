"""OT-ODE (Pokle 2024): a flow's straight steps with the likelihood's gradient, from between data and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._proximal import correction


@dataclass(frozen=True)
class OTODE(Strategy):
    """A flow's straight steps with the likelihood's gradient (Pokle 2024).

    Euler's step of the flow with D_y = D + gamma sigma^2 J' A'(r^2 A A' + sigma_y^2)^-1 (y - A D), J the Jacobian of D.

    Pokle, Muckley, Chen and Karrer, TMLR 2024, Algorithm 1, in variance-exploding coordinates: their corrected velocity is
    (D_y - x) / (1 - t), the guidance of `pigdm` integrated in the flow's time. It starts between data and noise, at
    x = (1 - s) A'y / |A|^2 + s n. Ours: r^2 is the prior's measured error;
    preset=published takes theirs, sigma^2 / (1 + sigma^2).

    Known bias: the error of D is taken for white, the start has the noise of the data in it, and a first-order step of a
    deterministic flow keeps too little spread.

    Args:
        steps: network calls, forward and backward, equally spaced in the flow's time from `begin` on.
        variance: r^2: the prior's measured error, or the paper's.
        gamma: factor of the guidance; the paper's is 1.
        begin: the noise's share s at the start; theirs 0.9, for deblurring 0.6.
        iterations: of the inner solver, at most, where the operator has no closed form.
    """

    name = "ot-ode"
    paper: ClassVar[Paper | None] = Paper(
        "Training-free Linear Image Inverses via Flows",
        ("Ashwini Pokle", "Matthew J. Muckley", "Ricky T. Q. Chen", "Brian Karrer"),
        2023,
        "arXiv:2310.04432",
    )
    cost: ClassVar[str] = "forward + backward"

    steps: int = 100
    variance: Literal["measured", "paper"] = "measured"
    gamma: float = 1.0
    begin: float = 0.9
    iterations: int = 20

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {"steps": 100, "variance": "paper", "gamma": 1.0, "begin": 0.9},
    }
    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    inner_limit: ClassVar[str] = "iterations"
    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.4
    std_ratio: ClassVar[tuple[float, float]] = (0.86, 0.96)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.26, 1.03)

    def schedule(self, problem: Problem) -> Tensor:
        low, high = (s / (1 + s) for s in (problem.prior.sigma_min, problem.prior.sigma_max))
        time = torch.linspace(min(self.begin, high), 0, self.steps + 1, dtype=torch.float64)[:-1].clamp_min(low)
        return torch.cat([time / (1 - time), time.new_zeros(1)])

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        sigma = self.schedule(problem)[0].item()
        start = problem.linear.adjoint(problem.y) / problem.operator_norm() ** 2 + sigma * rng.normal(problem.zeros())
        return {"x": start, "shift": torch.zeros_like(start)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        unknown = problem.prior.error(sigma) if self.variance == "measured" else sigma**2 / (1 + sigma**2)
        with torch.enable_grad():
            x = state["x"].detach().requires_grad_()
            denoised = problem.denoise(x, sigma)
        residual = problem.residual(denoised.detach())
        # r^2 A'(r^2 A A' + sigma_y^2)^-1 (y - A D).
        shift = correction(problem, residual, unknown, state["shift"], sigma_next, self.iterations)
        (product,) = torch.autograd.grad(denoised, x, shift)
        x = x.detach()
        estimate = denoised.detach() + self.gamma * sigma**2 / unknown * product
        x = estimate + sigma_next / sigma * (x - estimate)
        return {"x": x, "shift": shift, "residual": problem.misfit(residual)}
