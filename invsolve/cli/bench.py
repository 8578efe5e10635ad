"""The commands that measure: bench posterior."""

from __future__ import annotations

from typing import Annotated

import typer

from invsolve.cli.common import AsJson, Plugins, emit, note, start, table

app = typer.Typer(
    help="Measure how far strategies are from the exact posterior, and what they cost.", no_args_is_help=True
)

COLUMNS = {
    "mean_error": "mean error",
    "std_ratio": "sd ratio",
    "std_observed": "observed",
    "std_hidden": "hidden",
    "wasserstein": "W1",
    "wasserstein_floor": "floor",
    "coverage_50": "in 50 %",
    "coverage_90": "in 90 %",
}


@app.callback()
def _group() -> None:
    pass


@app.command()
def posterior(
    strategy: Annotated[
        list[str] | None, typer.Option(help="Strategies; repeatable; default all that draw samples.")
    ] = None,
    operator: Annotated[
        list[str] | None, typer.Option(help="inpainting, blur, compression, ct, fourier; default all.")
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Network calls and backward passes a sample; default each's own.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Draws a problem; the floor of the mean error is 1 / sqrt of it.")] = 256,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    plugin: Plugins = None,
    json_: AsJson = False,
) -> None:
    """Compare samples with the exact posterior of a Gaussian field, one table a problem."""
    start(plugin)
    from invsolve.bench import bench_posterior

    rows = bench_posterior(strategy or [], operator or [], evaluations, samples, device, note)
    parts = []
    for problem in dict.fromkeys(r["problem"] for r in rows):
        body = [
            [r["strategy"], *(f"{r[c]:.2f}" for c in COLUMNS), f"{r['evaluations']:.0f}", f"{r['seconds']:.1f}"]
            for r in rows
            if r["problem"] == problem
        ]
        parts.append(f"{problem}\n" + table(["strategy", *COLUMNS.values(), "evaluations", "seconds"], body))
    legend = (
        f"mean error: in posterior sd; {samples**-0.5:.2f} is what {samples} exact samples have. sd ratio: 1 is exact; observed: "
        "the half of the pixels that the data determine better. W1: sliced Wasserstein distance, floor that of exact samples."
    )
    emit(rows, json_, "\n\n".join([*parts, legend]))
