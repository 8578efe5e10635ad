"""CODE (van Delft 2024): a corrupted image taken up the flow, corrected by the prior at that level, and brought down again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._flow import descend, eps

#: Parts of the corrections, each with shorter steps than the one before, and by how much.
STAGES, SHORTER = 4, 0.8


@dataclass(frozen=True)
class CODE(Strategy):
    """The linear reconstruction taken up the flow, corrected there, and brought down again (van Delft 2024).

    DDIM from the image to the noise level `depth`, `corrections` steps z + e (1 + s^2) score + sqrt(2 e (1 + s^2)) n, DDIM back.

    Van Delft, Martorella and Alahi, 2024, Algorithm 1, in variance-exploding coordinates; a Langevin step e is of the
    variance-preserving state, shorter by 0.8 in each of four stages. On the way down |z| is held within the prior's range
    plus `confidence` s, where that range is stated: what lies further out is disregarded (their confidence clip). Theirs is blind
    and edits any image; here the image is the linear reconstruction for white images of the prior's mean and variance, plus
    noise of the prior's lowest level. Their quantile threshold on D is left out.

    Known bias: blind. The data enter by the start alone, no operator and no noise level after it, so the image is the likelier
    one near the reconstruction, not one that fits the data, and its scatter is that of the Langevin steps.

    Args:
        depth: noise level of the corrections, network units; the deeper, the more of the image is the prior's.
        corrections: Langevin steps there, one network call each.
        length: e, of the first stage; theirs 1e-2 to 1e-4 at small depths, 1e-4 to 1e-6 at great ones.
        flow_steps: levels of the way up and of the way down.
        confidence: standard deviations of the noise beyond the prior's range that are believed.
    """

    name = "code"
    paper: ClassVar[Paper | None] = Paper(
        "CODE: Confident Ordinary Differential Editing",
        ("Bastien van Delft", "Tommaso Martorella", "Alexandre Alahi"),
        2024,
        "arXiv:2408.12418",
    )

    depth: float = 0.2
    corrections: int = 100
    length: float = 1e-4
    flow_steps: int = 50
    confidence: float = 1.7

    draws: ClassVar[bool] = False
    explains: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian", "low-noise")
    mean_error: ClassVar[float] = 1.2

    def __post_init__(self) -> None:
        if self.depth <= 0 or self.flow_steps < 2 or self.corrections < 0 or self.length <= 0:
            raise UserError(
                "strategy 'code': depth and length must be above 0, flow_steps at least 2, corrections not negative"
            )

    def at_cost(self, evaluations: int) -> Self:
        way = max(min(self.flow_steps, evaluations // 4), 2)
        return replace(self, flow_steps=way, corrections=max(evaluations - 2 * way, 0))

    def levels(self, problem: Problem) -> Tensor:
        """Of the way down, from `depth` to 0."""
        low, high = problem.prior.sigma_min, min(self.depth, problem.prior.sigma_max)
        return schedules.edm(self.flow_steps, min(low, high / 2), high)

    def schedule(self, problem: Problem) -> Tensor:
        down = self.levels(problem)
        return torch.cat([down[:1].expand(self.corrections), down])

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        up = self.levels(problem).flip(0)[1:].tolist()
        image = self.corrupted(problem) + up[0] * rng.normal(problem.zeros())
        return {"x": descend(problem, image, up)[-1]}

    def corrupted(self, problem: Problem) -> Tensor:
        """The image to edit: the linear reconstruction for white images of the prior's mean and variance."""
        top = problem.prior.sigma_max
        mean = problem.denoise(problem.zeros(), top)
        return problem.prox(mean, problem.y, problem.rho(problem.prior.error(top)))

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        z = state["x"]
        if sigma_next == sigma:
            stage = (rng.step - 1) * STAGES // self.corrections
            length = self.length * SHORTER**stage * (1 + sigma**2)
            z = z - length / sigma * eps(problem, z, sigma) + math.sqrt(2 * length) * rng.normal(z)
            return {"x": z}
        z = self.confident(problem, z, sigma)
        return {"x": z + (sigma_next - sigma) * eps(problem, z, sigma)}

    def confident(self, problem: Problem, z: Tensor, sigma: float) -> Tensor:
        """z held within the prior's range, -1 to 1, and `confidence` sigma; as it is where the range is not stated."""
        if problem.prior.data_range is None:
            return z
        reach = 1 + self.confidence * sigma
        return z.clamp(-reach, reach)
