"""One batch of chains through the whole schedule: steps, counts, callbacks, checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.contracts.returned import called, check_schedule, check_state, check_tensor
from invsolve.contracts.strategy import State, Strategy
from invsolve.engine.metering import metered
from invsolve.engine.processes import SingleProcess
from invsolve.engine.snapshot import Chain, Snapshot
from invsolve.errors import Interrupted, NonFinite
from invsolve.numerics.linalg import norm
from invsolve.numerics.random import ChainRandom


@dataclass(frozen=True)
class StepInfo:
    """What a callback is told after each step.

    Attributes:
        chains: the (item, sample) pair of each row.
        step, steps: position; `step` counts from 1.
        sigma: noise level reached, network units.
        residual: (B,) norm of y - A(D) over its expected value, on the device; None if the strategy did not compute it.
        estimate: call it for the current images (B, C, *spatial), network units.
    """

    chains: Sequence[Chain]
    step: int
    steps: int
    sigma: float
    residual: Tensor | None
    estimate: Callable[[], Tensor]


Callback = Callable[[StepInfo], object]


@dataclass
class Outcome:
    """One batch, done: images in network units, residuals, inner solves that did not converge, and what it cost a row.

    `used` says which entries of y the images rest on, boolean, (B, ...), broadcast to y; None: all that are measured.
    """

    images: Tensor
    residuals: Tensor
    discrepancy: Tensor
    dof: Tensor
    unconverged: Tensor
    diagnostics: dict[str, Tensor]
    facts: dict[str, float]
    used: Tensor | None = None
    linear: dict[int, Tensor] = field(default_factory=dict)

    def gathered(self, processes: SingleProcess, rows: int) -> Outcome:
        """The outcome of all rows, of which each process has its share."""
        share = len(self.images) / rows
        return Outcome(
            processes.gather(self.images, rows),
            processes.gather(self.residuals, rows),
            processes.gather(self.discrepancy, rows),
            processes.gather(self.dof, rows),
            processes.gather(self.unconverged, rows),
            {name: processes.gather(value, rows) for name, value in self.diagnostics.items()},
            self.facts | {"seconds": self.facts["seconds"] * share},
            None if self.used is None else processes.gather(self.used, rows),
        )


def run_batch(
    problem: Problem,
    strategy: Strategy,
    rng: ChainRandom,
    callback: Callback | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: Snapshot | None = None,
    keep: Callable[[Snapshot, bool], None] | None = None,
) -> Outcome:
    """Run one batch of chains through the whole schedule.

    Args:
        problem, strategy, rng: what to run.
        callback: told after each step; a true return value ends the batch early.
        should_stop: asked after each step.
        resume: where to go on from; None starts anew.
        keep: told after each step how to go on from there, and whether the run is about to stop.

    Raises:
        NonFinite: the iterate became NaN or infinite.
        Interrupted: `should_stop` said so.
    """
    began = time.perf_counter()
    with torch.no_grad(), _counting(problem):
        who = called("strategy", strategy)
        levels = check_schedule(strategy.schedule(problem), who).tolist()
        expected = problem.expected_misfit()
        expected = torch.where(expected > 0, expected, torch.ones_like(expected))
        if resume is None:
            state = check_state(strategy.init(problem, rng.at(0)), problem.batch, who, "init")
            residuals = torch.full((problem.batch, max(len(levels) - 1, 1)), torch.nan, device=problem.y.device)
        else:
            state, residuals = dict(resume.state), resume.residuals
            began -= resume.seconds
            problem.calls.add(resume.calls)
            problem.count_unconverged(resume.unconverged)
        done = 0 if resume is None else resume.step
        watch = _Watch(problem, levels)
        for k, (sigma, sigma_next) in enumerate(pairwise(levels[done:]), start=done + 1):
            state = check_state(strategy.step(problem, state, sigma, sigma_next, rng.at(k)), problem.batch, who, "step")
            residual = state.get("residual")
            if residual is not None:
                residuals[:, k - 1] = residual / expected
            watch.look(state["x"], k)
            if callback is not None:
                relative = None if residual is None else residuals[:, k - 1]
                info = StepInfo(rng.chains, k, len(levels) - 1, sigma_next, relative, _late(strategy, problem, state))
                if callback(info):
                    break
            stopping = should_stop is not None and should_stop()
            if keep is not None:
                seconds = time.perf_counter() - began
                missed = problem.unconverged()
                keep(Snapshot(rng.chains, k, state, residuals, missed, seconds, problem.calls.counts()), stopping)
            if stopping:
                raise Interrupted
            if watch.all_converged(state, k):
                break
        images = strategy.result(problem, state)
        check_tensor(images, (problem.batch, *problem.image_shape), who, "result")
        watch.finish(images)
        shown = problem.decoded(images)
        reach, span = problem.reach(shown)
        diagnostics = strategy.diagnostics(problem, state) | {"reach": reach, "span": span}
        if "stride" in state:
            diagnostics["stride"] = state["stride"]
        if "converged" in state:
            diagnostics["at_ceiling"] = (state["converged"] == 0).int()
    with torch.no_grad():
        used = strategy.used(problem, state)
        discrepancy, numbers = problem.discrepancy(images, used)
        if state.get("residual") is None:
            residuals[:, -1] = norm(problem.residual(images)) / expected
    rows, calls = problem.batch, problem.calls
    facts = {
        "network_calls": calls.network / rows,
        "vjp_calls": calls.vjp / rows,
        "operator_calls": (calls.forward + calls.adjoint) / rows,
        "seconds": (time.perf_counter() - began) / rows,
    }
    return Outcome(shown, residuals, discrepancy, numbers, problem.unconverged(), diagnostics, facts, used)


@contextmanager
def _counting(problem: Problem) -> Iterator[None]:
    """Let the problem's operator count its calls; the operator itself does not know."""
    operator = problem.operator
    problem.operator = metered(operator, problem.calls)
    try:
        yield
    finally:
        problem.operator = operator


def _late(strategy: Strategy, problem: Problem, state: State) -> Callable[[], Tensor]:
    return lambda: problem.decoded(strategy.result(problem, state))


class _Watch:
    """Notes the first step at which a row is not finite; asks the device only now and then."""

    def __init__(self, problem: Problem, levels: list[float]) -> None:
        self.first = torch.zeros(problem.batch, dtype=torch.int32, device=problem.y.device)
        self.levels = levels
        self.stride = 1 if problem.y.device.type == "cpu" else 50

    def look(self, x: Tensor, step: int) -> None:
        # A sum is NaN or infinite when any entry is, and costs a fifth of isfinite().all().
        finite = x.flatten(1).sum(1).isfinite()
        self.first = torch.where((self.first == 0) & ~finite, step, self.first)
        if step % self.stride == 0:
            self._raise_if_bad()

    def all_converged(self, state: State, step: int) -> bool:
        """Whether no row needs a further step; asked as rarely as the rest."""
        return "converged" in state and step % self.stride == 0 and bool((state["converged"] != 0).all())

    def finish(self, images: Tensor) -> None:
        self._raise_if_bad()
        if not bool(images.isfinite().all()):
            raise NonFinite("the result is not finite although every step was: the strategy's result() is at fault")

    def _raise_if_bad(self) -> None:
        bad = self.first[self.first > 0]
        if len(bad):
            step = int(bad.min())
            raise NonFinite(
                f"{len(bad)} of {len(self.first)} chains became NaN or infinite at step {step} of {len(self.levels) - 1} "
                f"(sigma {self.levels[step - 1]:.3g}); likely the data term is too strong for the step size (lower the "
                "strategy's strength or take more steps), or the scale between prior and instrument is wrong"
            )
