"""From a file of images to a scan file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invsolve import api
from invsolve.api.loading import noise as make_noise
from invsolve.datasets import hdf5
from invsolve.files.opening import open_images
from invsolve.jobs.request import refuse_existing
from invsolve.jobs.simulated import SimulatedScan


def simulate_file(
    truth: Path,
    out: Path,
    operator: str,
    parameters: Mapping[str, Any],
    noise: str,
    seed: int,
    overwrite: bool,
    layout: str | None = None,
    read: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure every image of a file, and write a scan file with the truth beside the measurement."""
    opened = open_images(truth, layout, read)
    refuse_existing(out, overwrite, truth)
    forward = api.operator(operator, **api.fill_image_size(operator, parameters, opened.x[0:1].shape[-1]))
    scan = SimulatedScan(opened.x, forward, make_noise(noise), seed, str(truth))
    hdf5.write_scan(out, scan, forward, scan.noise, truth=scan.truth, unit=opened.unit, volumes=opened.volumes)
    shape = list(scan[0:1].shape[1:])
    return {"output": str(out), "items": len(scan), "measurement_shape": shape, "noise": noise, "seed": seed}
