"""From a prior to a file of images drawn from it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import invsolve
from invsolve import api, engine
from invsolve.api import sampling
from invsolve.api.provenance import plain
from invsolve.datasets import hdf5
from invsolve.jobs.request import refuse_existing


def sample_file(
    prior: str,
    out: Path,
    count: int,
    size: int | None,
    solver: str,
    steps: int,
    seed: int,
    batch_size: int,
    device: str,
    overwrite: bool,
    command: str = "",
    self_test: bool = True,
    levels: list[float] | None = None,
) -> dict[str, Any]:
    """Draw images from a prior into an image file, with what they were drawn by in its attributes."""
    refuse_existing(out, overwrite, Path(prior))
    loaded = api.load_prior(prior, self_test=self_test)
    shape = sampling.image_shape(loaded, size)
    began = time.perf_counter()
    images = sampling.sample(loaded, count, shape, solver, steps, seed, batch_size, device, levels)
    if not bool(images.isfinite().all()):
        raise engine.NonFinite(f"solver {solver!r} diverged on this prior; take more steps or another solver")
    config = {
        "prior": {
            "name": prior,
            "parameters": plain(loaded.parameters_given or {}),
            "sha256": loaded.fingerprint(),
            "source": loaded.source,
        },
        "solver": solver,
        "steps": steps if levels is None else len(levels) - 1,
        **({} if levels is None else {"levels": levels}),
        "command": command,
    }
    attributes: dict[str, str | int] = {"invsolve_version": invsolve.__version__, "seed": seed}
    attributes["config"] = json.dumps(config)
    hdf5.write_images(out, images, loaded.unit, overwrite, attributes, signals=len(shape) == 2)
    seconds = round(time.perf_counter() - began, 3)
    return {"output": str(out), "items": count, "image_shape": list(shape), "seconds": seconds}
