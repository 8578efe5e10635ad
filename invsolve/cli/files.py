"""The commands that turn one file into another: demo, simulate, reconstruct, join, evaluate, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from invsolve.cli.common import (
    AsJson,
    NoSelfTest,
    Overwrite,
    Plugins,
    Read,
    Settings,
    StopOnSignal,
    emit,
    key_values,
    note,
    start,
    table,
)
from invsolve.cli.options import with_options
from invsolve.engine.options import Options


def demo(
    folder: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures and files.")] = Path(
        "demo_output"
    ),
    json_: AsJson = False,
) -> None:
    """The main job on bundled data and a bundled prior: sparse-view CT, five methods, about two minutes on two cores."""
    start(None)
    from invsolve.cli.demo import run_demo

    result = run_demo(folder, note)
    rows = [
        [r["method"], f"{r['psnr']:.2f}", f"{r['ssim']:.3f}", f"{r['network_calls']:.0f}", f"{r['seconds']:.1f}"]
        for r in result["rows"]
    ]
    text = table(["method", "PSNR dB", "SSIM", "calls + backward", "seconds"], rows)
    emit(result, json_, f"{text}\n\npictures: {', '.join(result['pictures'])}")


def simulate(
    truth: Annotated[Path, typer.Argument(help="Images: our files, NIfTI, DICOM, TIFF, .npy, see --layout.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Scan file to write.")],
    operator: Annotated[str, typer.Option(help="Registered operator, see `invsolve plugins list`.")],
    set_: Settings = None,
    noise: Annotated[
        str,
        typer.Option(
            help="NAME:VALUE of a registered noise, in units of the measurement; gaussian:SIGMA.npy is an array."
        ),
    ] = "gaussian:0.01",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    layout: Annotated[str | None, typer.Option(help="Layout of the file, where it is not recognised.")] = None,
    read: Read = None,
    plugin: Plugins = None,
    overwrite: Overwrite = False,
    json_: AsJson = False,
) -> None:
    """Measure known images with an operator: y = A(x) + noise."""
    start(plugin)
    from invsolve.jobs.simulation import simulate_file

    result = simulate_file(
        truth, out, operator, key_values(set_), noise, seed, overwrite, layout, key_values(read), note
    )
    shape = " x ".join(map(str, result["measurement_shape"]))
    emit(result, json_, f"{result['output']}: {result['items']} items, y of {shape}")


@with_options
def reconstruct(
    scan: Annotated[Path, typer.Argument(help="Measurement: ours, DXchange, NXtomo, fastMRI, ISMRMRD, ...")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Result file to write; the same command resumes it.")],
    *,
    prior: Annotated[
        str | None, typer.Option(help="Registered prior or checkpoint file; some strategies need none.")
    ] = None,
    strategy: Annotated[str, typer.Option(help="Strategy; auto: the preferred one whose needs are met.")] = "auto",
    set_: Settings = None,
    noise: Annotated[
        str | None,
        typer.Option(help="NAME:VALUE, as gaussian:0.01 or gaussian:SIGMA.npy, where the file does not say."),
    ] = None,
    options: Options,
    slices: Annotated[str | None, typer.Option(help="Only these items of the file.", metavar="START:STOP")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes to share items; on cuda one a GPU. Needs Dask.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Dask that runs: tcp://HOST:PORT.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps, say what all would take; write nothing.")
    ] = False,
    snapshot_every: Annotated[
        float, typer.Option(help="To go on from after a kill; 60.", metavar="SECONDS", show_default=False)
    ] = 60.0,
    no_self_test: NoSelfTest = False,
    calibration: Annotated[Path | None, typer.Option(help="Adds conformal intervals.", metavar="FILE")] = None,
    layout: Annotated[str | None, typer.Option(help="Layout, where not recognised.")] = None,
    read: Read = None,
    plugin: Plugins = None,
    overwrite: Overwrite = False,
    json_: AsJson = False,
) -> None:
    """Draw samples of every item of a scan, and write their mean, standard deviation and samples."""
    start(plugin)
    from invsolve.jobs.reconstruction import reconstruct_file
    from invsolve.jobs.request import Request
    from invsolve.training.parallel import rank

    request = Request(
        scan=scan,
        out=out,
        prior=prior,
        strategy=strategy,
        parameters=key_values(set_),
        options=options,
        noise=noise,
        layout=layout,
        read=key_values(read),
        overwrite=overwrite,
        slices=slices,
        workers=workers,
        scheduler=scheduler,
        plugins=tuple(plugin or ()),
        snapshot_every=snapshot_every,
        self_test=not no_self_test,
        calibration=calibration,
    )
    if dry_run:
        from invsolve.jobs import dryrun

        plan = dryrun.dry_run(request, note)
        emit(plan, json_, dryrun.as_text(plan, request))
        return
    stop = StopOnSignal()
    result = reconstruct_file(request, note, stop.asked, " ".join(["invsolve", *sys.argv[1:]]))
    if rank() == 0:
        emit(result, json_, f"{result['output']}: {result['items']} items in {result['seconds']:.1f} s")


def join(
    parts: Annotated[list[Path], typer.Argument(help="Result files of one run, such as --slices wrote.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Result file to write; the parts stay.")],
    overwrite: Overwrite = False,
    json_: AsJson = False,
) -> None:
    """Join results of parts of a volume into one, and refuse when items are missing between them."""
    start(None)
    from invsolve.datasets import hdf5

    items = hdf5.join_results(out, parts, overwrite=overwrite)
    total = hdf5.read_result(out).input_items
    result = {"output": str(out), "items": [items.start, items.stop], "input_items": total}
    emit(result, json_, f"{out}: items {items.start}:{items.stop} of {total}")


HEADINGS = {"psnr": "PSNR dB", "coverage_50": "in 50 % interval", "coverage_90": "in 90 % interval"}


def evaluate(
    recon: Annotated[Path, typer.Argument(help="Result file.")],
    truth: Annotated[Path | None, typer.Option(help="Images x; default the truth that the result carries.")] = None,
    data_range: Annotated[
        float | None, typer.Option(help="Span of values for PSNR and SSIM; default the truth's.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Layout of the truth (else of the scan), where not recognised.")
    ] = None,
    read: Read = None,
    scan: Annotated[
        Path | None, typer.Option(help="The measurement; without a truth default where it was for the run.")
    ] = None,
    prior: Annotated[str | None, typer.Option(help="The run's prior, where the record's is not found.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Conformal factors, whose intervals are counted.", metavar="FILE")
    ] = None,
    write_calibration: Annotated[
        Path | None, typer.Option(help="Make them from this result and its truth.", metavar="FILE")
    ] = None,
    level: Annotated[float, typer.Option(help="What they promise.")] = 0.9,
    share: Annotated[float, typer.Option(help="Pixels of an image that are held with that probability.")] = 0.9,
    overwrite: Overwrite = False,
    plugin: Plugins = None,
    json_: AsJson = False,
) -> None:
    """Compare a result with the truth, or without one its samples with prior and scan: narrow, wide, biased or fine."""
    start(plugin)
    from invsolve.jobs.evaluation import evaluate_file

    result = evaluate_file(recon, truth, data_range, layout, key_values(read), scan, prior, note, calibration)
    if write_calibration is not None:
        from invsolve.jobs.evaluation import calibrate_file

        result["calibration"] = calibrate_file(
            recon, write_calibration, truth, level, share, overwrite, layout, key_values(read)
        )
        note("{path}: factor {image:.3g} by image, {pixel:.3g} by pixel in the median".format(**result["calibration"]))
    trust = _trust_table(result["trust"]) if "trust" in result else ""
    if "mean" not in result:
        emit(result, json_, trust)
        return
    names = list(result["mean"])
    scored = zip(result["which"], result["items"], strict=True)
    rows = [[f"item {i}", *(_figure(n, row[n]) for n in names)] for i, row in scored]
    rows.append(["mean", *(_figure(n, result["mean"][n]) for n in names)])
    if "linear" in result:
        rows.append(
            ["mean of linear", *(_figure(n, result["linear"][n]) if n in result["linear"] else "-" for n in names)]
        )
    text = table(["", *(HEADINGS.get(n, n.upper()) for n in names)], rows)
    emit(result, json_, f"{text}\n\n{trust}" if trust else text)


def _trust_table(trust: dict[str, Any]) -> str:
    """The verdict on samples without a truth, and its figures."""
    from invsolve.api.trust import HEADINGS as FIGURES

    if "p_value" not in trust:
        return f"{trust['verdict']}: {trust['text']}"
    rows = [[text, "-" if trust[name] is None else f"{trust[name]:.3g}"] for name, text in FIGURES.items()]
    return f"{trust['verdict']}: {trust['text']}\n\n" + table(["without a truth", ""], rows)


def _figure(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "psnr" else f"{value:.3f}"


def report(
    recon: Annotated[Path, typer.Argument(help="Result file, or a session of acquire.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="Page (.html), picture (.png, .apng) or list of lines (.csv, .txt, .npy, .npz)."
        ),
    ],
    item: Annotated[
        list[int] | None, typer.Option(help="Rows of the result to show; default all on a page, four on a picture.")
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Images x; default the truth that the result carries.")] = None,
    scan: Annotated[
        Path | None, typer.Option(help="The measurement, for its residual; default where it was for the run.")
    ] = None,
    truth_layout: Annotated[str | None, typer.Option(help="Layout of the truth, where it is not recognised.")] = None,
    truth_read: Annotated[
        list[str] | None, typer.Option(help="key=value of the truth's layout.", metavar="KEY=VALUE")
    ] = None,
    megabytes: Annotated[float, typer.Option(help="Largest size of a page; pictures are reduced to fit.")] = 20.0,
    layout: Annotated[str | None, typer.Option(help="Layout of the scan, as for the run.")] = None,
    read: Read = None,
    plugin: Plugins = None,
    overwrite: Overwrite = False,
) -> None:
    """Show a result: mean, standard deviation, samples, truth, errors, profiles, metrics, coverage, how it was made."""
    start(plugin)
    from invsolve.report import write_report

    write_report(
        recon,
        out,
        item,
        truth,
        overwrite,
        scan,
        megabytes,
        layout,
        key_values(read),
        truth_layout,
        key_values(truth_read),
    )
    print(out)
