"""What the operators of tomography and MRI cost and how exact they are, beside the libraries installed; one run, medians.

    OMP_NUM_THREADS=1 python benchmarks/operators.py [--sizes 256 512] [--batches 1 16] [--rounds 9] [--skip cone]

    pip install --no-deps astra-toolbox nvidia-cuda-runtime-cu12 nvidia-cufft-cu12   # GPL; never imported by invsolve
    pip install --no-deps deepinv diffct numba llvmlite

Speed: forward and adjoint in milliseconds of processor time, 180 angles of a parallel beam, methods taken in turns. Other work
on the machine then counts only through the caches that it takes; the load is printed. Accuracy: relative error against
closed-form line integrals, of ellipses (the Shepp-Logan head, pixels the mean of 16 points) and of Gaussian blobs (standard
deviation 0.1 of half the image). Cone: a volume of N^3 voxels, 120 views, on N^2 detector pixels. MRI: 320 x 320 pixels, 16
coils, a quarter of k-space.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import invsolve
from invsolve import Geometry
from invsolve.datasets.phantoms import Blob, Shape, exact_measurement, sampled, shepp_logan

ANGLES = 180
#: Of the slice of MRI.
SLICE, COILS = 320, 16
BLOBS: list[Shape] = [Blob(1.0, 0.1, 0.2, -0.1, 0.05), Blob(0.7, 0.12, -0.3, 0.25, -0.1), Blob(0.5, 0.1, -0.2, -0.4)]


@dataclass
class Method:
    """One way to project: forward and adjoint of float32 batches, and the megabytes that it keeps."""

    name: str
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    stored: float = 0.0


def here(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def ours(name: str, geometry: Geometry, projector: str = "auto") -> Method:
    operator: Any = invsolve.operator("ct", geometry=geometry, projector=projector)
    kept = sum(b.numel() * b.element_size() for b in operator.buffers())
    kept += sum(a.nbytes for a in vars(operator.projector).values() if isinstance(a, np.ndarray))
    kept += sum(a.nbytes for kind in getattr(operator.projector, "rays", ()) for a in kind)
    return Method(name, operator, operator.adjoint, kept / 2**20)


def astra_methods(geometry: Geometry) -> Iterator[Method]:
    import astra

    _, volume = geometry.to_astra()
    # Its CPU kernels know scans by angles.
    by_angles = (geometry.detector_spacing, geometry.detectors, np.deg2rad(geometry.angles))
    if geometry.beam == "parallel":
        projection = astra.create_proj_geom("parallel", *by_angles)
    else:
        distances = (geometry.source_distance, geometry.detector_distance)
        projection = astra.create_proj_geom("fanflat", *by_angles, *distances)
    shape = geometry.measurement_shape
    for kernel in ("linear", "strip") if geometry.beam == "parallel" else ("line_fanflat", "strip_fanflat"):
        matrix = astra.OpTomo(astra.create_projector(kernel, projection, volume))

        def forward(x: Tensor, matrix: Any = matrix) -> Tensor:
            return torch.from_numpy(np.stack([matrix.FP(i[0].numpy()).reshape(shape) for i in x]))

        def adjoint(y: Tensor, matrix: Any = matrix) -> Tensor:
            return torch.from_numpy(np.stack([matrix.BP(i.numpy()).reshape(geometry.image_size) for i in y]))[:, None]

        yield Method(f"ASTRA {kernel}", forward, adjoint)


def deepinverse(geometry: Geometry) -> Method:
    from deepinv.physics import Tomography

    # Their angles are ours, on an image whose corners are covered by their own padding.
    physics = Tomography(
        angles=torch.tensor(geometry.angles), img_width=geometry.columns, circle=False, normalize=False
    )
    kept = sum(b.numel() * b.element_size() for b in physics.buffers())

    def forward(x: Tensor) -> Tensor:
        return physics.A(x)

    def adjoint(y: Tensor) -> Tensor:
        return physics.A_adjoint(y)

    return Method("DeepInverse", forward, adjoint, kept / 2**20)


def diffct_cone(geometry: Geometry) -> Method:
    import diffct

    views = geometry.views()
    trajectory = [torch.from_numpy(v).float() for v in (views.source, views.middle, views.u, views.v)]
    projector = diffct.Projector(
        tuple(trajectory),
        geometry.image_size,
        geometry.measurement_shape[1:],
        beam="cone",
        detector_spacing=geometry.detector_spacing,
        voxel_spacing=geometry.pixel_size,
    )

    def forward(x: Tensor) -> Tensor:
        return projector.project(x[:, 0])

    def adjoint(y: Tensor) -> Tensor:
        return projector.backproject(y)

    return Method("diffct (its CPU back end)", forward, adjoint)


def milliseconds(methods: list[Method], images: Tensor, rounds: int) -> dict[str, tuple[float, float]]:
    """Median forward and adjoint times, the methods taken in turns."""
    times: dict[str, list[tuple[float, float]]] = {m.name: [] for m in methods}
    for turn in range(rounds + 1):
        for method in methods:
            began = time.process_time()
            y = method.forward(images)
            middle = time.process_time()
            method.adjoint(y)
            ended = time.process_time()
            if turn:
                times[method.name].append((1e3 * (middle - began), 1e3 * (ended - middle)))
    return {n: (statistics.median(p[0] for p in t), statistics.median(p[1] for p in t)) for n, t in times.items()}


def table(heads: list[str], rows: list[list[str]]) -> None:
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def speed(sizes: list[int], batches: list[int], rounds: int) -> None:
    print(f"## Speed, parallel beam, {ANGLES} angles: forward / adjoint in ms\n")
    for size in sizes:
        geometry = Geometry(image_size=size, angles=ANGLES)
        shifted = Geometry(image_size=size, angles=[0.37 + 180 * k / ANGLES for k in range(ANGLES)], centre=size * 0.7)
        methods = [
            ours("folded", geometry),
            ours("folded, off-centre scan that does not fold", shifted),
            ours("fourier", geometry, "fourier"),
            ours("joseph, no matrix", geometry, "joseph"),
        ]
        methods += list(astra_methods(geometry)) if here("astra") else []
        methods += [deepinverse(geometry)] if here("deepinv") else []
        rows = {m.name: [m.name, f"{m.stored:.0f}"] for m in methods}
        for batch in batches:
            images = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
            measured = milliseconds(methods, images, rounds)
            fastest = sum(measured["folded"])
            for name, pair in measured.items():
                rows[name] += [f"{pair[0]:.1f} / {pair[1]:.1f}", f"{sum(pair) / fastest:.1f}"]
        heads = [f"{size} x {size}", "stored MB"]
        for batch in batches:
            heads += [f"{batch} image{'s' * (batch > 1)}", "over folded"]
        table(heads, list(rows.values()))


def error(method: Method, geometry: Geometry, shapes: list[Shape], supersample: int) -> float:
    exact = exact_measurement(shapes, geometry)
    got = method.forward(sampled(shapes, geometry, supersample)[None].float())[0].double()
    return float((got - exact).norm() / exact.norm())


def accuracy(sizes: list[int]) -> None:
    print("## Relative error against closed forms: ellipses, Gaussian blobs\n")
    fan = {"beam": "fan", "source_distance": 4.0, "detector_distance": 1.0}
    scans: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "parallel": ({"angles": 60}, ("folded", "joseph", "fourier")),
        "fan, flat": (fan | {"angles": 60}, ("folded", "joseph")),
        "fan, curved": (fan | {"angles": 60, "curved": True}, ("folded",)),
        "cone": ({"beam": "cone", "source_distance": 4.0, "angles": 12}, ("joseph-3d",)),
    }
    rows: dict[str, list[str]] = {}
    for size in sizes:
        for scan, (given, projectors) in scans.items():
            deep = scan == "cone"
            geometry = Geometry(image_size=[size] * (3 if deep else 2), pixel_size=2 / size, **given)
            methods = [ours(f"{scan}, {p}", geometry, p) for p in projectors]
            if here("astra") and not deep and not geometry.curved:
                methods += [Method(f"{scan}, {m.name}", m.forward, m.adjoint) for m in astra_methods(geometry)]
            for method in methods:
                sharp = "" if deep else f"{error(method, geometry, list(shepp_logan()), 4):.1e}, "
                row = rows.setdefault(method.name, [method.name])
                row.append(f"{sharp}{error(method, geometry, BLOBS, 1):.1e}")
    table(["method", *(str(size) for size in sizes)], list(rows.values()))


def cone(sizes: list[int], rounds: int) -> None:
    print("## Speed, cone beam, 120 views: forward / adjoint in ms, one volume\n")
    rows = []
    for size in sizes:
        geometry = Geometry(
            beam="cone",
            image_size=[size] * 3,
            angles=120,
            detectors=size,
            detector_rows=size,
            source_distance=3.0 * size,
        )
        methods = [ours("joseph-3d", geometry)] + ([diffct_cone(geometry)] if here("diffct") else [])
        volume = torch.rand(1, 1, size, size, size, generator=torch.Generator().manual_seed(0))
        for name, pair in milliseconds(methods, volume, rounds).items():
            kept = next(m.stored for m in methods if m.name == name)
            rows.append([f"{size}^3", name, f"{pair[0]:.0f} / {pair[1]:.0f}", f"{kept:.2f}"])
    table(["volume", "method", "forward / adjoint", "stored MB"], rows)


def shifted(x: Tensor) -> Tensor:
    """The centred transform as it is mostly written."""
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, axes), norm="ortho"), axes)


def mri(rounds: int) -> None:
    print(f"## Speed, Cartesian MRI, {SLICE}^2 pixels, {COILS} coils: ms, one image\n")
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(COILS, SLICE, SLICE, dtype=torch.complex64, generator=generator)
    x = torch.randn(1, 1, SLICE, SLICE, dtype=torch.complex64, generator=generator)
    y = torch.randn(1, COILS, SLICE, SLICE, dtype=torch.complex64, generator=generator)
    lines: Any = invsolve.operator("mri", coil_maps=maps, acceleration=4)
    points: Any = invsolve.operator("mri", coil_maps=maps, mask="poisson-disc", acceleration=4)
    mask = lines.measured()
    methods: dict[str, Callable[[], Tensor]] = {
        "fft2 alone": lambda: torch.fft.fft2(y, norm="ortho"),
        "fft2 and back alone": lambda: torch.fft.ifft2(torch.fft.fft2(y)),
        "1-D and back alone": lambda: torch.fft.ifft(torch.fft.fft(y)),
        "forward with shifts": lambda: shifted(x * maps) * mask,
        "forward": lambda: lines(x),
        "adjoint": lambda: lines.adjoint(y),
        "A'A, lines": lambda: lines.normal(x),
        "A'A, points": lambda: points.normal(x),
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, method in methods.items():
                began = time.process_time()
                method()
                if turn:
                    times[name].append(1e3 * (time.process_time() - began))
    median = {name: statistics.median(t) for name, t in times.items()}
    over = dict.fromkeys(methods, "fft2 alone") | {n: "fft2 and back alone" for n in methods if n.startswith("A'A")}
    table(
        ["", "ms", "ratio", "over"], [[n, f"{t:.2f}", f"{t / median[over[n]]:.2f}", over[n]] for n, t in median.items()]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--volumes", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--skip", choices=["speed", "accuracy", "cone", "mri"], nargs="*", default=[])
    arguments = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, load {load}\n")
    if "speed" not in arguments.skip:
        speed(arguments.sizes, arguments.batches, arguments.rounds)
    if "accuracy" not in arguments.skip:
        accuracy(arguments.sizes)
    if "cone" not in arguments.skip:
        cone(arguments.volumes, max(1, arguments.rounds // 3))
    if "mri" not in arguments.skip:
        mri(3 * arguments.rounds)


if __name__ == "__main__":
    main()
