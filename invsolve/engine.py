"""The only loop: items x samples into batches, steps, counts, callbacks, checks, and finished items to the sink."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from invsolve.contracts.layout import Measurement, Sink
from invsolve.contracts.linalg import norm
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator, MaskableOperator
from invsolve.contracts.prior import Prior
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.random import ChainRandom
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import NEEDS, State, Strategy
from invsolve.errors import UserError
from invsolve.metering import metered
from invsolve.streaming import ReadAhead, WriteBehind

Chain = tuple[int, int]


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


@dataclass
class Part:
    """One sample of an item, on the CPU, until the item's others are there too."""

    sample: int
    arrays: dict[str, Tensor]
    facts: dict[str, float]
    linear: Tensor | None


def check_needs(strategy: Strategy, problem: Problem) -> None:
    """Raise UserError when the problem lacks what the strategy declares to need."""
    operator = problem.operator
    have = {
        "prior": lambda: problem.known is not None,
        "prior-gradient": lambda: problem.known is not None and problem.known.differentiable,
        "linear": lambda: isinstance(operator, LinearOperator),
        "maskable": lambda: isinstance(operator, MaskableOperator),
        "operator-gradient": lambda: _differentiable(problem),
        "linearisation": lambda: _linear_gaussian(problem) or _differentiable(problem),
        "gaussian": lambda: problem.noise.name == "gaussian",
    }
    for need in strategy.needs:
        if not have[need]():
            names = {"operator": operator.name or type(operator).__name__}
            prior = getattr(problem.known, "name", "") or type(problem.known).__name__
            got = {
                "prior": "none is given",
                "prior-gradient": f"{prior!r} cannot",
                "gaussian": f"it is {problem.noise.name}",
            }
            reason = got.get(need, f"{names['operator']!r} is not" if need != "operator-gradient" else "it is not")
            raise UserError(f"strategy {strategy.name or type(strategy).__name__!r} needs {NEEDS[need]}; {reason}")


def _linear_gaussian(problem: Problem) -> bool:
    return isinstance(problem.operator, LinearOperator) and isinstance(problem.noise, Gaussian)


def _differentiable(problem: Problem) -> bool:
    with torch.enable_grad():
        probe = problem.zeros()[:1].requires_grad_()
        return bool(problem.operator(probe).requires_grad)


def run_batch(
    problem: Problem,
    strategy: Strategy,
    rng: ChainRandom,
    callback: Callback | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Run one batch of chains through the whole schedule.

    Raises:
        NonFinite: the iterate became NaN or infinite.
        Interrupted: `should_stop` said so.
    """
    began = time.perf_counter()
    with torch.no_grad(), metered(problem.operator, problem.calls):
        levels = strategy.schedule(problem).tolist()
        expected = problem.expected_misfit()
        expected = torch.where(expected > 0, expected, torch.ones_like(expected))
        state = strategy.init(problem, rng.at(0))
        residuals = torch.full((problem.batch, max(len(levels) - 1, 1)), torch.nan, device=problem.y.device)
        watch = _Watch(problem, levels)
        for k, (sigma, sigma_next) in enumerate(pairwise(levels), start=1):
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
            if should_stop is not None and should_stop():
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


def batches(chains: Sequence[Chain], size: Callable[[], int], together: int) -> Iterator[list[Chain]]:
    """Cut chains into batches of `size()` rows, a multiple of `together`; asks for the size anew for each."""
    position = 0
    while position < len(chains):
        rows = max(size() // together, 1) * together
        yield list(chains[position : position + rows])
        position += rows


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
        callback: called after each step; a true return value ends the batch early.
        should_stop: asked after each step; True raises Interrupted.
        on_batch: told the chains of each finished batch.
        only: the items to run, as a range of the measurement's; None for all.
        linear_too: add the linear reconstruction, `pinv`, to each item where the problem has one.
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
    waiting: dict[int, list[Part]] = field(default_factory=dict, init=False)
    ahead: ReadAhead | None = field(default=None, init=False)

    @property
    def items(self) -> range:
        """The items to run."""
        return range(len(self.measurement.y)) if self.only is None else self.only

    @property
    def items_per_batch(self) -> int:
        """How many items a batch touches at most, when it begins with a new one."""
        return -(-self.batch_size // self.samples)

    def execute(self, sink: Sink) -> None:
        """Run every item that the sink does not have yet, and hand each over as soon as its last sample is done.

        Items are read by a thread ahead of the computing, and written by another behind it: `sink.write` is called in
        that thread, one item at a time. Memory depends on the batch, not on the number of items.
        """
        items = [i for i in self.items if not sink.is_done(i)]
        chains = [(i, s) for i in items for s in range(self.samples)]
        together = self.samples if self.strategy.couples_samples else 1
        # Items that each have an operator of their own do not share a batch.
        apart = self.measurement.operators is not None
        runs = [[c for c in chains if c[0] == item] for item in items] if apart else [chains]

        def write(item: int, parts: list[Part]) -> None:
            sink.write(item, *_summary(parts))

        first = self.items_per_batch
        reading = ReadAhead(lambda start, stop: read_rows(self.measurement, start, stop), items, first)
        with WriteBehind(write, depth=max(first, 2)) as writing, reading as self.ahead:
            try:
                for batch in (b for run in runs for b in batches(run, lambda: self.batch_size, together)):
                    for part, outcome in self._attempt(batch, together):
                        self._collect(part, outcome, writing)
                        if self.on_batch is not None:
                            self.on_batch(part)
            finally:
                self.ahead = None
                self.waiting.clear()

    def _attempt(self, chains: list[Chain], together: int) -> Iterator[tuple[list[Chain], Outcome]]:
        """Run a batch; when memory runs out, halve it, and keep the smaller size."""
        try:
            outcome = self._run(chains)
        except (torch.OutOfMemoryError, MemoryError) as error:
            half = max(len(chains) // 2 // together, 1) * together
            if half >= len(chains):
                raise UserError(
                    f"out of memory with the smallest batch ({len(chains)} chains): use a smaller image, fewer coupled "
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
        problem = self.problem(chains)
        outcome = run_batch(problem, self.strategy, ChainRandom(self.seed, chains), self.callback, self.should_stop)
        first = [item for item, sample in chains if sample == 0]
        if self.linear_too and first and _linear_gaussian(problem):
            with torch.no_grad():
                images = self.problem([(item, 0) for item in first]).baseline()
            images = self.measurement.crop(self.scale.rows(first).to_physical(images)).cpu()
            outcome.linear = dict(zip(first, images, strict=True))
        return outcome

    def problem(self, chains: Sequence[Chain]) -> Problem:
        """The posterior for these chains, in network units, on the device."""
        items = [item for item, _ in chains]
        distinct = list(dict.fromkeys(items))
        y = self._rows(distinct)
        y = y.to(self.device, self.dtype.to_complex() if y.is_complex() else self.dtype)
        where = {item: row for row, item in enumerate(distinct)}
        y = y[[where[item] for item in items]]
        noise = self.measurement.noise
        assert noise is not None
        coupled = self.samples if self.strategy.couples_samples else 1
        operator = self.measurement.operator_for(items[0]).to(self.device)
        return make_problem(self.prior, operator, noise, y, self.image_shape, self.scale.rows(items), coupled)

    def _rows(self, items: list[int]) -> Tensor:
        if self.ahead is None:
            return torch.cat([read_rows(self.measurement, item, item + 1) for item in items])
        return torch.stack(self.ahead.take(items, self._poll))

    def _poll(self) -> None:
        if self.should_stop is not None and self.should_stop():
            raise Interrupted

    def _collect(self, chains: Sequence[Chain], outcome: Outcome, writing: WriteBehind) -> None:
        scale = self.scale.rows([item for item, _ in chains])
        images = self.measurement.crop(scale.to_physical(outcome.images)).cpu()
        known = {
            "residual": outcome.residuals.cpu(),
            "discrepancy": outcome.discrepancy.cpu(),
            "discrepancy_numbers": outcome.numbers.cpu(),
        }
        known |= {name: value.cpu() for name, value in outcome.record.items()}
        for row, (item, sample) in enumerate(chains):
            arrays = {"image": images[row]} | {name: value[row] for name, value in known.items()}
            linear = outcome.linear.get(item) if sample == 0 else None
            self.waiting.setdefault(item, []).append(Part(sample, arrays, outcome.facts, linear))
            if len(self.waiting[item]) == self.samples:
                writing.put(item, sorted(self.waiting.pop(item), key=lambda part: part.sample))


def _summary(parts: list[Part]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Mean, standard deviation and stacked arrays of an item's samples; costs averaged, seconds summed."""
    arrays = {name: torch.stack([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    samples = arrays.pop("image")
    std = samples.std(0) if len(samples) > 1 else torch.zeros_like(samples[0])
    facts = {name: sum(part.facts[name] for part in parts) / len(parts) for name in parts[0].facts}
    facts["seconds"] *= len(parts)
    if parts[0].linear is not None:
        arrays["pinv"] = parts[0].linear
    return {"mean": samples.mean(0), "std": std, "samples": samples, **arrays}, facts


def read_rows(measurement: Measurement, start: int, stop: int) -> Tensor:
    """Read items of a measurement and refuse what is not finite.

    Raises:
        UserError: NaN or infinity in y, with the item and how many.
    """
    y = measurement.y[start:stop]
    if not bool(y.isfinite().all()):
        item = int((~y.isfinite()).flatten(1).any(1).nonzero()[0]) + start
        count = int((~y[item - start].isfinite()).sum())
        where = f"{measurement.source}: " if measurement.source else ""
        raise UserError(
            f"{where}y has {count} NaN or infinite values in item {item}; replace them, or mark them as unmeasured in the "
            "operator's mask"
        )
    return y
