"""Noise levels for few steps, found by search: those with which a solver ends nearest to where a fine grid ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from invsolve import api
from invsolve.api.inputs import prior_of, whole
from invsolve.api.sampling import along, image_shape
from invsolve.contracts.module import placed
from invsolve.contracts.prior import Prior
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.ode.solvers import Heun, Solver, solver

#: Where between its neighbours a level is tried, in their logarithms; the first sweeps look further.
_PLACES = ((0.15, 0.3, 0.45, 0.6, 0.75, 0.9), (0.35, 0.5, 0.65))


@dataclass(frozen=True)
class Searched:
    """What was found.

    Attributes:
        levels: descending, the last is 0; what `sample(levels=)` takes.
        error: root mean square distance per pixel of the samples from those of the fine grid, network units.
        usual: the same with as many levels of the EDM schedule.
        calls: network calls of the whole search, per image.
    """

    levels: list[float]
    error: float
    usual: float
    calls: int


def search_schedule(
    prior: Prior | str | Path,
    steps: int = 5,
    solver_: Solver | str = "dpmpp-2m",
    count: int = 4,
    shape: Sequence[int] | None = None,
    fine: int = 48,
    sweeps: int = 4,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Searched:
    """Search the noise levels of a run of few steps by coordinate descent (in the spirit of AutoDiffusion, Li 2023).

    Each level in turn is moved to where, between its neighbours, the samples end nearest to those that Heun's method with
    `fine` steps reaches from the same noise. Of stochastic solvers the noise differs between the grids: take a deterministic one.

    Args:
        prior: a Prior, a registered name or a checkpoint file.
        steps: network calls, two or more; the first level is the prior's largest.
        solver_: a name or a Solver, with one call per step.
        count: images it is searched on.
        shape: (C, *spatial); default the prior's own, free sizes filled with 128.
        fine: steps of the fine grid.
        sweeps: over all levels.
        seed: of the noise; image i depends on (seed, i).
        device: "cpu", "cuda", ...

    Raises:
        UserError: fewer than two steps, a solver with several calls per step, or a shape that the prior does not take.
    """
    chosen = solver(solver_)
    steps, sweeps = whole(steps, "steps", 2), whole(sweeps, "sweeps", 1)
    if chosen.calls(steps) != steps:
        raise UserError(
            f"a schedule is searched for solvers of one call per step, {solver_!r} takes {chosen.calls(steps)}"
        )
    loaded = placed(prior_of(prior), api.resolve_device(device), frozen=True)
    wanted = image_shape(loaded) if shape is None else tuple(shape)
    calls = 0

    def run(levels: Sequence[float], by: Solver) -> Tensor:
        nonlocal calls
        calls += by.calls(len(levels) - 1)
        return along(loaded, levels, by.over(len(levels) - 1), seed, count, wanted, api.resolve_device(device))

    target = run(schedules.edm(fine, loaded.sigma_min, loaded.sigma_max).tolist(), Heun())

    def error(levels: Sequence[float]) -> float:
        distance = float((run(levels, chosen) - target).square().mean().sqrt())
        return distance if math.isfinite(distance) else math.inf

    levels = schedules.edm(steps, loaded.sigma_min, loaded.sigma_max).tolist()
    usual = least = error(levels)
    for sweep in range(sweeps):
        before = least
        for k in range(1, steps):
            low = math.log(levels[k + 1]) if k + 1 < steps else math.log(loaded.sigma_min)
            high = math.log(levels[k - 1])
            for place in _PLACES[min(sweep, 1)]:
                tried = [*levels[:k], math.exp(low + place * (high - low)), *levels[k + 1 :]]
                distance = error(tried)
                if distance < least:
                    levels, least = tried, distance
        if sweep and least > 0.995 * before:
            break
    return Searched(levels, least, usual, calls)
