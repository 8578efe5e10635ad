"""The linear reconstruction that users of each instrument know: the baseline to beat, and its only cost is one solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class LinearReconstruction(Strategy):
    """Filtered back-projection, zero-filled, SENSE, Wiener; no prior.

    FBP for tomography, zero-filled or SENSE for MRI, Wiener for blur, Tikhonov for operators that define nothing better.

    Known bias: it knows nothing of images beyond their scale, and gives no uncertainty.

    Args:
        iterations: of conjugate gradients at most, where neither a formula nor a closed form is known; to 1e-5 of the residual.
    """

    name = "linear"
    cost: ClassVar[str] = "none"
    advice: ClassVar[tuple[str, str]] = ("a quick look", "")

    iterations: int = 100

    inner_limit: ClassVar[str] = "iterations"
    needs: ClassVar[tuple[str, ...]] = ("linear", "gaussian")
    explains: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    mean_error: ClassVar[float] = 1.25

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise UserError(f"strategy linear: iterations must be 1 or more, got {self.iterations}")

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(0)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": problem.baseline(solver=CG(iterations=self.iterations))}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        return state
