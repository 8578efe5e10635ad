"""Errors of tomographic projectors and of filtered back-projection against closed forms, by image size, as Markdown.

    OMP_NUM_THREADS=1 python benchmarks/ct_accuracy.py -o benchmarks/ct_accuracy.md

Sharp objects are the Shepp-Logan head in 2-D and ellipsoids in 3-D, drawn as the mean of several points a pixel; smooth ones
are Gaussian blobs with a standard deviation of 0.1 of half the image. Of ASTRA and diffct, where they are installed (see
`operators.py`), the kernels are measured beside ours.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import invsolve
from invsolve import Geometry
from invsolve.datasets.phantoms import Blob, Ellipsoid, Shape, exact_measurement, sampled, shepp_logan

BLOBS: list[Shape] = [Blob(1.0, 0.1, 0.2, -0.1, 0.05), Blob(0.7, 0.12, -0.3, 0.25, -0.1), Blob(0.5, 0.1, -0.2, -0.4)]
ELLIPSOIDS: list[Shape] = [
    Ellipsoid(1.0, 0.69, 0.6, 0.5),
    Ellipsoid(-0.6, 0.5, 0.45, 0.4, 0.0, -0.02),
    Ellipsoid(0.4, 0.11, 0.31, 0.22, 0.22, 0.0, 0.1, -18.0),
    Ellipsoid(0.3, 0.12, 0.1, 0.15, -0.2, 0.2, -0.1),
]
FAN: dict[str, Any] = {"beam": "fan", "source_distance": 4.0, "detector_distance": 1.0, "angles": 60}
CONE: dict[str, Any] = {"beam": "cone", "source_distance": 4.0, "detector_distance": 1.0, "angles": 12}
FLAT: dict[str, dict[str, Any]] = {
    "parallel": {"angles": 60},
    "fan, flat": FAN,
    "fan, curved": FAN | {"curved": True},
}
DEEP: dict[str, dict[str, Any]] = {
    "cone": CONE,
    "cone, curved": CONE | {"curved": True},
    "cone, tilted, rolled": CONE | {"tilt": 20.0, "roll": 5.0},
    "helix": CONE | {"feed": 0.3, "angles": [60.0 * k for k in range(12)]},
    "parallel, volume": {"angles": 12},
}
FILTERED: dict[str, dict[str, Any]] = {
    "parallel": {},
    "fan, flat": FAN,
    "fan, curved": FAN | {"curved": True},
    "fan, short scan": FAN | {"span": 240.0},
    "cone": CONE,
    "cone, curved": CONE | {"curved": True},
}
PROJECTORS = ("folded", "joseph", "fourier", "joseph-3d", "astra", "diffct")

Forward = Callable[[Tensor], Tensor]


def geometries(scan: str, given: dict[str, Any], size: int, deep: bool) -> Iterator[tuple[str, Geometry]]:
    """The scan, and of a helix the same by vectors."""
    g = Geometry(image_size=[size] * (3 if deep else 2), pixel_size=2 / size, **given)
    yield scan, g
    if scan == "helix":
        views = g.views()
        middle = views.middle + views.a.mean() * views.u + views.m.mean() * views.v
        table = np.concatenate([views.source, middle, views.u * g.detector_spacing, views.v * g.row_spacing], 1)
        same = {name: getattr(g, name) for name in ("beam", "image_size", "pixel_size", "detectors", "detector_rows")}
        yield "vectors of the helix", Geometry(**same, vectors=table)


def methods(geometry: Geometry) -> Iterator[tuple[str, Forward]]:
    """Every projector that is for the geometry and installed, and ASTRA's second kernel."""
    for name in PROJECTORS:
        try:
            yield f"`{name}`", invsolve.operator("ct", geometry=geometry, projector=name)
        except invsolve.UserError:
            continue
    if importlib.util.find_spec("astra") and geometry.dimensions == 2 and not geometry.curved:
        import astra

        by_angles = (geometry.detector_spacing, geometry.detectors, np.deg2rad(geometry.angles))
        distances = (geometry.source_distance, geometry.detector_distance)
        parallel = geometry.beam == "parallel"
        scan = ("parallel", *by_angles) if parallel else ("fanflat", *by_angles, *distances)
        kernel = "strip" if parallel else "strip_fanflat"
        projector = astra.create_projector(kernel, astra.create_proj_geom(*scan), geometry.to_astra()[1])
        matrix = astra.OpTomo(projector)

        def strip(x: Tensor) -> Tensor:
            return torch.from_numpy(matrix.FP(x[0, 0].numpy()))[None]

        yield f"ASTRA {kernel}", strip


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def projection_rows(scans: dict[str, dict[str, Any]], sizes: list[int], deep: bool) -> list[list[str]]:
    rows: dict[tuple[str, str], list[str]] = {}
    sharp, points = (ELLIPSOIDS, 2) if deep else (list(shepp_logan()), 4)
    for size in sizes:
        for scan, given in scans.items():
            for name, geometry in geometries(scan, given, size, deep):
                kinds = [
                    (sampled(s, geometry, n), exact_measurement(s, geometry)) for s, n in ((sharp, points), (BLOBS, 1))
                ]
                for method, forward in methods(geometry):
                    errors = [f"{relative(forward(image[None].float())[0], y):.1e}" for image, y in kinds]
                    rows.setdefault((name, method), [name, method]).append(", ".join(errors))
    return list(rows.values())


def filtered_rows(sizes: list[int]) -> list[list[str]]:
    """FBP and FDK with the ramp filter of exact integrals of blobs; 3 views a pixel of the image's side on a turn."""
    rows: dict[str, list[str]] = {}
    for size in sizes:
        for scan, given in FILTERED.items():
            deep = "cone" in scan
            if deep and size > 96:
                rows.setdefault(scan, [scan]).append("")
                continue
            span = given.get("span", 360.0 if given else 180.0)
            views = round(3 * size * span / 360)
            more = {key: value for key, value in given.items() if key != "span"}
            more["angles"] = [span * k / (views - (span == 240.0)) for k in range(views)]
            shape = [size // 2, size, size] if deep else [size, size]
            g = Geometry(image_size=shape, pixel_size=2 / size, **more)
            operator: Any = invsolve.operator("ct", geometry=g, **({} if deep else {"projector": "joseph"}))
            y, truth = exact_measurement(BLOBS, g).float(), sampled(BLOBS, g)
            row = rows.setdefault(scan, [scan])
            row.append(f"{relative(operator.fbp(y[None], 'ramp')[0], truth):.1e}")
            if scan == "parallel" and importlib.util.find_spec("astra"):
                found = torch.from_numpy(astra_fbp(g, y.numpy()))
                rows.setdefault("astra", ["parallel, ASTRA's FBP"]).append(f"{relative(found[None], truth):.1e}")
    return list(rows.values())


def astra_fbp(g: Geometry, y: np.ndarray) -> np.ndarray:
    import astra

    scan = astra.create_proj_geom("parallel", g.detector_spacing, g.detectors, np.deg2rad(g.angles))
    volume = g.to_astra()[1]
    settings = astra.astra_dict("FBP")
    settings["ProjectorId"] = astra.create_projector("linear", scan, volume)
    settings["ProjectionDataId"] = astra.data2d.create("-sino", scan, y)
    settings["ReconstructionDataId"] = astra.data2d.create("-vol", volume)
    settings["option"] = {"FilterType": "ram-lak"}
    algorithm = astra.algorithm.create(settings)
    astra.algorithm.run(algorithm)
    return astra.data2d.get(settings["ReconstructionDataId"])


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines)


def page(sizes: list[int], volumes: list[int]) -> str:
    command = (
        f"python benchmarks/ct_accuracy.py --sizes {' '.join(map(str, sizes))} --volumes {' '.join(map(str, volumes))}"
    )
    flat = table(["scan", "projector", *map(str, sizes)], projection_rows(FLAT, sizes, False))
    deep = table(["scan", "projector", *map(str, volumes)], projection_rows(DEEP, volumes, True))
    filtered = table(["scan", *map(str, sizes)], filtered_rows(sizes))
    return f"""# Tomography: errors against closed forms

Written by `{command}`. Relative errors in the Euclidean norm, single precision.

Line integrals of images: the Shepp-Logan head (pixels the mean of 16 points), Gaussian blobs.

{flat}

Line integrals of volumes: ellipsoids (voxels the mean of 8 points), Gaussian blobs. ASTRA has no such kernels on the CPU.

{deep}

Images by filtered back-projection, window `ramp`, of exact line integrals of the blobs. Feldkamp's formula for cones is not
exact off the source's plane.

{filtered}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--volumes", type=int, nargs="+", default=[32, 64, 96])
    parser.add_argument("-o", "--output", type=Path, help="Default: to the screen.")
    arguments = parser.parse_args()
    text = page(arguments.sizes, arguments.volumes)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
