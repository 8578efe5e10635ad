"""The only loop: items x samples into batches, steps, counts, callbacks, checks, and finished items to the sink."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from invsolve.batching import batches, batches_of_volumes
from invsolve.collecting import Collector
from invsolve.contracts.across import AlongAxis
from invsolve.contracts.layout import Measurement, Sink
from invsolve.contracts.linalg import norm
from invsolve.contracts.prior import Prior
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.random import ChainRandom
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.metering import metered
from invsolve.needs import linear_gaussian
from invsolve.reading import read_rows
from invsolve.snapshot import Chain, Keeper, Sample, Snapshot
from invsolve.streaming import ReadAhead
from invsolve.volume import Alone, RowsOfAVolume, SliceWise, in_chunks, volumes_of


class NonFinite(ArithmeticError):
    """A result became NaN or infinite; says at which step and what the likely cause is."""


class Interrupted(Exception):
    """The run was asked to stop; finished items are kept."""


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
    """One batch, done: images in network units, the residual at each step, of the images, and what it cost a row."""

    images: Tensor
    residuals: Tensor
    discrepancy: Tensor
    numbers: Tensor
    record: dict[str, Tensor]
    facts: dict[str, float]
    linear: dict[int, Tensor] = field(default_factory=dict)

    def gathered(self, team: Alone, rows: int) -> Outcome:
        """The outcome of all rows, of which each process has its share."""
        share = len(self.images) / rows
        return Outcome(
            team.gather(self.images, rows),
            team.gather(self.residuals, rows),
            team.gather(self.discrepancy, rows),
            team.gather(self.numbers, rows),
            {name: team.gather(value, rows) for name, value in self.record.items()},
            self.facts | {"seconds": self.facts["seconds"] * share},
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
    with torch.no_grad(), metered(problem.operator, problem.calls):
        levels = strategy.schedule(problem).tolist()
        expected = problem.expected_misfit()
        expected = torch.where(expected > 0, expected, torch.ones_like(expected))
        if resume is None:
            state = strategy.init(problem, rng.at(0))
            residuals = torch.full((problem.batch, max(len(levels) - 1, 1)), torch.nan, device=problem.y.device)
        else:
            state, residuals = dict(resume.state), resume.residuals
            began -= resume.seconds
            problem.calls.add(resume.calls)
        done = 0 if resume is None else resume.step
        watch = _Watch(problem, levels)
        for k, (sigma, sigma_next) in enumerate(pairwise(levels[done:]), start=done + 1):
            state = strategy.step(problem, state, sigma, sigma_next, rng.at(k))
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
                keep(Snapshot(rng.chains, k, state, residuals, seconds, problem.calls.counts()), stopping)
            if stopping:
                raise Interrupted
        images = strategy.result(problem, state)
        watch.finish(images)
        record = strategy.record(problem, state)
    with torch.no_grad():
        discrepancy, numbers = problem.discrepancy(images, strategy.used(problem, state))
        if state.get("residual") is None:
            residuals[:, -1] = norm(problem.residual(images)) / expected
    rows, calls = problem.batch, problem.calls
    facts = {
        "network_calls": calls.network / rows,
        "vjp_calls": calls.vjp / rows,
        "operator_calls": (calls.forward + calls.adjoint) / rows,
        "seconds": (time.perf_counter() - began) / rows,
    }
    return Outcome(images, residuals, discrepancy, numbers, record, facts)


def _late(strategy: Strategy, problem: Problem, state: State) -> Callable[[], Tensor]:
    return lambda: strategy.result(problem, state)


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


@dataclass
class Run:
    """One reconstruction of many items: settings, and the loop over batches.

    Args:
        prior, strategy: what to run; the prior may be None for strategies that do without.
        image_shape: (C, *spatial).
        scale: network to physical units, one value or one an item.
        samples: S, samples an item.
        seed: >= 0.
        batch_size: chains that go through the network at once.
        device, dtype: where and in what precision states live.
        precision: of the network, "float32" or "bf16".
        callback: called after each step; a true return value ends the batch early.
        should_stop: asked after each step; True raises Interrupted.
        on_batch: told the chains of each finished batch.
        only: the items to run, as a range of the measurement's; None for all.
        linear_too: add the linear reconstruction, `pinv`, to each item where the problem has one.
        coherence: how alike the noise of neighbouring items is, see `ChainRandom`.
        slicings: along how many axes a volume is cut into the slices that the prior denoises, 1 or 3.
        team: the processes that share each volume.
        keeper: keeps what is needed to go on after a kill in the middle of a batch; None keeps nothing.
    """

    measurement: Measurement
    prior: Prior | None
    strategy: Strategy
    image_shape: tuple[int, ...]
    scale: Scale
    samples: int
    seed: int
    batch_size: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    callback: Callback | None = None
    should_stop: Callable[[], bool] | None = None
    on_batch: Callable[[Sequence[Chain]], None] | None = None
    only: range | None = None
    linear_too: bool = False
    coherence: float = 0.0
    slicings: int = 1
    precision: str = "float32"
    team: Alone = field(default_factory=Alone)
    keeper: Keeper | None = None
    _resume: Snapshot | None = field(default=None, init=False)
    _home: torch.device | None = field(default=None, init=False)
    _ahead: ReadAhead | None = field(default=None, init=False)
    _collector: Collector | None = field(default=None, init=False)

    @property
    def items(self) -> range:
        """The items to run."""
        return range(len(self.measurement.y)) if self.only is None else self.only

    @property
    def chains_per_batch(self) -> int:
        """How many chains are a batch; `batch_size` counts what goes through the network, of which a volume has many."""
        deep = self.image_shape[1] if isinstance(self.prior, SliceWise) else 1
        return max(self.batch_size // deep, 1)

    @property
    def items_per_batch(self) -> int:
        """How many items a batch touches at most, when it begins with a new one."""
        return -(-self.chains_per_batch // self.samples)

    @property
    def couples_items(self) -> bool:
        """Whether a batch is all slices of a volume; where an image is itself a volume, it is coupled in itself."""
        return self.strategy.couples_items and len(self.image_shape) == 3

    @property
    def home(self) -> torch.device:
        """Where states live: the device, until the volume turns out to be too large for it."""
        return self._home or self.device

    def execute(self, sink: Sink) -> None:
        """Run every item that the sink does not have yet, and hand each over as soon as its last sample is done.

        Items are read by a thread ahead of the computing, and written by another behind it: `sink.write` is called in
        that thread, one item at a time. Memory depends on the batch, not on the number of items. The slices of a
        coupled volume are read when their batch begins, all at once.
        """
        waiting: dict[int, list[Sample]] = {}
        if self.keeper is not None:
            self._resume, waiting = self.team.same(self.keeper.restore() if self.team.leads else (None, {}))
        done = self.team.same({item for item in self.items if sink.is_done(item)})
        left = [item for item in self.items if item not in done]
        begun = [] if self._resume is None else list(self._resume.chains)
        had = {(item, sample) for item, parts in waiting.items() for sample, _, _ in parts} | set(begun)
        first = self.items_per_batch
        reading = None if self.couples_items else ReadAhead(self._read, left, first)
        collector = Collector(sink, self.samples, waiting, done, depth=max(first, 2))
        try:
            with collector as self._collector, reading or nullcontext() as self._ahead:
                # First what a kill interrupted.
                if begun:
                    self._run_all([begun], collector)
                self._run_all(self.batches(left, had), collector)
        finally:
            self._collector = self._ahead = None

    def batches(self, left: Collection[int], had: Collection[Chain] = ()) -> Iterator[list[Chain]]:
        """Batches of the items that are left, without the chains that were had already."""
        if self.couples_items:
            yield from batches_of_volumes(volumes_of(self.measurement), self.samples, set(left), had)
            return
        chains = [(item, s) for item in left for s in range(self.samples) if (item, s) not in had]
        # Items that each have an operator of their own do not share a batch.
        apart = self.measurement.operators is not None
        for run in [[c for c in chains if c[0] == item] for item in left] if apart else [chains]:
            yield from batches(run, lambda: self.chains_per_batch, self._together(run))

    def _together(self, chains: Sequence[Chain]) -> int:
        """How many of these chains, and of any part of them, must stay in one batch."""
        if self.couples_items:
            return len(chains)
        return self.samples if self.strategy.couples_samples else 1

    def _run_all(self, given: Iterable[list[Chain]], collector: Collector) -> None:
        for batch in given:
            for part, outcome in self._attempt(batch, self._together(batch)):
                if self.team.leads:
                    self._collect(part, outcome, collector)
                if self.on_batch is not None:
                    self.on_batch(part)

    def _attempt(self, chains: list[Chain], together: int) -> Iterator[tuple[list[Chain], Outcome]]:
        """Run a batch; when memory runs out, halve it, and keep the smaller size."""
        try:
            outcome = self._run(chains)
        except (torch.OutOfMemoryError, MemoryError) as error:
            rows = self.batch_size if self.couples_items else len(chains)
            least = 1 if self.couples_items else together
            half = max(rows // 2 // least, 1) * least
            if self.couples_items and self.home.type != "cpu":
                # A volume's states are large, and needed on the device only a few slices at a time.
                self._home, half = torch.device("cpu"), rows
            elif half >= rows:
                raise UserError(
                    f"out of memory with the smallest batch ({rows} chains): use a smaller image, fewer coupled "
                    f"samples, or another device ({str(error).splitlines()[0]})"
                ) from None
            self.batch_size = half
        else:
            yield chains, outcome
            return
        # Outside the except clause: the traceback there would keep the failed batch's tensors alive.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        for part in batches(chains, lambda: self.batch_size, together):
            yield from self._attempt(part, together)

    def _run(self, chains: list[Chain]) -> Outcome:
        team, mine = self.team, self.team.share(len(chains))
        problem = self.problem(chains[mine])
        outcome = run_batch(
            problem,
            self.strategy,
            ChainRandom(self.seed, chains[mine], coherence=self.coherence),
            lambda info: team.any(self.callback is not None and bool(self.callback(info))),
            lambda: team.any(self.should_stop is not None and self.should_stop()),
            self._resumed(chains, mine),
            (lambda snapshot, stopping: self._keep(chains, snapshot, stopping)) if self.keeper is not None else None,
        )
        outcome = outcome.gathered(team, len(chains))
        if self.linear_too and team.leads and linear_gaussian(problem):
            outcome.linear = self._linear([item for item, sample in chains if sample == 0])
        return outcome

    def _linear(self, items: list[int]) -> dict[int, Tensor]:
        """Linear reconstructions of items, physical units, on the CPU; no more at once than go through the network."""
        found: dict[int, Tensor] = {}
        for start in range(0, len(items), self.chains_per_batch):
            some = items[start : start + self.chains_per_batch]
            with torch.no_grad():
                images = self.problem([(item, 0) for item in some]).baseline()
            images = self.measurement.crop(self.scale.rows(some).to_physical(images)).cpu()
            found |= dict(zip(some, images, strict=True))
        return found

    def _resumed(self, chains: list[Chain], mine: slice) -> Snapshot | None:
        """This process's part of where a kill interrupted these chains; only once."""
        found, self._resume = self._resume, None
        if found is None or list(found.chains) != chains:
            return None
        return found.map(lambda rows: rows[mine].to(self.home), chains[mine], len(chains[mine]) / len(chains))

    def _keep(self, chains: list[Chain], snapshot: Snapshot, stopping: bool) -> None:
        assert self.keeper is not None
        if self.team.any(stopping or (self.team.leads and self.keeper.due())):
            share = len(snapshot.chains) / len(chains)
            whole = snapshot.map(lambda rows: self.team.gather(rows.detach(), len(chains)).cpu(), chains, 1 / share)
            if self.team.leads:
                assert self._collector is not None
                self.keeper.save(whole, self._collector.waiting())

    def problem(self, chains: Sequence[Chain]) -> Problem:
        """The posterior for these chains, in network units, on the device (the slices of a volume: where states live)."""
        items = [item for item, _ in chains]
        distinct = list(dict.fromkeys(items))
        y = self._rows(distinct)
        home = self.home if self.couples_items else self.device
        y = y.to(home, self.dtype.to_complex() if y.is_complex() else self.dtype)
        where = {item: row for row, item in enumerate(distinct)}
        y = y[[where[item] for item in items]]
        noise = self.measurement.noise
        assert noise is not None
        coupled = self.samples if self.strategy.couples_samples else 1
        operator, prior = self.measurement.operator_for(items[0]).to(self.device), self.prior
        if self.couples_items:
            operator = in_chunks(operator, self.batch_size, self.device, home)
            prior = None if prior is None else RowsOfAVolume(prior, self.batch_size, self.device, self.slicings)
        problem = make_problem(prior, operator, noise, y, self.image_shape, self.scale.rows(items), coupled)
        problem.network_precision = self.precision
        if self.couples_items:
            problem.across = self.team.across()
        elif len(self.image_shape) == 4:
            problem.across = AlongAxis()
        return problem

    def _read(self, start: int, stop: int) -> Tensor:
        return read_rows(self.measurement, start, stop)

    def _rows(self, items: list[int]) -> Tensor:
        if self._ahead is None:
            return torch.cat([self._read(item, item + 1) for item in items])
        return torch.stack(self._ahead.take(items, self._poll))

    def _poll(self) -> None:
        if self.should_stop is not None and self.should_stop():
            raise Interrupted

    def _collect(self, chains: Sequence[Chain], outcome: Outcome, collector: Collector) -> None:
        scale = self.scale.rows([item for item, _ in chains])
        arrays = {
            "image": self.measurement.crop(scale.to_physical(outcome.images)).cpu(),
            "residual": outcome.residuals.cpu(),
            "discrepancy": outcome.discrepancy.cpu(),
            "discrepancy_numbers": outcome.numbers.cpu(),
        }
        arrays |= {name: value.cpu() for name, value in outcome.record.items()}
        collector.add(chains, arrays, outcome.facts, outcome.linear)
