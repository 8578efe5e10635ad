"""The command `sample`: images from a prior alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from invsolve.cli.common import AsJson, NoSelfTest, Overwrite, Plugins, emit, start


def sample(
    prior: Annotated[str, typer.Argument(help="Registered prior or checkpoint file.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Image file to write.")],
    count: Annotated[int, typer.Option(help="Images.")] = 8,
    size: Annotated[
        int | None, typer.Option(help="Pixels a side, where the prior leaves it open; default 128.")
    ] = None,
    solver: Annotated[
        str, typer.Option(help="dpmpp-2m, dpmpp-2m-sde, unipc-2, deis-3, heun, edm, ancestral, ddim, ...")
    ] = "dpmpp-2m",
    steps: Annotated[int, typer.Option(help="Noise levels; most solvers take one network call each.")] = 32,
    levels: Annotated[
        str | None, typer.Option(help="Noise levels instead, as `invsolve prior schedule` finds them: 40,5,0.4,0.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed; image i depends on seed and i alone.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images that go through the network at once.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    no_self_test: NoSelfTest = False,
    plugin: Plugins = None,
    overwrite: Overwrite = False,
    json_: AsJson = False,
) -> None:
    """Draw images from a prior, without any measurement."""
    start(plugin)
    from invsolve.jobs.sampling import sample_file

    command = " ".join(["invsolve", *sys.argv[1:]])
    result = sample_file(
        prior, out, count, size, solver, steps, seed, batch_size, device, overwrite, command, not no_self_test,
        None if levels is None else _levels(levels),
    )  # fmt: skip
    shape = " x ".join(map(str, result["image_shape"]))
    emit(result, json_, f"{result['output']}: {count} images of {shape} in {result['seconds']:.1f} s")


def _levels(text: str) -> list[float]:
    from invsolve.errors import UserError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--levels {text!r}: write numbers that descend to 0, such as 40,5,0.4,0") from None
