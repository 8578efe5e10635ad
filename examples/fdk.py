"""Feldkamp's reconstruction of ellipsoids from a cone beam: pictures, a profile, and means inside them beside their values.

    python examples/fdk.py -o fdk.png [--size 96] [--views 240]

The projections are line integrals in closed form, so that all error is the reconstruction's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

import invsolve
from invsolve import Geometry
from invsolve.datasets.phantoms import Ellipsoid, exact_measurement, sampled

#: The body, and what is inside it; in coordinates where the image spans [-1, 1].
BODY = Ellipsoid(1.0, 0.8, 0.65, 0.5)
INSIDE = {
    "cavity": Ellipsoid(-1.0, 0.22, 0.3, 0.25, -0.35, 0.0, 0.0, 15.0),
    "bone": Ellipsoid(0.8, 0.15, 0.12, 0.2, 0.35, 0.2, 0.0),
    "soft": Ellipsoid(0.1, 0.2, 0.15, 0.15, 0.25, -0.25, 0.05),
    "above": Ellipsoid(0.3, 0.16, 0.14, 0.12, 0.0, 0.3, 0.22),
}


def grown(shape: Ellipsoid, by: float) -> Ellipsoid:
    """The ellipsoid with every semi-axis longer by so much, of value 1."""
    return Ellipsoid(1.0, shape.a + by, shape.b + by, shape.c + by, shape.x, shape.y, shape.z, shape.degrees)


def regions(geometry: Geometry, margin: float) -> dict[str, tuple[float, torch.Tensor]]:
    """By name: the phantom's value there, and which voxels are at least `margin` inside."""

    def covered(shape: Ellipsoid) -> torch.Tensor:
        return sampled([shape], geometry)[0] > 0

    others = sum((covered(grown(shape, margin)) for shape in INSIDE.values()), torch.zeros(geometry.image_size)) > 0
    found = {"body": (BODY.value, covered(grown(BODY, -margin)) & ~others)}
    for name, shape in INSIDE.items():
        found[name] = (BODY.value + shape.value, covered(grown(shape, -margin)))
    return found


def reconstruct(size: int, views: int, window: str = "hann") -> tuple[Geometry, torch.Tensor]:
    """The scan, on [size / 2, size, size] voxels, and the image (slices, rows, columns) by FDK."""
    geometry = Geometry(
        beam="cone",
        image_size=[size // 2 + size // 8, size, size],
        pixel_size=2 / size,
        angles=views,
        source_distance=6.0,
        detector_distance=3.0,
    )
    operator: Any = invsolve.operator("ct", geometry=geometry)
    y = exact_measurement([BODY, *INSIDE.values()], geometry).float()
    return geometry, operator.fbp(y[None], window)[0, 0]


def draw(geometry: Geometry, image: torch.Tensor, path: Path) -> None:
    truth, found = sampled([BODY, *INSIDE.values()], geometry, 2)[0].numpy(), image.numpy()
    slices, rows, columns = geometry.image_size
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    cuts = {
        "middle slice": (slices // 2, slice(None), slice(None)),
        "along the axis": (slice(None), rows // 2, slice(None)),
    }
    for row, (title, cut) in zip(axes, cuts.items(), strict=True):
        shown = (
            ("closed form", truth[cut], 0.0, 1.9),
            ("FDK", found[cut], 0.0, 1.9),
            ("difference", found[cut] - truth[cut], -0.2, 0.2),
        )
        for ax, (name, picture, low, high) in zip(row, shown, strict=True):
            drawn = ax.imshow(picture, cmap="RdBu" if low < 0 else "gray", vmin=low, vmax=high)
            ax.set_title(f"{name}, {title}")
            ax.set_axis_off()
            figure.colorbar(drawn, ax=ax, shrink=0.7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    x = (np.arange(columns) - (columns - 1) / 2) * geometry.pixel_size
    ax.plot(x, truth[slices // 2, 2 * rows // 5], "k", lw=1, label="closed form")
    ax.plot(x, found[slices // 2, 2 * rows // 5], "C1", lw=1.2, label="FDK")
    ax.set_xlabel("x, at y = 0.2 in the middle slice")
    ax.set_ylabel("attenuation")
    ax.legend(loc="upper left")
    figure.savefig(path.with_name(f"{path.stem}_profile{path.suffix}"), dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--views", type=int, default=240)
    parser.add_argument("-o", "--output", type=Path, required=True, help="Picture; the profile is written beside it.")
    arguments = parser.parse_args()
    geometry, image = reconstruct(arguments.size, arguments.views)
    print(geometry)
    for name, (value, inside) in regions(geometry, 2 * geometry.pixel_size).items():
        there = image[inside]
        print(
            f"{name:8s} {value:5.2f}   mean {float(there.mean()):.4f}, sd {float(there.std()):.4f} of {len(there)} voxels"
        )
    draw(geometry, image, arguments.output)


if __name__ == "__main__":
    main()
