"""A session: which groups to measure next, what was measured, and the image that follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from invsolve import engine, registry
from invsolve.acquisition.policies import policy as policy_of
from invsolve.acquisition.record import Record, SessionFile
from invsolve.acquisition.values import as_groups, as_values
from invsolve.api.choice import AUTO
from invsolve.api.inputs import prior_of, resolve_noise, resolve_operator, whole
from invsolve.api.planning import plan
from invsolve.api.provenance import noise_record, operator_record, plain
from invsolve.api.reconstruction import Memory, reconstruct
from invsolve.contracts.acquisition import Instrument, Knowledge, Policy
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.result import Reconstruction
from invsolve.contracts.strategy import Strategy
from invsolve.engine.options import Keywords, Options, make_options, with_options
from invsolve.errors import UserError


class Session:
    """Acquisition of one image, group by group; made by `invsolve.acquire`.

    `ask` names the groups to measure next, `tell` takes their values, and `reconstruction` is the posterior given all that was
    told. With a file, each of them is on disk before it returns, and the same call of `acquire` goes on from there.

    Attributes:
        operator: the whole instrument's.
        policy: what chooses.
        order: (groups,) int32, the round in which each group was acquired; 0 what came before the first choice, -1 never.
    """

    def __init__(
        self,
        operator: MaskableOperator,
        prior: Prior,
        noise: Noise,
        policy: Policy,
        image_shape: tuple[int, ...],
        *,
        initial: Sequence[int],
        budget: float,
        costs: Tensor,
        at_once: int,
        until: float | None,
        strategy: Strategy | str,
        scout: Strategy | str,
        options: Options,
        file: SessionFile | None,
    ) -> None:
        self.operator, self.policy = operator, policy
        self._prior, self._noise, self._image_shape = prior, noise, image_shape
        self._initial, self._budget, self._costs = list(initial), budget, costs
        self._at_once, self._until = at_once, until
        self._strategy, self._scout, self.options = strategy, scout, options
        self._file = file
        blank = operator.blank(1, image_shape)
        with torch.no_grad():
            kind = operator(blank)
        self._record = Record.blank(kind[0], operator.groups)
        self._drawn: tuple[bytes, Tensor, Tensor] | None = None
        if file is not None:
            self._record = file.begin(self._record)

    @property
    def order(self) -> Tensor:
        return self._record.order.clone()

    @property
    def acquired(self) -> list[int]:
        """The groups that were told, in the order in which they were."""
        return list(self._record.sequence)

    @property
    def mask(self) -> Tensor:
        """Boolean, shaped like one measurement: the entries that were measured."""
        selected = (self._record.order >= 0)[None]
        return self.operator.group_mask(selected)[0].expand(self._record.y.shape).clone()

    @property
    def y(self) -> Tensor:
        """One measurement, zero where nothing was measured."""
        return self._record.y.clone()

    @property
    def spent(self) -> float:
        """What the acquired groups cost."""
        return float(self._costs[self._record.order >= 0].sum())

    @property
    def done(self) -> bool:
        """Whether nothing more is asked for."""
        return not self.ask()

    def ask(self) -> list[int]:
        """Return the groups to measure next; none when the budget is spent or the uncertainty is low enough.

        Asked again before they are told, they are the same.
        """
        if self._record.pending is None:
            self._record.pending = self._next()
            self._save()
        return list(self._record.pending)

    def tell(self, groups: Sequence[int], values: Any) -> None:
        """Take what was measured.

        Args:
            groups: which; usually those of `ask`, all or some of them, but any that were not measured may be told.
            values: (groups, entries per group), the entries of a group in the order in which they stand in a measurement
                (for k-space columns: coils, then rows); or a whole measurement, of which the groups' entries are taken.

        Raises:
            UserError: a group that is not there or was told before, or values of another size or not finite; nothing is taken.
        """
        chosen = as_groups(groups, self.operator.groups, self._record.order)
        if not chosen:
            raise UserError("groups: none were told; give at least one of those that were asked for")
        values_ = as_values(values, chosen, self.operator.group_index, self._record.y)
        record = self._record
        record.take(chosen, values_, self.operator.group_index)
        self._save()

    def run(self, instrument: Instrument) -> Reconstruction:
        """Ask, measure and tell until nothing more is asked for, and return the reconstruction."""
        for _ in self.rounds(instrument):
            pass
        return self.reconstruction()

    def rounds(self, instrument: Instrument) -> Iterator[list[int]]:
        """The same, one round at a time: yields the groups that were measured in it."""
        while groups := self.ask():
            self.tell(groups, instrument(groups))
            yield groups

    def reconstruction(self) -> Reconstruction:
        """Return the posterior given all that was told: `reconstruct` with the session's strategy and options.

        Its diagnostics carry `acquired_at`, (1, 1, groups), as `order`.

        Raises:
            UserError: nothing was told yet.
        """
        if not self._record.sequence:
            raise UserError("nothing was measured yet: tell the groups of ask() before asking for a reconstruction")
        result = reconstruct(
            self.measurement(), prior=self._prior, strategy=self._strategy, progress=False, **_keywords(self.options)
        )
        result.diagnostics["acquired_at"] = self.order[None, None]
        return result

    def plan(self, measurement: Measurement | None = None) -> engine.Run:
        """The run that `reconstruction` is, for those who write its result elsewhere."""
        return plan(measurement or self.measurement(), self._prior, self._strategy, self.options)

    def uncertainty(self) -> float:
        """Root mean square of the particles' standard deviation over the image, in physical units."""
        _, images = self._particles()
        return float(images.std(0).square().mean().sqrt())

    def measurement(self) -> Measurement:
        """What was acquired so far, as `reconstruct` takes it: one item, zero where nothing was measured."""
        selected = self._record.order >= 0
        return Measurement(
            self._record.y[None], self.operator.restricted(selected), self._noise, image_shape=self._image_shape
        )

    def _next(self) -> list[int]:
        record = self._record
        missing = [g for g in self._initial if record.order[g] < 0]
        if missing:
            return missing
        open_ = (record.order < 0).nonzero().flatten().tolist()
        room = self._budget - self.spent
        if not open_ or min(float(self._costs[g]) for g in open_) > room + 1e-9:
            return []
        if self._until is not None and record.sequence and self.uncertainty() <= self._until:
            return []
        predicted = self._particles()[0] if self.policy.particles else None
        knowledge = Knowledge(self.operator, record.order >= 0, self._costs, int(self.options.seed), predicted)
        picks = as_groups(self.policy.ask(knowledge, self._at_once), self.operator.groups, record.order)
        affordable: list[int] = []
        for group in picks:
            cost = float(self._costs[group])
            if cost <= room + 1e-9:
                affordable.append(group)
                room -= cost
        # What the policy wants most may cost more than is left, while others do not.
        return affordable or [next(g for g in open_ if float(self._costs[g]) <= room + 1e-9)]

    def _particles(self) -> tuple[Tensor, Tensor]:
        """A x of each particle over the noise's standard deviation, and the particles, physical units; kept until data come."""
        key = self._record.order.numpy().tobytes()
        if self._drawn is None or self._drawn[0] != key:
            self._drawn = (key, *self._draw())
        return self._drawn[1], self._drawn[2]

    def _draw(self) -> tuple[Tensor, Tensor]:
        count = int(self.options.samples)
        everything = Measurement(self._record.y[None], self.operator, self._noise, image_shape=self._image_shape)
        # Where nothing was measured nothing says anything yet: the particles are of the prior.
        measurement = self.measurement() if self._record.sequence else everything
        run = plan(measurement, self._prior, self._scout, self.options)
        whole_ = engine.Run(everything, run.prior, run.strategy, run.image_shape, run.options, run.scale)
        problem = whole_.problem([(0, s) for s in range(count)])
        if self._record.sequence:
            sink = Memory(1)
            run.execute(sink)
            images = sink.stack("samples")[0]
        else:
            images = run.scale.to_physical(self._of_prior(count)).cpu()
        network = run.scale.rows([0] * count).to_network(images.to(problem.y.device, problem.y.real.dtype))
        with torch.no_grad():
            # In the units of the data as the problem has them, in which Gaussian noise is white.
            predicted = torch.cat([problem.operator(row[None]) for row in network])
            std = problem.noise.std(predicted)
        return (predicted / torch.as_tensor(std)).cpu(), images.cpu()

    def _of_prior(self, count: int) -> Tensor:
        from invsolve.api.sampling import draw

        return draw(self._prior, int(self.options.seed), count=count, shape=self._image_shape)

    def _save(self) -> None:
        if self._file is not None:
            self._file.write(self._record)

    def __repr__(self) -> str:
        told = len(self._record.sequence)
        return f"Session({told} of {self.operator.groups} groups acquired, policy {self.policy.name!r})"


def _stated(strategy: Strategy | str) -> Any:
    """A strategy as it is compared when a session is gone on with."""
    return strategy if isinstance(strategy, str) else [strategy.name, plain(vars(strategy))]


def _keywords(options: Options) -> Any:
    return dict(vars(options))


@with_options
def acquire(
    operator: Operator | str,
    prior: Prior | str | Path,
    *,
    noise: Noise | str,
    policy: Policy | str = "entropy",
    budget: float | None = None,
    initial: Sequence[int] = (),
    costs: Sequence[float] | Tensor | None = None,
    at_once: int = 1,
    until: float | None = None,
    strategy: Strategy | str = AUTO,
    scout: Strategy | str | None = None,
    particles: int = 16,
    image_shape: Sequence[int] | None = None,
    file: str | Path | None = None,
    source: str = "",
    **options: Unpack[Keywords],
) -> Session:
    """Begin a session in which a policy chooses what an instrument measures next, or go on with one from its file.

    Between the choices the posterior is sampled anew, given all that was measured: the particles are draws of a strategy that
    is held to the exact posterior, unlike those of one sweep of the strategy `ads`, which are still noise when its first groups
    are chosen.

    Args:
        operator: a maskable operator (`inpainting`, `ct`, `mri`, ...) of everything that could be measured.
        prior: a Prior, a registered name or a checkpoint file.
        noise: how y scatters.
        policy: "entropy" (of the particles, Nolan 2024), "information" (greedy log-determinant), "variance", "centre-out",
            "uniform", "random", "variable-density", "golden-angle", or a `Policy` of one's own.
        budget: groups acquired in all, or their cost in all where `costs` is given; default a quarter of what is there.
        initial: groups that are measured first, such as the centre columns of k-space; they count in the budget.
        costs: what each group costs, (groups,), positive; default 1 each.
        at_once: groups per `ask`; the particles are conditioned on each pick before the next.
        until: stop once `Session.uncertainty` is at most this, in physical units.
        strategy: of the reconstruction.
        scout: strategy that draws the particles for choosing, where a cheaper one will do; default `strategy`.
        particles: posterior samples, for the choices and of the reconstruction; 2 or more.
        image_shape: (C, *spatial), where the operator does not know it.
        file: an HDF5 file in which the session lives; one of the same settings is gone on with.
        source: what is measured, such as a specimen; a file of another is refused.
        **options: as of `reconstruct`; `samples` is what `particles` says.

    Returns:
        Session.

    Raises:
        UserError: an operator that is not maskable, a budget or groups that are not there, a file of another session.
    """
    if options.get("samples", particles) != particles:
        raise UserError("acquire: the samples are the particles; give particles= alone")
    chosen = make_options({**options, "samples": particles}, "acquire")
    forward = resolve_operator(operator)
    if not isinstance(forward, MaskableOperator):
        known = [n for n, cls in registry.available("operator").items() if issubclass(cls, MaskableOperator)]
        raise UserError(
            f"operator {forward.name or type(forward).__name__!r} has no groups to acquire one by one; take one that has "
            f"({', '.join(known)}), or subclass invsolve.MaskableOperator"
        )
    knowledge, noise_ = prior_of(prior), resolve_noise(noise)
    if noise_ is None:
        raise UserError("the noise is not known: give noise=, such as Gaussian(0.01)")
    selector = policy_of(policy)
    if until is not None and chosen.samples < 2:
        raise UserError("until= is a standard deviation of particles: give particles=2 or more")
    if selector.particles and chosen.samples < 2:
        raise UserError(f"policy {selector.name!r} compares particles: give particles=2 or more (16 in the paper)")
    told = image_shape if image_shape is not None else forward.image_shape or knowledge.event_shape
    shape = tuple(side for side in told if side)
    if len(shape) < len(told):
        raise UserError("the size of the image is not known: give image_shape=(channels, rows, columns)")
    groups = forward.groups
    first = as_groups(initial, groups, torch.full((groups,), -1, dtype=torch.int32), what="initial")
    price = _costs(costs, groups)
    limit = float(price.sum()) / 4 if budget is None else float(budget)
    if costs is None and budget is None:
        limit = float(max(groups // 4, len(first), 1))
    if not math.isfinite(limit) or not 0 < limit <= float(price.sum()) + 1e-9:
        raise UserError(
            f"budget {limit:g} must lie above 0 and within {float(price.sum()):g}, the cost of all {groups} groups"
        )
    if float(price[first].sum()) > limit + 1e-9:
        raise UserError(
            f"the initial groups cost {float(price[first].sum()):g}, more than the budget {limit:g}; give more"
        )
    kept: SessionFile | None = None
    if file is not None:
        settings = {
            "operator": operator_record(forward),
            "source": source,
            "prior": knowledge.fingerprint(),
            "noise": noise_record(noise_),
            "strategies": [_stated(strategy), _stated(strategy if scout is None else scout)],
            "image_shape": list(shape),
            "scale": str(chosen.scale),
            "policy": dict(selector.parameters()),
            "initial": first,
            "budget": limit,
            "costs": price.tolist(),
            "at_once": whole(at_once, "at_once", 1),
            "until": until,
            "samples": chosen.samples,
            "seed": chosen.seed,
        }
        kept = SessionFile(Path(file), settings)
    return Session(
        forward,
        knowledge,
        noise_,
        selector,
        shape,
        initial=first,
        budget=limit,
        costs=price,
        at_once=whole(at_once, "at_once", 1),
        until=until,
        strategy=strategy,
        scout=strategy if scout is None else scout,
        options=chosen,
        file=kept,
    )


def _costs(costs: Sequence[float] | Tensor | None, groups: int) -> Tensor:
    if costs is None:
        return torch.ones(groups, dtype=torch.float64)
    price = torch.as_tensor(np.asarray(costs, dtype=np.float64))
    if price.shape != (groups,) or not bool((price > 0).all()) or not bool(price.isfinite().all()):
        raise UserError(f"costs must be {groups} positive numbers, one per group, got shape {tuple(price.shape)}")
    return price
