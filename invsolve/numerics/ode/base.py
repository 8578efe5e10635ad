"""What a solver of the sampling equation is: frozen settings, a step, and a memory of plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.numerics.random import ChainRandom

#: D(x, sigma): x (B, C, *spatial), sigma a Python number > 0. A prior's, or one conditioned on data.
Denoise = Callable[[Tensor, float], Tensor]

#: What a multistep solver keeps: "past" (B, k, C, *spatial), newest first, and their noise "levels" (B, k), float64 on the
#: CPU, so that reading them as numbers waits for no device. Empty before the first step.
Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Solver:
    """How to go from noise level sigma to sigma_next < sigma along dx/dsigma = (x - D(x, sigma)) / sigma.

    Settings only: what the next step needs is in the memory that `step` returns, whose keys ("past", "levels") may stand in
    a strategy's state beside others. A step to level 0 returns D unless a class says otherwise: the methods in
    log sigma have no higher order there. Sigmas are Python numbers; nothing waits for the device.

    Attributes:
        order: global order of convergence on grids that are smooth functions of the step's number (Karras', DDPM's), at
            noise levels above 0; stochastic settings have it for the deterministic part alone.
        evaluations: calls of D a step, after any warm-up.
    """

    order: ClassVar[int]
    evaluations: ClassVar[int] = 1

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        memory: Mapping[str, Tensor],
        sigma: float,
        sigma_next: float,
        rng: ChainRandom,
    ) -> tuple[Tensor, Memory]:
        """Take one step.

        Args:
            denoise: D(x, sigma), called at noise levels > 0 only.
            x: (B, C, *spatial) at level sigma.
            memory: what the step before returned, or a mapping that holds it; empty at the first step.
            sigma, sigma_next: noise levels, sigma > sigma_next >= 0.
            rng: asked by stochastic solvers only.

        Returns:
            x at level sigma_next, and the memory for the next step.
        """
        raise NotImplementedError

    def over(self, steps: int) -> Solver:
        """The same solver for a run of so many steps: what a method spreads over its run is then known for each step."""
        return self

    def calls(self, steps: int) -> int:
        """Calls of D in a run of `steps` steps whose last goes to level 0."""
        return self.evaluations * (steps - 1) + 1

    def steps_within(self, calls: int) -> int:
        """The largest number of steps, at least 2, whose run takes at most so many calls."""
        steps = 2
        while self.calls(steps + 1) <= calls:
            steps += 1
        return steps


def recall(memory: Mapping[str, Tensor]) -> tuple[list[Tensor], list[float]]:
    """Return what was kept, newest first, and the noise levels it belongs to."""
    if "past" not in memory:
        return [], []
    return list(memory["past"].unbind(1)), memory["levels"][0].tolist()


def remember(kept: Sequence[Tensor], levels: Sequence[float], depth: int) -> Memory:
    """Keep the first `depth` of these, given newest first."""
    rows = torch.tensor(levels[:depth], dtype=torch.float64).expand(len(kept[0]), -1).contiguous()
    return {"past": torch.stack(list(kept[:depth]), 1), "levels": rows}


def euler(x: Tensor, estimate: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x moved along the straight line through D: (sigma'/sigma) x + (1 - sigma'/sigma) D; exactly D at sigma' = 0."""
    if sigma_next == 0:
        return estimate
    return sigma_next / sigma * x + (1 - sigma_next / sigma) * estimate
