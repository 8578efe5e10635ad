"""Drawing the particles by which a policy chooses: of the prior, anew given the data, or going on from the last round's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve import engine
from invsolve.api.planning import plan
from invsolve.api.reconstruction import Memory
from invsolve.api.sampling import draw
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Noise
from invsolve.contracts.prior import Prior
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.engine.options import Options
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom

#: Of a sample of the prior alone.
_STEPS = 24


@dataclass(frozen=True)
class Scout:
    """How particles are drawn.

    Args:
        operator: of everything that could be measured.
        strategy: draws from the posterior.
        options: of a reconstruction; `samples` is how many particles there are.
        warm: noise level, network units, from which the particles of the last round go on; None draws them anew.
        calls: network calls and backward passes of a particle, about; None is what the strategy takes by itself.
    """

    operator: MaskableOperator
    prior: Prior
    noise: Noise
    image_shape: tuple[int, ...]
    strategy: Strategy | str
    options: Options
    warm: float | None = None
    calls: int | None = None

    @property
    def count(self) -> int:
        """Number of particles."""
        return int(self.options.samples)

    @property
    def prior_calls(self) -> int:
        """Network calls of a particle of the prior alone."""
        return _STEPS if self.calls is None else self.calls

    def of_prior(self, y: Tensor) -> Tensor:
        """Particles before anything is measured; y as in `given`."""
        parts = []
        for first in range(0, self.count, self.options.rows):
            size = min(self.options.rows, self.count - first)
            seed = int(self.options.seed)
            parts.append(draw(self.prior, seed, self.prior_calls, size, self.image_shape, first=first))
        return self._whole(y).scale.to_physical(torch.cat(parts)).cpu()

    def given(self, measurement: Measurement, before: Tensor | None, sweep: int) -> tuple[Tensor, float]:
        """Particles given what was measured, (particles, C, *spatial), physical units, and calls for each, backward passes too.

        Args:
            measurement: one item, of what was acquired.
            before: particles given less, to go on from; None draws anew.
            sweep: number of this drawing; particles that go on must not meet the noise of the last time again.
        """
        run = plan(measurement, self.prior, self.strategy, self.options)
        if self.calls is not None:
            run.strategy = run.strategy.at_cost(self.calls)
        if self.warm is not None and before is not None:
            images = run.scale.rows([0] * self.count).to_network(before.to(run.device, run.dtype))
            run.strategy = going_on(run.strategy, images, self.warm)
            run.options = replace(run.options, seed=_seed(int(self.options.seed), sweep))
        sink = Memory(1)
        run.execute(sink)
        counted = sink.diagnostics()
        calls = sum(float(np.mean(counted[name])) for name in ("network_calls", "vjp_calls") if name in counted)
        return sink.stack("samples")[0].cpu(), calls

    def predicted(self, images: Tensor, y: Tensor) -> Tensor:
        """A x of each particle over the noise's standard deviation, (particles, *measurement)."""
        run = self._whole(y)
        problem = run.problem([(0, s) for s in range(len(images))])
        network = run.scale.rows([0] * len(images)).to_network(images.to(problem.y.device, problem.y.real.dtype))
        with torch.no_grad():
            # In the units of the data as the problem has them, in which Gaussian noise is white.
            predicted = torch.cat([problem.operator(row[None]) for row in network])
            return (predicted / torch.as_tensor(problem.noise.std(predicted))).cpu()

    def root(self, y: Tensor) -> Tensor:
        """The same of the rows of a root of the prior's covariance, about zero."""
        covariance: Any = getattr(self.prior, "covariance", None)
        if covariance is None:
            raise UserError(
                f"prior {self.prior.name or type(self.prior).__name__!r} has no covariance(), by which this policy decides; take "
                "a policy that decides by particles"
            )
        full = covariance().double().cpu()
        values, vectors = torch.linalg.eigh(full)
        rows = (vectors * values.clamp_min(0).sqrt()).T.reshape(-1, *self.image_shape)
        run = self._whole(y)
        problem = run.problem([(0, 0)])
        with torch.no_grad():
            zero = problem.operator(problem.zeros())
            like = problem.zeros()
            parts = [problem.operator(row[None].to(like)) - zero for row in rows]
            return (torch.cat(parts) / torch.as_tensor(problem.noise.std(zero))).cpu()

    def _whole(self, y: Tensor) -> engine.Run:
        everything = Measurement(y[None], self.operator, self.noise, image_shape=self.image_shape)
        return plan(everything, self.prior, self.strategy, self.options)


def going_on(strategy: Strategy, images: Tensor, sigma: float) -> Strategy:
    """The same strategy, begun with images under noise of a level below its first, instead of with noise alone.

    Args:
        images: (samples, C, *spatial), network units, one per sample of the item.
        sigma: noise level. A strategy with a parameter `start` takes all its steps from there; another one, those of its
            schedule that lie below.

    Raises:
        UserError: (when it begins) the strategy has no noise levels, or keeps no image of each particle.
    """
    kind: Any = type(strategy)
    given: Any = strategy
    from_there = replace(given, start=sigma) if "start" in getattr(given, "__dataclass_fields__", {}) else given

    class GoingOn(kind):
        """Begun with images; everything else is inherited."""

        def schedule(self, problem: Problem) -> Tensor:
            levels = super().schedule(problem)
            first = int((levels > sigma * (1 + 1e-6)).sum())
            if len(levels) - first < 2 or float(levels[first]) <= 0:
                raise UserError(
                    f"strategy {strategy.name!r} has no noise level between 0 and {sigma:g} to go on from; take another "
                    "scout, or draw anew (no warm)"
                )
            return levels[first:]

        def init(self, problem: Problem, rng: ChainRandom) -> State:
            state = super().init(problem, rng)
            fresh = state["x"]
            rows = images[[sample for _, sample in rng.chains]]
            level = float(self.schedule(problem)[0])
            # An iterate that is an image under noise differs by so much from one begun with other noise.
            other = super().init(problem, ChainRandom(rng.seed + 1, rng.chains).at(0))["x"]
            noise = float((fresh - other).abs().square().mean().sqrt()) / (2**0.5 * level)
            if fresh.shape != rows.shape or not 0.7 < noise < 1.4:
                raise UserError(
                    f"strategy {strategy.name!r} keeps no image under noise of each particle to go on from; take another scout"
                )
            x = rows.to(fresh) + level * rng.normal(rows.to(fresh))
            # What begins as the iterate begins as this one.
            return {key: x if value is fresh else value for key, value in state.items()}

    other: Strategy = object.__new__(GoingOn)
    other.__dict__.update(from_there.__dict__)
    return other


def _seed(seed: int, sweep: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} sweep {sweep}".encode()).digest()[:6], "big")
