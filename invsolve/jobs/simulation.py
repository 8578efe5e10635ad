"""From a file of images to a scan file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from invsolve import api, registry
from invsolve.api.loading import noise as make_noise
from invsolve.contracts.measurement import Images
from invsolve.datasets import hdf5
from invsolve.errors import UserError
from invsolve.files.opening import open_images
from invsolve.jobs.request import refuse_existing
from invsolve.jobs.simulated import SimulatedScan
from invsolve.registry.parameters import parameters as parameters_of


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
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every image of a file, and write a scan file with the truth beside the measurement.

    Raises:
        UserError: among others, for pixels that are not square where the operator measures lengths by one pixel size.
    """
    opened = open_images(truth, layout, read)
    refuse_existing(out, overwrite, truth)
    check_square(opened, operator, truth)
    for note in opened.notes:
        say(note)
    forward = api.operator(operator, **api.fill_image_size(operator, parameters, opened.x[0:1].shape[1:]))
    scan = SimulatedScan(opened.x, forward, make_noise(noise), seed, str(truth))
    hdf5.write_scan(out, scan, forward, scan.noise, truth=scan.truth, unit=opened.unit, volumes=opened.volumes)
    shape = list(scan[0:1].shape[1:])
    return {"output": str(out), "items": len(scan), "measurement_shape": shape, "noise": noise, "seed": seed}


def check_square(images: Images, operator: str, source: Path) -> None:
    """Refuse pixels that are not square for an operator whose only length is `pixel_size`."""
    if images.spacing is None or hdf5.is_square(images.spacing):
        return
    if "pixel_size" in {p.name for p in parameters_of(registry.find("operator", operator))}:
        size = " x ".join(f"{s:g}" for s in images.spacing)
        raise UserError(
            f"{source}: pixels of {size} {images.spacing_unit} are not square, and operator {operator!r} knows square ones; "
            "--read square=true makes them so (NIfTI, DICOM), or resample the images"
        )
