"""The linear reconstruction that users of each instrument know: the baseline to beat, and its only cost is one solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class LinearReconstruction(Strategy):
    """Filtered back-projection, zero-filled, SENSE, Wiener; no prior.

    FBP for tomography, zero-filled or SENSE for MRI, Wiener for blur, Tikhonov for operators that define nothing better.

    Known bias: it knows nothing of images beyond their scale, and gives no uncertainty.
    """

    name = "linear"
    cost: ClassVar[str] = "none"
    advice: ClassVar[tuple[str, str]] = ("a quick look", "")

    needs: ClassVar[tuple[str, ...]] = ("linear", "gaussian")
    explains: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    mean_error: ClassVar[float] = 1.25

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(0)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        return {"x": problem.baseline()}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        return state
