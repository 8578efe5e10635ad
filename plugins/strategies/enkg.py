"""EnKG (Zheng 2024): an ensemble of probability flows, moved by Kalman's gain over its own members; no derivative of anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.linalg import rows, size_of
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class EnKG(Strategy):
    """An ensemble moved by its own covariance with what it predicts (Zheng 2024); any simulator, no derivatives.

    At each level: z -= weight / |K| (K Z), K = (A(x) - y) (A(x) - mean A(x))' / N over the N members, then the flow's step.

    Zheng et al., 2024 (EnKG), Algorithm 1, with the settings of InverseBench: x is where the probability flow from z ends in
    up to ten steps of Euler, Z are the members less their mean. Only `forward` of the operator is called, so it may be a
    black box. The ensemble are the samples of an item: ask for as many as an image has pixels, theirs is 2048; what is no
    combination of its members it cannot fit, and fewer members than pixels are warned of. Ours: residuals are weighed by the
    precision of the data, and an ensemble whose members meet the data to within the noise on average is not moved further; their
    steps know no noise level.

    Known bias: the step's length is set by its norm, so members gather around one image: their spread is no uncertainty, and
    the smaller the ensemble, the further off that image. With as many members as pixels, on a smooth field of 8 x 8, it is 1.3
    posterior standard deviations off (at worst of seven fields 2.5) where the noise is ten times what the prior's images vary by
    (0.25 counts), 1.3 where it is a tenth, and 0.6 between. With half as many members as pixels tomography is not solved.

    Args:
        steps: noise levels; each costs up to 2 * flow_steps + 1 network calls and two forward operator calls a member.
        flow_steps: of Euler from a level to the clean image, at most.
        updates: Kalman updates a level.
        weight: length of an update.
    """

    name = "enkg"
    paper: ClassVar[Paper | None] = Paper(
        "Ensemble Kalman Diffusion Guidance: A Derivative-free Method for Inverse Problems",
        (
            "Hongkai Zheng",
            "Wenda Chu",
            "Austin Wang",
            "Nikola Kovachki",
            "Ricardo Baptista",
            "Yisong Yue",
        ),
        2024,
        "arXiv:2409.20175",
    )
    cost: ClassVar[str] = "up to 21 forward"

    steps: int = 80
    flow_steps: int = 10
    updates: int = 2
    weight: float = 2.0

    couples_samples: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("prior", "gaussian-like")
    mean_error: ClassVar[float] = 1.1

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // (self.updates * self.flow_steps + 1), 2))

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.edm(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def doubt(self, problem: Problem) -> str:
        members, pixels = problem.samples_per_item, size_of(problem.state_shape)
        if not 2 <= members < pixels:
            return ""
        return (
            f"strategy 'enkg': {members} samples per item are the ensemble, of {pixels} pixels: what is no combination of them "
            f"is not fitted, and the image may be several standard deviations off; {pixels} samples or more mend it"
        )

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        if problem.samples_per_item < 2:
            raise UserError("strategy 'enkg' needs an ensemble: ask for hundreds of samples per item, 2 at least")
        return {"x": self.schedule(problem)[0].item() * rng.normal(problem.zeros())}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, together = state["x"], problem.samples_per_item
        misfit = None
        if rng.step > 1:
            # More steps of the flow as it gets shorter, as theirs.
            flow = min(1 + (self.steps - rng.step) // 8, self.flow_steps)
            for _ in range(self.updates):
                residual = problem.residual(flowed(problem, x, sigma, flow))
                misfit = problem.misfit(residual) if misfit is None else misfit
                x = x - self.update(problem, x, residual, together)
        estimate = problem.denoise(x, sigma)
        x = estimate + sigma_next / sigma * (x - estimate)
        return {"x": x, "residual": problem.misfit(problem.residual(estimate)) if misfit is None else misfit}

    def update(self, problem: Problem, x: Tensor, residual: Tensor, together: int) -> Tensor:
        """weight / |K| K Z, shaped like x; zero for an ensemble that meets its data to within the noise."""
        weighted = residual * problem.precision()
        weighted = torch.view_as_real(weighted) if weighted.is_complex() else weighted
        error = -weighted.flatten(1).view(-1, together, weighted[0].numel())
        members = x.flatten(1).view(-1, together, x[0].numel())
        gain = error @ (error - error.mean(1, keepdim=True)).transpose(1, 2) / together
        size = gain.flatten(1).norm(dim=1).clamp_min(torch.finfo(gain.dtype).tiny)
        pooled = problem.misfit(residual).view(-1, together).square().mean(1)
        going = (pooled > problem.expected_misfit().view(-1, together).square().mean(1)).to(gain)
        move = rows(going * self.weight / size, gain) * (gain @ (members - members.mean(1, keepdim=True)))
        return move.view_as(x)


def flowed(problem: Problem, x: Tensor, sigma: float, steps: int) -> Tensor:
    """Where the probability flow from x at `sigma` ends, by Euler's steps on Karras' levels."""
    levels = schedules.edm(steps, min(problem.prior.sigma_min, sigma), sigma).tolist() if steps > 1 else [sigma, 0.0]
    for level, after in pairwise(levels):
        estimate = problem.denoise(x, level)
        x = estimate + after / level * (x - estimate)
    return x
