"""A session: which groups to measure next, what was measured, and the image that follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve import engine
from invsolve.acquisition.listing import Listing
from invsolve.acquisition.particles import Scout
from invsolve.acquisition.record import Moment, Record, SessionFile
from invsolve.acquisition.values import as_groups, as_values
from invsolve.api.planning import plan
from invsolve.api.reconstruction import reconstruct
from invsolve.contracts.acquisition import Instrument, Knowledge, Policy
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Noise
from invsolve.contracts.prior import Prior
from invsolve.contracts.result import Reconstruction
from invsolve.contracts.strategy import Strategy
from invsolve.errors import UserError


class Session:
    """Acquisition of one image, group by group; made by `invsolve.acquire`.

    `ask` names the groups to measure next, `tell` takes their values, and `reconstruction` is the posterior given all that was
    told. With a file, each of them is on disk before it returns, and the same call of `acquire` goes on from there.

    Attributes:
        operator: the whole instrument's.
        policy: what chooses.
        calls: network calls and backward passes of each particle for the choices that this object made.
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
        scout: Scout,
        file: SessionFile | None,
    ) -> None:
        self.operator, self.policy = operator, policy
        self._prior, self._noise, self._image_shape = prior, noise, image_shape
        self._initial, self._budget, self._costs = list(initial), budget, costs
        self._at_once, self._until = at_once, until
        self._strategy, self._scout, self.options = strategy, scout, scout.options
        self._file = file
        blank = operator.blank(1, image_shape)
        with torch.no_grad():
            kind = operator(blank)
        self._record = Record.blank(kind[0], operator.groups)
        self._record.index, self._record.coordinates = operator.group_index, operator.group_coordinates()
        self._known_root: Tensor | None = None
        self.calls = 0.0
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

    def lines(self) -> list[dict[str, float]]:
        """What was measured, in the order in which it was told: one row per group, as an instrument lists it.

        "order" counts from 0, "round" as in `order`; then "group" and the operator's `group_coordinates`.
        """
        return self._listing().rows()

    def write_lines(self, path: str | Path, overwrite: bool = False) -> None:
        """The same as .csv or .txt, the mask as .npy, or all of it as .npz.

        Raises:
            UserError: another ending, or the file exists.
        """
        self._listing().write(Path(path), overwrite)

    def _listing(self) -> Listing:
        record = self._record
        return Listing(record.sequence, record.order.numpy(), self.mask.numpy(), record.coordinates)

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
            self.measurement(), prior=self._prior, strategy=self._strategy, progress=False, **vars(self.options)
        )
        result.diagnostics["acquired_at"] = self.order[None, None]
        return result

    def plan(self, measurement: Measurement | None = None) -> engine.Run:
        """The run that `reconstruction` is, for those who write its result elsewhere."""
        return plan(measurement or self.measurement(), self._prior, self._strategy, self.options)

    def conclude(self, mean: Tensor, std: Tensor) -> None:
        """Keep the mean and standard deviation of the reconstruction, (C, *spatial), as the end of the run's picture."""
        nothing = torch.full((self.operator.groups,), torch.nan, dtype=torch.float64)
        self._keep(Moment(len(self._record.sequence), mean.cpu(), std.cpu(), nothing))
        self._save()

    def particles(self) -> Tensor:
        """Posterior samples given what was told so far, (particles, C, *spatial), physical units; at first of the prior.

        They are drawn where they are not known yet.
        """
        return self._particles().clone()

    def uncertainty(self) -> float:
        """Root mean square of the particles' standard deviation over the image, in physical units."""
        return float(self._particles().std(0).abs().square().mean().sqrt())

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
        predicted = self._scout.predicted(self._particles(), record.y) if self.policy.particles else None
        root = self._root() if self.policy.covariance else None
        knowledge = Knowledge(self.operator, record.order >= 0, self._costs, int(self.options.seed), predicted, root)
        if self.policy.particles:
            self._note(self.policy.scores(knowledge))
        picks = as_groups(self.policy.ask(knowledge, self._at_once), self.operator.groups, record.order)
        affordable: list[int] = []
        for group in picks:
            cost = float(self._costs[group])
            if cost <= room + 1e-9:
                affordable.append(group)
                room -= cost
        # What the policy wants most may cost more than is left, while others do not.
        return affordable or [next(g for g in open_ if float(self._costs[g]) <= room + 1e-9)]

    def _particles(self) -> Tensor:
        """The particles given what was told so far, physical units; kept until more is told."""
        record = self._record
        if record.particles is None or record.drawn_after != len(record.sequence):
            if not record.sequence:
                images = self._scout.of_prior(record.y)
                self.calls += self._scout.prior_calls
            else:
                # Those of the prior alone say too little of where to go on from.
                before = record.particles if record.drawn_after > 0 else None
                images, calls = self._scout.given(self.measurement(), before, len(record.sequence))
                self.calls += calls
            record.particles, record.drawn_after = images, len(record.sequence)
        return record.particles

    def _note(self, scores: Tensor | None) -> None:
        """Keep what is known now for the picture of the run."""
        images, groups = self._particles(), self.operator.groups
        worth = torch.full((groups,), torch.nan, dtype=torch.float64) if scores is None else scores.double().cpu()
        self._keep(Moment(len(self._record.sequence), images.mean(0), images.std(0), worth))

    def _keep(self, moment: Moment) -> None:
        self._record.history = [*(m for m in self._record.history if m.told < moment.told), moment]

    def _root(self) -> Tensor:
        if self._known_root is None:
            self._known_root = self._scout.root(self._record.y)
        return self._known_root

    def _save(self) -> None:
        if self._file is not None:
            self._file.write(self._record)

    def __repr__(self) -> str:
        told = len(self._record.sequence)
        return f"Session({told} of {self.operator.groups} groups acquired, policy {self.policy.name!r})"
