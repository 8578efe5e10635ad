"""A volume from few views, slice by slice and coupled across slices: PSNR and SSIM in three directions, and network calls.

    python benchmarks/volumes.py VOLUME.h5 [--prior mr-128] [--views 8 16] [--slices 60] [--size 160] [--device cuda]
                                 [--methods pinv tv-3d dps dds mbir dds-3d] [--json FILE]

Each axial slice of a real MR volume (dataset `volume`, z:y:x) is measured by a parallel beam; noise 0.5 % of the largest line
integral. Target: dds-3d with at most 50 network calls a slice is within 0.5 dB of mbir with 1000, or above. PSNR and SSIM are
of range 1, the mean of the slices of a direction that are not empty.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

import invsolve
from invsolve import registry
from invsolve.api import metrics

DIRECTIONS = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
PRIORLESS = ("linear", "tv", "tv-3d")


#: Network calls of the methods that take few, and of those that take many.
FEW, MANY = ("dds", "dds-3d"), ("dps-fitted", "mbir")


def read_volume(path: Path, slices: int, size: int, zoom: float) -> Tensor:
    """The middle of a volume as (slices, 1, size, size) in [0, 1], padded with air where it is smaller.

    Args:
        zoom: resample by this factor along all axes first, to the scale that the prior was trained at.
    """
    with h5py.File(path, "r") as file:
        volume = file["volume"][:].astype(np.float32)
    if zoom != 1:
        volume = np.clip(ndimage.zoom(volume, zoom, order=1), 0, None)
    shape = (slices, size, size)
    for axis, wanted in enumerate(shape):
        have = volume.shape[axis]
        if have < wanted and axis:
            pad = [(0, 0)] * 3
            pad[axis] = ((wanted - have) // 2, wanted - have - (wanted - have) // 2)
            volume = np.pad(volume, pad)
        start = max(volume.shape[axis] - wanted, 0) // 2
        volume = volume.take(range(start, start + min(wanted, volume.shape[axis])), axis)
    return torch.from_numpy(volume / np.quantile(volume, 0.999)).clamp(0, 1)[:, None]


def scores(images: Tensor, truth: Tensor) -> dict[str, dict[str, float]]:
    """Mean PSNR and SSIM of the slices that are not empty, in each direction."""
    a, b = images[:, 0].clamp(0, 1), truth[:, 0]
    figures = {}
    for name, order in DIRECTIONS.items():
        pairs = [(p, q) for p, q in zip(a.permute(order), b.permute(order), strict=True) if float(q.max()) > 0.1]
        rows = [metrics.score(p[None], q[None], 1.0) for p, q in pairs]
        figures[name] = {key: metrics.average(rows)[key] for key in ("psnr", "ssim")}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path)
    parser.add_argument("--prior", default="mr-128")
    parser.add_argument("--views", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--zoom", type=float, default=1.0, help="resample the volume by this factor first")
    parser.add_argument("--methods", nargs="+", default=["linear", "tv-3d", "dps-fitted", "dds", "mbir", "dds-3d"])
    parser.add_argument("--few", type=int, default=50, help="network calls a slice for dds and dds-3d")
    parser.add_argument("--many", type=int, default=1000, help="network calls a slice for mbir and dps")
    parser.add_argument("--set", nargs="*", default=[], metavar="METHOD.KEY=VALUE", help="parameters of a method")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--planes", type=int, default=1, choices=[1, 3], help="of the coupled methods that have a prior"
    )
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    truth = read_volume(arguments.volume, arguments.slices, arguments.size, arguments.zoom)
    given: dict[str, dict[str, object]] = {}
    for text in arguments.set:
        method, _, rest = text.partition(".")
        key, _, value = rest.partition("=")
        given.setdefault(method, {})[key] = json.loads(value)
    rows = []
    for views in arguments.views:
        operator = invsolve.operator("ct", image_size=arguments.size, angles=views)
        clean = operator(truth)
        noise = invsolve.Gaussian(0.005 * float(clean.max()))
        y = invsolve.simulate(truth, operator, noise, seed=arguments.seed)
        for method in arguments.methods:
            cls: Any = registry.find("strategy", method)
            strategy = invsolve.strategy(method, **given.get(method, {}))
            if method in (*FEW, *MANY):
                # Evaluations: dps goes backward through the network as often as forward.
                calls = arguments.few if method in FEW else arguments.many
                strategy = strategy.at_cost(calls * (2 if "prior-gradient" in cls.needs else 1))
            began = time.perf_counter()
            reconstruction = invsolve.reconstruct(
                y,
                operator,
                None if method in PRIORLESS else arguments.prior,
                noise=noise,
                strategy=strategy,
                scale=(0.0, 1.0),
                seed=arguments.seed,
                batch_size=arguments.batch_size,
                device=arguments.device,
                planes=arguments.planes if cls.couples_items and method not in PRIORLESS else 1,
                precision=arguments.precision if method not in PRIORLESS else "float32",
            )
            seconds = time.perf_counter() - began
            figures = scores(reconstruction.mean, truth)
            calls = reconstruction.diagnostics["network_calls"][0]
            row = {"views": views, "method": method, "across": cls.couples_items, "calls": calls, "seconds": seconds}
            rows.append({**row, **figures})
            print(
                f"{views:3d} views  {method:8s} {calls:6.0f} calls {seconds:7.1f} s  "
                + "  ".join(f"{d} {figures[d]['psnr']:.2f} dB {figures[d]['ssim']:.3f}" for d in DIRECTIONS),
                flush=True,
            )
            if arguments.json:
                settings = {
                    key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()
                }
                arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
