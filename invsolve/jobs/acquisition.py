"""Acquiring from files and from instruments, into a result file; the same request goes on after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve import api
from invsolve.acquisition import lines
from invsolve.acquisition.beginning import acquire, resolve_policy
from invsolve.acquisition.session import Session
from invsolve.api.choice import AUTO
from invsolve.api.loading import noise as make_noise
from invsolve.api.loading import operator as make_operator
from invsolve.api.provenance import provenance
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.datasets import hdf5
from invsolve.engine.options import Options
from invsolve.errors import UserError
from invsolve.files.opening import open_measurement
from invsolve.jobs.finished import is_complete
from invsolve.jobs.request import refuse_existing

#: Seconds; no clock of a system waits longer than some centuries.
_LONGEST_WAIT = 1e9


@dataclass(frozen=True)
class Acquisition:
    """What `acquire_into_file` is asked for.

    Args:
        out: the result; the session lives in `<out>.session.h5` until it is written, and stays beside it.
        prior: registered name or checkpoint file.
        scan: a fully sampled file that is replayed; None for an instrument that answers live.
        item: which of the scan's.
        operator, parameters: the instrument's, where there is no scan.
        policy: what chooses, NAME or NAME:VALUE.
        socket: where a live instrument connects; None is standard input and output.
        timeout: seconds to wait for it.
        strategy, scout, initial, budget, costs, at_once, until, particles, warm, calls: as of `invsolve.acquire`.
    """

    out: Path
    prior: str
    scan: Path | None = None
    item: int = 0
    layout: str | None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    operator: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    noise: str | None = None
    policy: str = AUTO
    budget: float | None = None
    initial: Sequence[int] = ()
    at_once: int = 1
    until: float | None = None
    strategy: str = "auto"
    scout: str | None = None
    particles: int = 16
    warm: float | None = None
    calls: int | None = None
    options: Options = field(default_factory=Options)
    socket: Path | None = None
    timeout: float | None = None
    overwrite: bool = False


def acquire_into_file(request: Acquisition, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Acquire group by group until nothing more is asked for, and write the reconstruction.

    Raises:
        UserError: the parts do not fit, or the instrument does not answer; what it told is kept, and the same request goes on.
    """
    out = request.out
    store = out.with_name(f"{out.name}.session.h5")
    # A kill after the result got its name, and the same command again: whether it is the same, the session must tell.
    finished = not request.overwrite and store.exists() and is_complete(out)
    refuse_existing(out, request.overwrite or finished, request.scan or out.with_name(f"{out.name}.none"))
    _check_timeout(request)
    recorded = _recorded(request)
    forward, noise = _instrument(request, recorded)
    options = {**vars(request.options)}
    options.pop("samples")
    session = acquire(
        forward,
        api.load_prior(request.prior),
        noise=noise,
        policy=resolve_policy(request.policy),
        budget=request.budget,
        initial=request.initial,
        at_once=request.at_once,
        until=request.until,
        strategy=request.strategy,
        scout=request.scout,
        particles=request.particles,
        warm=request.warm,
        calls=request.calls,
        file=store,
        source="" if recorded is None else f"item {request.item} of {recorded.fingerprint}",
        **options,
    )
    told = {"output": str(out), "session": str(store), "groups": session.operator.groups}
    if finished:
        _check_same(out, session, _measured(session, recorded))
        say(f"{out}: was finished by the same command before; nothing is left to do")
        return told | {"acquired": session.acquired, "spent": session.spent, "finished_before": True}
    if session.acquired:
        say(f"going on with {store}: {len(session.acquired)} groups were acquired before")
    if recorded is not None:
        y = recorded.y[request.item : request.item + 1][0]
        for groups in session.rounds(lambda groups: y):
            say(f"round {int(session.order.max())}: {', '.join(map(str, groups))}")
    else:
        _live(session, request, say)
    _write(session, request, recorded)
    return told | {"acquired": session.acquired, "spent": session.spent, "finished_before": False}


def _check_same(out: Path, session: Session, measurement: Measurement) -> None:
    """Refuse a result that did not come of this session.

    Raises:
        UserError: it has another configuration, or the session is not at its end.
    """
    part = hdf5.glance(out)
    same = part is not None and bool(session.acquired) and not session.ask()
    if same and part is not None:
        order = hdf5.read_result(out).diagnostics.get("acquired_at")
        config = provenance(session.plan(measurement))["config_sha256"]
        same = part.config_sha256 == config and order is not None and order[0, 0].tolist() == session.order.tolist()
    if not same:
        raise UserError(f"{out} exists, made by another command or session; give --overwrite to replace it")


def _recorded(request: Acquisition) -> Measurement | None:
    """The scan that is replayed."""
    if request.scan is None:
        return None
    measurement = open_measurement(request.scan, request.layout, request.read)
    if not 0 <= request.item < len(measurement.y):
        raise UserError(f"{request.scan}: has items 0 to {len(measurement.y) - 1}, asked for item {request.item}")
    return measurement


def _instrument(request: Acquisition, recorded: Measurement | None) -> tuple[Operator, Noise]:
    if recorded is None and request.operator is None:
        raise UserError("give a fully sampled scan to replay, or --operator NAME for an instrument that answers live")
    if recorded is not None and request.operator is not None:
        raise UserError("the scan says its operator: leave --operator out")
    noise = make_noise(request.noise) if request.noise else (recorded.noise if recorded is not None else None)
    if noise is None:
        raise UserError("the noise is not known: give --noise NAME:VALUE, such as gaussian:0.01")
    if recorded is not None:
        return recorded.operator_for(request.item), noise
    return make_operator(str(request.operator), **request.parameters), noise


def _live(session: Session, request: Acquisition, say: Callable[[str], None]) -> None:
    longest = lines.longest_line(session)
    if request.socket is None:
        opened = lines.standard_streams(request.timeout, longest)
    else:
        opened = lines.local_socket(request.socket, request.timeout, longest)
    try:
        # Nothing is asked of an instrument that finished before a kill.
        with opened if session.ask() else nullcontext() as channel:
            if channel is not None:
                lines.serve(session, channel, say)
    except lines.Closed as error:
        told = len(session.acquired)
        raise UserError(f"{error}; {told} groups are kept, run the same command to go on") from None


class _WithOrder:
    """A sink that stores the order of acquisition beside the image, and the truth where the replayed scan has one."""

    def __init__(self, inner: hdf5.ResultFile, order: Tensor, truth: Tensor | None) -> None:
        self.inner, self.order, self.truth = inner, order, truth

    def is_done(self, item: int) -> bool:
        return self.inner.is_done(item)

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None:
        samples = len(arrays["samples"])
        more = {"acquired_at": self.order.expand(samples, -1)} | ({} if self.truth is None else {"truth": self.truth})
        self.inner.write(item, {**arrays, **more}, facts)


def _check_timeout(request: Acquisition) -> None:
    if request.timeout is not None and not 0 < request.timeout <= _LONGEST_WAIT:
        raise UserError(
            f"timeout is {request.timeout:g} s, expected above 0 and at most {_LONGEST_WAIT:g}; leave it out to wait for ever"
        )


def _measured(session: Session, recorded: Measurement | None) -> Measurement:
    """What was acquired, with what the replayed scan says of itself."""
    measurement = session.measurement()
    if recorded is not None:
        measurement.unit, measurement.source = recorded.unit, recorded.source
        measurement.fingerprint = recorded.fingerprint
    return measurement


def _write(session: Session, request: Acquisition, recorded: Measurement | None) -> None:
    measurement, truth = _measured(session, recorded), None
    if recorded is not None and recorded.truth is not None:
        truth = torch.as_tensor(recorded.truth[request.item : request.item + 1][0])
    run = session.plan(measurement)
    record = provenance(run)
    record["acquisition"] = {
        "policy": session.policy.parameters(),
        "acquired": session.acquired,
        "spent": session.spent,
    }
    result = hdf5.ResultFile.create(
        request.out, 1, int(session.options.samples), record, request.overwrite, measurement.unit, input_items=1
    )
    run.linear_too = True
    with result:
        api.execute(run, _WithOrder(result, session.order, truth))
        result.finish()
    stored = hdf5.read_result(request.out)
    session.conclude(stored.mean[0:1][0], stored.std[0:1][0])
