"""The commands that measure: bench posterior."""

from __future__ import annotations

from typing import Annotated

import typer

from invsolve.cli.common import AsJson, Plugins, emit, note, start, table

app = typer.Typer(
    help="Measure how far strategies are from the exact posterior, and what they cost.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    pass


@app.command()
def posterior(
    family: Annotated[
        list[str] | None,
        typer.Option(help="gaussian (16 x 16 field), mixture (25 modes), or all; repeatable; default gaussian."),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="Strategies; repeatable; default all that draw samples.")
    ] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option(
            "--problem",
            "--operator",
            help="Problems of the family, such as blur or d8-m1; repeatable; default its usual ones.",
        ),
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Network calls and backward passes a sample; default each's own.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Draws a problem; the floor of the mean error is 1 / sqrt of it.")] = 256,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", "--seeds", help="Random problems, whose median is shown; default the family's."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    plugin: Plugins = None,
    json_: AsJson = False,
) -> None:
    """Compare samples with exact posteriors, one table a problem."""
    start(plugin)
    from invsolve import bench

    wanted = family or ["gaussian"]
    rows = []
    parts = []
    for name in list(bench.FAMILIES) if "all" in wanted else wanted:
        chosen = bench.family(name)
        found = bench.bench_posterior(name, strategy or [], problem or [], evaluations, samples, repeats, device, note)
        for which in dict.fromkeys(r["problem"] for r in found):
            body = []
            for r in found:
                if r["problem"] == which:
                    cells = [f"{r[c]:.2f}" if c in r else "-" for c in chosen.columns]
                    cost = [f"{r['evaluations']:.0f}", f"{r['seconds']:.1f}"] if "evaluations" in r else ["failed", "-"]
                    body.append([r["strategy"], *cells, *cost])
            parts.append(f"{which}\n" + table(["strategy", *chosen.columns.values(), "evaluations", "seconds"], body))
        parts.append(chosen.legend.format(samples=samples, floor=samples**-0.5))
        rows += found
    emit(rows, json_, "\n\n".join(parts))
