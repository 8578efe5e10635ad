"""A run of many items: batches of chains, halved when memory runs out, and finished items to the sink."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from invsolve.contracts.measurement import Measurement
from invsolve.contracts.module import placed
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.sink import Sink
from invsolve.contracts.strategy import Strategy
from invsolve.contracts.through_plane import AlongAxis
from invsolve.engine.batch import Callback, Outcome, run_batch
from invsolve.engine.batching import batches, batches_of_volumes
from invsolve.engine.collecting import Collector
from invsolve.engine.determinism import deterministic
from invsolve.engine.needs import linear_gaussian
from invsolve.engine.options import Options
from invsolve.engine.processes import SingleProcess
from invsolve.engine.reading import read_rows
from invsolve.engine.snapshot import Chain, Keeper, Sample, Snapshot
from invsolve.engine.streaming import ReadAhead
from invsolve.engine.volume import RowsOfAVolume, SliceWise, in_chunks, volumes_of
from invsolve.errors import Interrupted, UserError
from invsolve.numerics.random import ChainRandom


@dataclass
class Run:
    """One reconstruction of many items: settings, and the loop over batches.

    Args:
        prior, strategy: what to run; the prior may be None for strategies that do without.
        image_shape: (C, *spatial).
        options: how to run it.
        scale: network to physical units, one value or one per item.
        callback: called after each step; a true return value ends the batch early.
        should_stop: asked after each step; True raises Interrupted.
        on_batch: told the chains of each finished batch.
        only: the items to run, as a range of the measurement's; None for all.
        linear_too: add the linear reconstruction, `linear`, to each item where the problem has one.
        processes: the processes that share each volume.
        keeper: keeps what is needed to go on after a kill in the middle of a batch; None keeps nothing.

    Attributes:
        batch_size: rows that go through the network at once; halved when memory runs out.
        device, dtype: where and in what precision states live.
        baselines: linear reconstructions (C, *spatial) that are known before the run, in network units, by item.
        doubt: why the scale may be wrong, as found before the run; empty where nothing speaks against it.
    """

    measurement: Measurement
    prior: Prior | None
    strategy: Strategy
    image_shape: tuple[int, ...]
    options: Options = field(default_factory=Options)
    scale: Scale = field(default_factory=Scale)
    callback: Callback | None = None
    should_stop: Callable[[], bool] | None = None
    on_batch: Callable[[Sequence[Chain]], None] | None = None
    only: range | None = None
    linear_too: bool = False
    processes: SingleProcess = field(default_factory=SingleProcess)
    keeper: Keeper | None = None
    baselines: dict[int, Tensor] = field(default_factory=dict, init=False)
    doubt: str = field(default="", init=False)
    _resume: Snapshot | None = field(default=None, init=False)
    _home: torch.device | None = field(default=None, init=False)
    _ahead: ReadAhead | None = field(default=None, init=False)
    _collector: Collector | None = field(default=None, init=False)
    _operator: tuple[int | None, Operator] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.batch_size = self.options.rows
        self.device = torch.device(self.options.device)
        self.dtype: torch.dtype = getattr(torch, str(self.options.dtype))

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
        return -(-self.chains_per_batch // self.options.samples)

    @property
    def couples_items(self) -> bool:
        """Whether a batch is all slices of a volume; where an image is itself a volume, it is coupled in itself."""
        return self.strategy.couples_items and len(self.image_shape) == 3

    @property
    def volumes(self) -> list[list[int]]:
        """The items to run of each volume: where only some are wanted, those of a volume are one by themselves."""
        parts = ([item for item in volume if item in self.items] for volume in volumes_of(self.measurement))
        return [part for part in parts if part]

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
            self._resume, waiting = self.processes.same(self.keeper.restore() if self.processes.leads else (None, {}))
        done = self.processes.same({item for item in self.items if sink.is_done(item)})
        remaining = [item for item in self.items if item not in done]
        begun = [] if self._resume is None else list(self._resume.chains)
        had = {(item, sample) for item, parts in waiting.items() for sample, _, _ in parts} | set(begun)
        first = self.items_per_batch
        reading = None if self.couples_items else ReadAhead(self._read, remaining, first)
        collector = Collector(sink, self.options.samples, waiting, done, depth=max(first, 2))
        try:
            with (
                deterministic(self.options.deterministic),
                collector as self._collector,
                reading or nullcontext() as self._ahead,
            ):
                # First what a kill interrupted.
                if begun:
                    self._run_all([begun], collector)
                self._run_all(self.batches(remaining, had), collector)
        finally:
            self._collector = self._ahead = None

    def batches(self, remaining: Collection[int], had: Collection[Chain] = ()) -> Iterator[list[Chain]]:
        """Batches of the items that remain, without the chains that were had already."""
        if self.couples_items:
            yield from batches_of_volumes(self.volumes, self.options.samples, set(remaining), had)
            return
        chains = [(item, s) for item in remaining for s in range(self.options.samples) if (item, s) not in had]
        # Items that each have an operator of their own, or another noise in every entry, do not share a batch.
        apart = self.measurement.items_differ or self._noise().differs_within(self.measurement.y[:1].ndim)
        runs = groupby(chains, lambda chain: chain[0]) if apart else [(None, chains)]
        for run in (list(group) for _, group in runs):
            yield from batches(run, lambda: self.chains_per_batch, self._together(run))

    def _together(self, chains: Sequence[Chain]) -> int:
        """How many of these chains, and of any part of them, must stay in one batch."""
        if self.couples_items:
            return len(chains)
        return self.options.samples if self.strategy.couples_samples else 1

    def _run_all(self, given: Iterable[list[Chain]], collector: Collector) -> None:
        for batch in given:
            for part, outcome in self._attempt(batch, self._together(batch)):
                if self.processes.leads:
                    self._collect(part, outcome, collector)
                if self.on_batch is not None:
                    self.on_batch(part)

    def _attempt(self, chains: list[Chain], together: int) -> Iterator[tuple[list[Chain], Outcome]]:
        """Run a batch; when memory runs out, on a GPU or the CPU, halve it, and keep the smaller size."""
        try:
            outcome = self._run(chains)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
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
        processes, mine = self.processes, self.processes.share(len(chains))
        problem = self.problem(chains[mine])
        outcome = run_batch(
            problem,
            self.strategy,
            self.random(chains[mine]),
            lambda info: processes.any(self.callback is not None and bool(self.callback(info))),
            lambda: processes.any(self.should_stop is not None and self.should_stop()),
            self._resumed(chains, mine),
            (lambda snapshot, stopping: self._keep(chains, snapshot, stopping)) if self.keeper is not None else None,
        )
        outcome = outcome.gathered(processes, len(chains))
        if self.linear_too and processes.leads and linear_gaussian(problem):
            rows = {item: row for row, (item, sample) in enumerate(chains) if sample == 0}
            outcome.linear = self._linear(rows, outcome.used)
        return outcome

    def _linear(self, rows: dict[int, int], used: Tensor | None) -> dict[int, Tensor]:
        """Linear reconstructions, physical units, on the CPU; no more at once than go through the network.

        Args:
            rows: by item, its row in the batch.
            used: which entries of y each row rests on; the reconstruction is of the same.
        """
        images_by_item: dict[int, Tensor] = {}
        items = list(rows)
        for start in range(0, len(items), self.chains_per_batch):
            some = items[start : start + self.chains_per_batch]
            mask = None if used is None else used[[rows[item] for item in some]]
            known = {item: self.baselines.pop(item) for item in some if item in self.baselines and mask is None}
            missing = [item for item in some if item not in known]
            if missing:
                with torch.no_grad():
                    known |= dict(
                        zip(missing, self.problem([(item, 0) for item in missing]).baseline(mask), strict=True)
                    )
            images = torch.stack([known[item] for item in some])
            images = self.measurement.crop(self.scale.rows(some).to_physical(images)).cpu()
            images_by_item |= dict(zip(some, images, strict=True))
        return images_by_item

    def _resumed(self, chains: list[Chain], mine: slice) -> Snapshot | None:
        """This process's part of where a kill interrupted these chains; only once."""
        snapshot, self._resume = self._resume, None
        if snapshot is None or list(snapshot.chains) != chains:
            return None
        return snapshot.map(lambda rows: rows[mine].to(self.home), chains[mine], len(chains[mine]) / len(chains))

    def _keep(self, chains: list[Chain], snapshot: Snapshot, stopping: bool) -> None:
        assert self.keeper is not None
        if self.processes.any(stopping or (self.processes.leads and self.keeper.due())):
            share = len(snapshot.chains) / len(chains)
            whole = snapshot.map(
                lambda rows: self.processes.gather(rows.detach(), len(chains)).cpu(), chains, 1 / share
            )
            if self.processes.leads:
                assert self._collector is not None
                self.keeper.save(whole, self._collector.waiting())

    def random(self, chains: Sequence[Chain]) -> ChainRandom:
        """The random numbers of these chains."""
        return ChainRandom(self.options.seed, chains, noise_correlation=self.options.noise_correlation)

    def problem(self, chains: Sequence[Chain]) -> Problem:
        """The posterior for these chains, in network units, on the device (the slices of a volume: where states live)."""
        items = [item for item, _ in chains]
        distinct = list(dict.fromkeys(items))
        y = self._rows(distinct)
        home = self.home if self.couples_items else self.device
        y = y.to(home, self.dtype.to_complex() if y.is_complex() else self.dtype)
        where = {item: row for row, item in enumerate(distinct)}
        y = y[[where[item] for item in items]]
        # Where all rows are one item's, what belongs to it is one row.
        noise = self._noise().rows(distinct if len(distinct) == 1 else items, y.ndim)
        coupled = self.options.samples if self.strategy.couples_samples else 1
        operator, prior = self._operator_for(items[0]), self.prior
        if self.couples_items:
            operator = in_chunks(operator, self.batch_size, self.device, home)
            prior = None if prior is None else RowsOfAVolume(prior, self.batch_size, self.device, self.options.planes)
        problem = make_problem(prior, operator, noise, y, self.image_shape, self.scale.rows(items), coupled)
        problem.network_precision = str(self.options.precision)
        if self.couples_items:
            problem.through_plane = self.processes.through_plane()
        elif len(self.image_shape) == 4:
            problem.through_plane = AlongAxis()
        return problem

    def _noise(self) -> Noise:
        assert self.measurement.noise is not None
        return self.measurement.noise

    def _operator_for(self, item: int) -> Operator:
        """The operator of an item on the device; kept until another is asked for, with what it remembers."""
        key = item if self.measurement.items_differ else None
        if self._operator is None or self._operator[0] != key:
            self._operator = key, placed(self.measurement.operator_for(item), self.device)
        return self._operator[1]

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
            "discrepancy_dof": outcome.dof.cpu(),
            "inner_unconverged": outcome.unconverged.cpu(),
        }
        arrays |= {name: value.cpu() for name, value in outcome.diagnostics.items()}
        collector.add(chains, arrays, outcome.facts, outcome.linear)


def _out_of_memory(error: Exception) -> bool:
    # torch has a class for accelerators; on the CPU it raises a plain RuntimeError, known by its text alone.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)
