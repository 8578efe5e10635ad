"""The command `acquire`: measure group by group what the prior wants to see, from a recorded scan or a live instrument."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from invsolve.cli.common import AsJson, Overwrite, Plugins, Read, Settings, emit, key_values, note, start
from invsolve.cli.options import with_options
from invsolve.engine.options import Options
from invsolve.errors import UserError


@partial(with_options, without=("samples", "noise_correlation", "planes"))
def acquire(
    out: Annotated[Path, typer.Option("-o", "--output", help="Result file to write.")],
    prior: Annotated[str, typer.Option(help="Registered prior or a file.")],
    scan: Annotated[
        Path | None, typer.Argument(help="A fully sampled scan to replay; without it the instrument answers live.")
    ] = None,
    *,
    policy: Annotated[str, typer.Option(help="NAME or NAME:VALUE of what chooses.")] = "auto",
    budget: Annotated[float | None, typer.Option(help="Groups in all; default a quarter.")] = None,
    initial: Annotated[str, typer.Option(help="Measured first: 3,4,5 or 60:68.")] = "",
    at_once: Annotated[int, typer.Option(help="Groups per round.")] = 1,
    until: Annotated[float | None, typer.Option(help="Stop at this rms deviation.")] = None,
    particles: Annotated[int, typer.Option(help="Posterior samples, 2 or more.")] = 16,
    warm: Annotated[float | None, typer.Option(help="Particles go on from this sigma.")] = None,
    calls: Annotated[int | None, typer.Option(help="Network calls per particle.")] = None,
    strategy: Annotated[str, typer.Option(help="Of the reconstruction.")] = "auto",
    scout: Annotated[str | None, typer.Option(help="Strategy of the particles.")] = None,
    noise: Annotated[str | None, typer.Option(help="NAME:VALUE of the noise.")] = None,
    operator: Annotated[str | None, typer.Option(help="Of a live instrument, see --set.")] = None,
    set_: Settings = None,
    socket: Annotated[Path | None, typer.Option(help="Of the instrument, not stdin.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait for an answer.")] = None,
    item: Annotated[int, typer.Option(help="Item of the scan.")] = 0,
    layout: Annotated[str | None, typer.Option(help="Layout, where not recognised.")] = None,
    read: Read = None,
    options: Options,
    plugin: Plugins = None,
    overwrite: Overwrite = False,
    json_: AsJson = False,
) -> None:
    """Let the prior choose what to measure next, and reconstruct from it."""
    start(plugin)
    from invsolve.jobs.acquisition import Acquisition, acquire_into_file

    request = Acquisition(
        out=out,
        prior=prior,
        scan=scan,
        item=item,
        layout=layout,
        read=key_values(read),
        operator=operator,
        parameters=key_values(set_),
        noise=noise,
        policy=policy,
        budget=budget,
        initial=_groups(initial),
        at_once=at_once,
        until=until,
        particles=particles,
        warm=warm,
        calls=calls,
        strategy=strategy,
        scout=scout,
        options=options,
        socket=socket,
        timeout=timeout,
        overwrite=overwrite,
    )
    result = acquire_into_file(request, note)
    told = f"{result['output']}: {len(result['acquired'])} of {result['groups']} groups acquired"
    told += ", finished before" * result["finished_before"]
    # Standard output belongs to a live instrument.
    if scan is None and socket is None:
        print(f"invsolve: {told}", file=sys.stderr)
    else:
        emit(result, json_, told)


def _groups(text: str) -> list[int]:
    """Groups from text such as "3,4,60:68"."""
    groups: list[int] = []
    for part in filter(None, text.split(",")):
        low, colon, high = part.partition(":")
        try:
            span = range(int(low), int(high)) if colon else range(int(low), int(low) + 1)
        except ValueError:
            raise UserError(f"--initial {text!r}: write groups as 3,4,5 or 60:68") from None
        if len(span) > 10**6:
            raise UserError(f"--initial {text!r}: more groups than any instrument has")
        groups += span
    return groups
