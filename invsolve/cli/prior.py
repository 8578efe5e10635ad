"""The commands about priors: show, fetch, measure, quantise, schedule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from invsolve.cli.common import AsJson, NoSelfTest, Overwrite, Plugins, StopOnSignal, emit, note, start, table
from invsolve.cli.train import sizes

app = typer.Typer(help="Explain a prior, and measure its error.", no_args_is_help=True)


@app.command()
def show(
    prior: Annotated[str, typer.Argument(help="Registered prior or checkpoint file.")],
    no_self_test: NoSelfTest = False,
    plugin: Plugins = None,
    json_: AsJson = False,
) -> None:
    """What a prior knows about itself: image size, units, noise levels, origin, training, error at each noise level."""
    start(plugin)
    from invsolve import api

    loaded = api.load_prior(prior, self_test=not no_self_test)
    low, high = loaded.data_range or (None, None)
    facts: dict[str, Any] = {
        "prior": prior,
        "class": f"{type(loaded).__module__}:{type(loaded).__qualname__}",
        "event_shape": list(loaded.event_shape),
        "data_range": None if low is None else [low, high],
        "unit": loaded.unit,
        "sigma_min": loaded.sigma_min,
        "sigma_max": loaded.sigma_max,
        "weights": sum(p.numel() for p in loaded.parameters()),
        "source": loaded.source,
        "error_curve": loaded.error_curve,
    }
    header = {k: v for k, v in getattr(loaded, "header", {}).items() if k not in facts}
    size = " x ".join("any" if s is None else str(s) for s in loaded.event_shape)
    lines = [
        f"{prior}: {loaded.source or 'of unknown origin'}",
        f"images       {size}",
        f"range        {'network units' if low is None else f'{low:g} .. {high:g} {loaded.unit}'.rstrip()}",
        f"noise levels {loaded.sigma_min:g} .. {loaded.sigma_max:g}",
        f"weights      {facts['weights']}",
    ]
    lines += [f"{name.ljust(12)} {_short(value)}" for name, value in _flat(header)]
    text = "\n".join(lines)
    if loaded.error_curve:
        rows = zip(loaded.error_curve["sigma"], loaded.error_curve["mse"], strict=True)
        text += "\n\n" + table(["sigma", "mean squared error"], [[f"{s:.4g}", f"{m:.4g}"] for s, m in rows])
    else:
        text += "\nerror curve  not measured: invsolve prior measure"
    emit(facts | {"header": header}, json_, text)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="hf:OWNER/NAME, or hf:OWNER/NAME@REVISION.")],
    json_: AsJson = False,
) -> None:
    """Download a prior from the Hugging Face hub into its cache, safetensors only, and print the name that pins it."""
    start(None)
    from invsolve.api import hub

    place = hub.fetch(hub.place(name), note)
    emit({"prior": str(place), "path": str(hub.cached(place))}, json_, f"use it as --prior {place}")


@app.command()
def measure(
    prior: Annotated[str, typer.Argument(help="Registered prior or checkpoint file.")],
    images: Annotated[Path, typer.Argument(help="HDF5 file with images that the prior has not seen, in its units.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="New prior file, or .json; default PRIOR.error_curve.json."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Dataset in the file; default x.")] = None,
    axes: Annotated[str | None, typer.Option(help="Names of its axes, such as item:row:column.")] = None,
    slice_axis: Annotated[int | None, typer.Option(help="Axis along which a volume is cut into images.")] = None,
    where: Annotated[str | None, typer.Option(help="Only items with this label, as split=val.")] = None,
    crop: Annotated[str | None, typer.Option(help="Measure on crops of this size, 64 or 64,96.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images that go through the network at once.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default a GPU if there is one.")] = None,
    plugin: Plugins = None,
    overwrite: Overwrite = False,
    json_: AsJson = False,
) -> None:
    """Measure what a prior's denoiser leaves wrong at 16 noise levels, and store the curve with it."""
    start(plugin)
    from invsolve.training.measure import measure_file
    from invsolve.training.settings import make_settings

    options: dict[str, Any] = {
        "dataset": dataset,
        "axes": axes,
        "slice_axis": slice_axis,
        "where": where,
        "crop": sizes("--crop", crop),
        "batch_size": batch_size,
    }
    if isinstance(options["crop"], list) and len(options["crop"]) == 1:
        options["crop"] = options["crop"][0]
    stop = StopOnSignal()
    result = measure_file(prior, images, out, make_settings(options), device, overwrite, note, stop.asked)
    curve = result["error_curve"]
    rows = [[f"{s:.4g}", f"{m:.4g}"] for s, m in zip(curve["sigma"], curve["mse"], strict=True)]
    emit(
        result,
        json_,
        f"{table(['sigma', 'mean squared error'], rows)}\n\n{result['output']}: {result['images']} images",
    )


@app.command()
def quantise(
    prior: Annotated[str, typer.Argument(help="Registered prior, or a prior file of invsolve's own.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Prior file to write, .safetensors.")],
    bits: Annotated[int, typer.Option(help="Of each weight: 8 or 4.")] = 8,
    plugin: Plugins = None,
    overwrite: Overwrite = False,
    json_: AsJson = False,
) -> None:
    """Round a prior's weights to 8 or 4 bits: a half or a quarter of the file, as fast as before, the error a little larger."""
    start(plugin)
    from invsolve.training.measure import quantise_file

    result = quantise_file(prior, out, bits, overwrite)
    emit(
        result,
        json_,
        f"{result['output']}: {result['bytes'] / 1e6:.2f} MB, {result['change']:.2%} from the weights before",
    )


@app.command()
def schedule(
    prior: Annotated[str, typer.Argument(help="Registered prior or checkpoint file.")],
    steps: Annotated[int, typer.Option(help="Network calls per image.")] = 5,
    solver: Annotated[str, typer.Option(help="dpmpp-2m, unipc-2, deis-3, ddim, ...")] = "dpmpp-2m",
    count: Annotated[int, typer.Option(help="Images that it is searched on.")] = 4,
    size: Annotated[
        int | None, typer.Option(help="Pixels a side, where the prior leaves it open; default 128.")
    ] = None,
    fine: Annotated[int, typer.Option(help="Steps of Heun's method on the grid that counts as exact.")] = 48,
    seed: Annotated[int, typer.Option(help="Of the noise that the images begin with.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    no_self_test: NoSelfTest = False,
    plugin: Plugins = None,
    json_: AsJson = False,
) -> None:
    """Search the noise levels with which a few steps end nearest to a fine grid, for `invsolve sample --levels`."""
    start(plugin)
    from dataclasses import asdict

    from invsolve import api
    from invsolve.api.sampling import image_shape
    from invsolve.api.schedule_search import search_schedule

    loaded = api.load_prior(prior, self_test=not no_self_test)
    found = search_schedule(loaded, steps, solver, count, image_shape(loaded, size), fine, seed=seed, device=device)
    text = f"{','.join(f'{level:.4g}' for level in found.levels)}\n\n" + table(
        ["schedule", "off the fine grid, rms per pixel"],
        [["EDM", f"{found.usual:.4g}"], ["searched", f"{found.error:.4g}"]],
    )
    emit(asdict(found), json_, text)


def _flat(values: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Nested facts, one per line; what is not set is left out."""
    facts: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            facts += _flat(value, f"{before}{name}.")
        elif value is not None and value != "":
            facts.append((f"{before}{name}", value))
    return facts


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
