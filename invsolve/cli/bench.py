"""The commands that measure: bench posterior, bench calibrate, bench leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from invsolve.cli.common import AsJson, Plugins, emit, key_values, note, start, table

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
        typer.Option(
            help="gaussian (16 x 16 field; the default), mixture (25 modes), levy (random walks), quadratic, phase or all."
        ),
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
        int | None, typer.Option(help="Network calls and backward passes per sample; default each's own.")
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Draws per problem; the floor of the mean error is 1 / sqrt of it.")
    ] = 256,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", "--seeds", help="Random problems, whose median is shown; default the family's."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    plugin: Plugins = None,
    json_: AsJson = False,
) -> None:
    """Compare samples with exact posteriors, one table per problem."""
    start(plugin)
    from invsolve import bench

    families = family or ["gaussian"]
    rows = []
    parts = []
    for name in list(bench.FAMILIES) if "all" in families else families:
        chosen = bench.family(name)
        results = bench.bench_posterior(
            name, strategy or [], problem or [], evaluations, samples, repeats, device, note
        )
        for which in dict.fromkeys(r["problem"] for r in results):
            body = []
            for r in results:
                if r["problem"] == which:
                    cells = [f"{r[c]:.2f}" if c in r else "-" for c in chosen.columns]
                    cost = [f"{r['evaluations']:.0f}", f"{r['seconds']:.1f}"] if "evaluations" in r else ["failed", "-"]
                    body.append([r["strategy"], *cells, *cost])
            parts.append(f"{which}\n" + table(["strategy", *chosen.columns.values(), "evaluations", "seconds"], body))
        parts.append(chosen.legend.format(samples=samples, floor=samples**-0.5))
        rows += results
    emit(rows, json_, "\n\n".join(parts))


@app.command()
def calibrate(
    prior: Annotated[str, typer.Option(help="Registered prior or checkpoint file.")],
    operator: Annotated[str, typer.Option(help="Registered operator.")],
    strategy: Annotated[str, typer.Option(help="Posterior-sampling strategy.")],
    noise: Annotated[str, typer.Option(help="NAME:VALUE of a registered noise, in units of the measurement.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter of the operator; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    set_strategy: Annotated[
        list[str] | None, typer.Option(help="A parameter of the strategy; repeatable.", metavar="KEY=VALUE")
    ] = None,
    set_prior: Annotated[
        list[str] | None, typer.Option(help="A parameter of the prior; repeatable.", metavar="KEY=VALUE")
    ] = None,
    trials: Annotated[int, typer.Option(help="Truths drawn from the prior.")] = 200,
    samples: Annotated[int, typer.Option(help="Posterior samples of each.")] = 31,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels along an axis, where prior and operator are free.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Picture (.png) of the ranks to write.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    batch_size: Annotated[int | None, typer.Option(help="Samples that go through the network at once.")] = None,
    plugin: Plugins = None,
    json_: AsJson = False,
) -> None:
    """Rank truths among posterior samples (simulation-based calibration): uniform ranks when the samples are exact."""
    start(plugin)
    from invsolve import api
    from invsolve.api.loading import noise as make_noise
    from invsolve.bench import calibrate as sbc

    knowledge = api.load_prior(prior, **key_values(set_prior))
    channels, *own = knowledge.event_shape
    channels, size, parameters = channels or 1, [image_size or n or 0 for n in own], key_values(set_)
    if all(size):
        parameters = api.fill_image_size(operator, parameters, (channels, *size))
    forward = api.operator(operator, **parameters)
    method = api.strategy(strategy, **key_values(set_strategy))
    calibration = sbc.calibrate(
        knowledge,
        forward,
        make_noise(noise),
        method,
        trials,
        samples,
        seed,
        (channels, *size) if image_size else None,
        batch_size,
        device,
        note,
    )
    rows = calibration.rows()
    if figure is not None:
        sbc.draw_figure(calibration, figure)
    body = [
        [r["functional"], f"|{r['histogram']}|", f"{r['p_chi_square']:.3f}", f"{r['p_ecdf']:.3f}", r["verdict"]]
        for r in rows
    ]
    legend = (
        f"{trials} truths ({calibration.truths}), each ranked among {samples} samples; exact samples give flat histograms. "
        f"Verdicts at 1 % over all {len(rows)} functionals."
    )
    coverage = {f"{p:g}": calibration.tarp(p) for p in (0.5, 0.9)}
    told = "; ".join(
        f"{name} " + ", ".join(f"{100 * coverage[p][name]:.0f} % of {100 * float(p):.0f} %" for p in coverage)
        for name in coverage["0.5"]
    )
    legend += f"\nTARP coverage: {told}."
    text = table(["functional", "ranks", "p chi-square", "p ECDF band", "verdict"], body)
    emit(
        {"trials": trials, "samples": samples, "truths": calibration.truths, "functionals": rows, "tarp": coverage},
        json_,
        f"{text}\n\n{legend}",
    )


@app.command()
def leaderboard(
    name: Annotated[str, typer.Argument(help="dm4ct, inverse-scattering or fastmri-knee.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of the pipeline file and of what it computes.")],
    data: Annotated[
        Path | None, typer.Option(help="Your copy of its images; default as the pipeline file says.")
    ] = None,
    prior: Annotated[str | None, typer.Option(help="Registered prior or checkpoint, trained for them.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="variables.NAME=VALUE or STEP.KEY=VALUE; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this part, such as case=4x.", metavar="BRANCH")] = None,
    plugin: Plugins = None,
    json_: AsJson = False,
) -> None:
    """Run a published table's set-up on your copy of its data: PSNR, SSIM, coverage and cost of several methods.

    The set-up is a pipeline file in the output folder; what it takes over and what it does otherwise stands at its top.
    """
    start(None)
    from invsolve.pipeline.leaderboard import COLUMNS, run_leaderboard

    changes = key_values(set_)
    if data is not None:
        changes["variables.data"] = str(data.resolve())
    if prior is not None:
        changes["variables.prior"] = prior
    rows = run_leaderboard(name, out, changes, plugin or (), only, note)
    body = [
        [row["case"], row["method"], *(f"{row[key]:.3g}" if key in row else "-" for key in COLUMNS)] for row in rows
    ]
    emit(rows, json_, table(["case", "method", *COLUMNS.values()], body))
