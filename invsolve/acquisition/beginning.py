"""`acquire`: what a session is begun or gone on with, checked before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from invsolve import registry
from invsolve.acquisition.particles import Scout
from invsolve.acquisition.record import SessionFile
from invsolve.acquisition.session import Session
from invsolve.acquisition.values import as_groups
from invsolve.api.choice import AUTO
from invsolve.api.inputs import prior_of, resolve_noise, resolve_operator, whole
from invsolve.api.loading import policy as policy_named
from invsolve.api.provenance import noise_record, operator_record, plain
from invsolve.contracts.acquisition import Policy
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.strategy import Strategy
from invsolve.engine.options import Keywords, make_options, with_options
from invsolve.errors import UserError


def _stated(strategy: Strategy | str) -> Any:
    """A strategy as it is compared when a session is gone on with."""
    return strategy if isinstance(strategy, str) else [strategy.name, plain(vars(strategy))]


@with_options
def acquire(
    operator: Operator | str,
    prior: Prior | str | Path,
    *,
    noise: Noise | str,
    policy: Policy | str = AUTO,
    budget: float | None = None,
    initial: Sequence[int] = (),
    costs: Sequence[float] | Tensor | None = None,
    at_once: int = 1,
    until: float | None = None,
    strategy: Strategy | str = AUTO,
    scout: Strategy | str | None = None,
    particles: int = 16,
    warm: float | None = None,
    calls: int | None = None,
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
        policy: a registered policy (`invsolve plugins list`) or a `Policy` of one's own; "auto" is the preferred one, the entropy
            of the particles (Nolan 2024).
        budget: groups acquired in all, or their cost in all where `costs` is given; default a quarter of what is there.
        initial: groups that are measured first, such as the centre columns of k-space; they count in the budget.
        costs: what each group costs, (groups,), positive; default 1 each.
        at_once: groups per `ask`; the particles are conditioned on each pick before the next.
        until: stop once `Session.uncertainty` is at most this, in physical units.
        strategy: of the reconstruction.
        scout: strategy that draws the particles for choosing, where a cheaper one will do; default `strategy`.
        particles: posterior samples, for the choices and of the reconstruction; 2 or more.
        warm: noise level, network units (the prior's images lie in -1 to 1), from which the particles of the last round go on;
            None draws them anew before each choice.
        calls: network calls and backward passes for each particle and choice, about; default what `scout` takes by itself.
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
    _check_pace(warm, calls)
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
    selector = resolve_policy(policy)
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
            "pace": [warm, calls],
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
        scout=Scout(forward, knowledge, noise_, shape, strategy if scout is None else scout, chosen, warm, calls),
        file=kept,
    )


def resolve_policy(given: Policy | str) -> Policy:
    """A policy, from itself or from text such as "variable-density:2"; "auto" is the one of the lowest preference.

    Raises:
        UserError: no such policy, or a parameter that it does not have.
    """
    if isinstance(given, Policy):
        return given
    if given == AUTO:
        known: dict[str, Any] = registry.available("policy")
        liked = [name for name, cls in known.items() if cls.preference is not None]
        if not liked:
            raise UserError("no registered policy has a preference; name one, policy= (command line: --policy)")
        given = min(liked, key=lambda name: known[name].preference)
    if not isinstance(given, str):
        names = ", ".join(registry.available("policy"))
        raise UserError(f"policy must be an invsolve policy or the name of one ({names}), got {given!r}")
    return policy_named(given)


def _check_pace(warm: float | None, calls: int | None) -> None:
    if warm is not None and not 0 < warm < math.inf:
        raise UserError(f"warm must be a noise level above 0, in network units, such as 0.5, got {warm!r}")
    if calls is not None:
        whole(calls, "calls", 2)


def _costs(costs: Sequence[float] | Tensor | None, groups: int) -> Tensor:
    if costs is None:
        return torch.ones(groups, dtype=torch.float64)
    price = torch.as_tensor(np.asarray(costs, dtype=np.float64))
    if price.shape != (groups,) or not bool((price > 0).all()) or not bool(price.isfinite().all()):
        raise UserError(f"costs must be {groups} positive numbers, one per group, got shape {tuple(price.shape)}")
    return price
