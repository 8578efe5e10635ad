"""The command `run`: a pipeline of steps from a TOML file."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invsolve.cli.common import AsJson, Overwrite, Plugins, emit, key_values, note, start, table

if TYPE_CHECKING:
    from invsolve.pipeline import Pipeline, Plan, Results, Stop


def run(
    file: Annotated[Path | None, typer.Argument(help="Pipeline file (TOML).", metavar="PIPELINE.toml")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="variables.NAME=VALUE or STEP.KEY=VALUE; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only this part of the sweeps, NAME=VALUE,...; repeatable.", metavar="BRANCH"),
    ] = None,
    index: Annotated[
        int | None, typer.Option(help="Only this combination of the sweeps, from 0; for job arrays.", metavar="K")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; run nothing.")] = False,
    force: Annotated[
        list[str] | None, typer.Option(help="Run this step again, and what follows; repeatable.", metavar="STEP")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="After a failure go on with what does not depend on it.")
    ] = False,
    log_json: Annotated[
        str | None,
        typer.Option(help="Append events to a file, one JSON object per line; - prints them.", metavar="FILE"),
    ] = None,
    points: Annotated[bool, typer.Option("--points", help="List the combinations of the sweeps; run nothing.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what the pipeline no longer uses from its work folder; run nothing.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of pipeline files, for editors.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the plugins that the file names; let it write outside its folder.")
    ] = False,
    overwrite: Overwrite = False,
    plugin: Plugins = None,
    json_: AsJson = False,
) -> int:
    """Run a pipeline: load, preprocess, simulate, reconstruct, evaluate, report, export. Nothing is computed twice.

    Exit code 0 done, 1 a step failed, 2 the pipeline is wrong, 130 or 143 stopped by SIGINT or SIGTERM: the same
    command goes on.
    """
    start(None)
    from invsolve.errors import UserError

    if schema:
        from invsolve.pipeline import schema as make_schema

        print(json.dumps(make_schema(), indent=2))
        return 0
    if file is None:
        raise UserError("which pipeline? invsolve run PIPELINE.toml")
    from invsolve.pipeline import Pipeline

    pipeline = Pipeline.load(file, key_values(set_), plugin or (), trust)
    if points:
        names = pipeline.points
        emit(names, json_, "\n".join(names), cut=False)
        return 0
    if prune:
        removed = [str(folder) for folder in pipeline.prune()]
        emit(
            removed,
            json_,
            "\n".join([*removed, f"{len(removed)} folders removed from {pipeline.store.work}"]),
            cut=False,
        )
        return 0
    plan = pipeline.plan(only, index, force or ())
    if dry_run:
        emit(plan.as_json(), json_, str(plan))
        return 0
    return _run(pipeline, plan, keep_going, overwrite, log_json, json_)


def _run(pipeline: Pipeline, plan: Plan, keep_going: bool, overwrite: bool, log_json: str | None, as_json: bool) -> int:
    from invsolve.errors import printable
    from invsolve.pipeline import StepFailed, Stop, Stopped
    from invsolve.pipeline.events import Log

    quiet = as_json or log_json == "-"
    print(printable(str(plan)), end="\n\n", file=sys.stderr if quiet else sys.stdout, flush=True)
    stop = Stop()
    handlers = _on_signals(stop)
    try:
        with ExitStack() as stack:
            log = None if log_json is None else stack.enter_context(Log(log_json))
            results = pipeline.run(plan, keep_going=keep_going, overwrite=overwrite, on_event=_listener(log), stop=stop)
    except StepFailed as error:
        note(str(error))
        return 1
    except (Stopped, KeyboardInterrupt) as error:
        note(str(error) or "interrupted")
        return 128 + (stop.number or signal.SIGINT)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if as_json:
        print(json.dumps([result.as_json() for result in results], indent=2))
    elif not quiet:
        _print_metrics(results)
    return 0


def _on_signals(stop: Stop) -> dict[signal.Signals, Any]:
    """The first Ctrl-C or SIGTERM stops at a safe point, the second at once; returns the handlers that were there."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop.request(number)

    return {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}


def _listener(log: Callable[[dict[str, Any]], None] | None) -> Callable[[dict[str, Any]], None]:
    def tell(what: dict[str, Any]) -> None:
        if log is not None:
            log(what)
        if "step" not in what:
            return
        name = f"{what['step']} [{what['branch']}]" if what["branch"] else what["step"]
        state = {
            "start": "...",
            "cached": "cached",
            "done": f"done in {what.get('seconds', 0):.1f} s",
            "waiting": "another run is at it; waiting",
            "note": what.get("text", ""),
            "skipped": f"skipped: {what.get('error', '')}",
            "failed": f"failed: {what.get('error', '')}",
        }.get(what["event"])
        if state:
            note(f"{name}: {state}")

    return tell


def _print_metrics(results: Results) -> None:
    """A table of the metrics of all evaluations; a line for each other output that was asked for by name."""
    from invsolve.errors import printable

    for result in results:
        if result.copy is not None:
            print(printable(str(result.copy)))
    scored = [result for result in results if result.metrics]
    if not scored:
        return
    names = list(dict.fromkeys(name for result in scored for name in result.metrics if not name.startswith("linear_")))
    rows = [
        [
            f"{result.step} {result.branch}".strip(),
            *(f"{result.metrics[name]:.4g}" if name in result.metrics else "-" for name in names),
        ]
        for result in scored
    ]
    print(printable(table(["", *names], rows)))
