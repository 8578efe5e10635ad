"""The command `train`: from a file of images to a prior."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from invsolve.cli.common import AsJson, Overwrite, Settings, StopOnSignal, emit, key_values, note, start

_DATA, _LENGTH = "The images", "Network and length"


def train(
    images: Annotated[Path, typer.Argument(help="HDF5 with x, NIfTI, DICOM folder, TIFF or .npy.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Prior file to write; the same command resumes it.")],
    dataset: Annotated[str | None, typer.Option(help="Dataset in the file; default x.", rich_help_panel=_DATA)] = None,
    axes: Annotated[
        str | None, typer.Option(help="Names of its axes, such as item:row:column.", rich_help_panel=_DATA)
    ] = None,
    slice_axis: Annotated[
        int | None, typer.Option(help="Axis along which a volume is cut into images.", rich_help_panel=_DATA)
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Only items with this label, as modality=CT.", rich_help_panel=_DATA)
    ] = None,
    range_: Annotated[
        str,
        typer.Option("--range", help="Physical values of network -1:1, LOW:HIGH, type or auto.", rich_help_panel=_DATA),
    ] = "auto",
    groups: Annotated[
        str | None, typer.Option(help="Dataset of labels (patients) that never cross the split.", rich_help_panel=_DATA)
    ] = None,
    split: Annotated[str | None, typer.Option(help="Dataset of labels train and val.", rich_help_panel=_DATA)] = None,
    crop: Annotated[
        str | None, typer.Option(help="Train on random crops of this size, 64 or 64,96.", rich_help_panel=_DATA)
    ] = None,
    flip: Annotated[
        str | None, typer.Option(help="Mirror at random along these spatial axes, 1 or 0,1.", rich_help_panel=_DATA)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps; default 20000.", rich_help_panel=_LENGTH)] = None,
    minutes: Annotated[float | None, typer.Option(help="End after this time.", rich_help_panel=_LENGTH)] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step, over all processes.", rich_help_panel=_LENGTH)] = 16,
    kind: Annotated[str, typer.Option(help="edm, flow or pfgm++.", rich_help_panel=_LENGTH)] = "edm",
    width: Annotated[int, typer.Option(help="Channels of the finest level.", rich_help_panel=_LENGTH)] = 32,
    levels: Annotated[int, typer.Option(help="Levels of the U-Net.", rich_help_panel=_LENGTH)] = 4,
    precision: Annotated[str, typer.Option(help="float32, bf16 or auto.", rich_help_panel=_LENGTH)] = "auto",
    set_: Settings = None,
    seed: Annotated[int, typer.Option(help="Seed of every random number.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default a GPU if there is one.")] = None,
    snapshot_seconds: Annotated[float, typer.Option(help="Seconds between snapshots.")] = 120.0,
    snapshot_steps: Annotated[int | None, typer.Option(help="Also every so many steps.")] = None,
    overwrite: Overwrite = False,
    json_: AsJson = False,
) -> None:
    """Train a prior on one's own images; kill it at will, the same command goes on.

    Several GPUs: torchrun --nproc-per-node 4 -m invsolve train ...

    More with --set: layout, read (as read={view="axial"}), augmentation (rotate, zoom, shift, warped, gain, phase),
    network (fast), augmented, outliers, balance, weight, resident, compile, clip, unit, validation, blocks, dropout, lr, warmup,
    ema, sigma_mean, sigma_std, sigma_data, sigma_max, immiscible, stable_target, validate_every, log_every, store.
    """
    start(None)
    from invsolve.errors import Interrupted, UserError
    from invsolve.training.job import train_file
    from invsolve.training.parallel import rank
    from invsolve.training.settings import Request, make_settings

    options: dict[str, Any] = {
        "dataset": dataset,
        "axes": axes,
        "slice_axis": slice_axis,
        "where": where,
        "range": range_,
        "groups": groups,
        "split": split,
        "crop": sizes("--crop", crop),
        "flip": sizes("--flip", flip),
        "steps": steps,
        "minutes": minutes,
        "batch_size": batch_size,
        "kind": kind,
        "width": width,
        "levels": levels,
        "precision": precision,
        "seed": seed,
    }
    if isinstance(options["crop"], list) and len(options["crop"]) == 1:
        options["crop"] = options["crop"][0]
    stop = StopOnSignal()
    try:
        settings = make_settings(options | key_values(set_))
        request = Request(images, out, settings, device, snapshot_seconds, snapshot_steps, overwrite)
        result = train_file(request, note, stop.asked, " ".join(["invsolve", *sys.argv[1:]]))
    except (UserError, Interrupted) as error:
        # Every process finds the same; one line about it is enough.
        if rank():
            raise typer.Exit(130 if isinstance(error, Interrupted) else 2) from None
        raise
    if not result:
        return
    band = f", validation loss {result['validation_loss']:.4f}" if "validation_loss" in result else ""
    text = (
        f"{result['output']}: {result['steps']} steps in {result['minutes']:.1f} min, loss {result['loss']:.4f}{band}"
    )
    emit(result, json_, f"{text}\nloss curve: {result['curve']}\nsamples: {result['sheet']}")


def sizes(option: str, text: str | None) -> list[int] | None:
    """Whole numbers with commas between them."""
    from invsolve.errors import UserError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r}: write whole numbers, such as 64 or 64,96") from None
