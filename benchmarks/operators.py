"""What tomography, MRI and blur cost beside the libraries that are installed; one run, medians. Errors: ct_accuracy.py.

    OMP_NUM_THREADS=1 python benchmarks/operators.py [--sizes 256 512] [--batches 1 16] [--rounds 9] [--skip cone]

    pip install --no-deps astra-toolbox nvidia-cuda-runtime-cu12 nvidia-cufft-cu12   # GPL; never imported by invsolve
    pip install --no-deps deepinv diffct numba llvmlite

Speed: forward and adjoint in milliseconds of processor time, 180 angles of a parallel beam, methods taken in turns. Other work
on the machine then counts only through the caches that it takes; the load is printed. Busy: two threads and wall time, alone
and with one process on every core beside them, which this script starts and ends. Cone: a volume of N^3 voxels, 120 views, on
N^2 detector pixels. MRI: 320 x 320 pixels, 16 coils, a quarter of k-space.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import invsolve
from invsolve import Geometry

ANGLES = 180
#: Of the slice of MRI.
SLICE, COILS = 320, 16


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


def milliseconds(
    methods: list[Method], images: Tensor, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, tuple[float, float]]:
    """Median forward and adjoint times, the methods taken in turns."""
    times: dict[str, list[tuple[float, float]]] = {m.name: [] for m in methods}
    for turn in range(rounds + 1):
        for method in methods:
            began = clock()
            y = method.forward(images)
            middle = clock()
            method.adjoint(y)
            ended = clock()
            if turn:
                times[method.name].append((1e3 * (middle - began), 1e3 * (ended - middle)))
    return {n: (statistics.median(p[0] for p in t), statistics.median(p[1] for p in t)) for n, t in times.items()}


def table(heads: list[str], rows: list[list[str]]) -> None:
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def parallel_methods(size: int) -> list[Method]:
    geometry = Geometry(image_size=size, angles=ANGLES)
    quarter = Geometry(image_size=size, angles=[0.37 + 180 * k / ANGLES for k in range(ANGLES)], centre=size * 0.7)
    golden = Geometry(image_size=size, angles=[(111.246118 * k) % 180 for k in range(ANGLES)], centre=size * 0.7)
    methods = [
        ours("folded", geometry),
        ours("folded, off-centre: views 90 degrees apart alone fold", quarter),
        ours("folded, off-centre, golden angle: nothing folds", golden),
        ours("fourier", geometry, "fourier"),
        ours("joseph, no matrix", geometry, "joseph"),
    ]
    methods += list(astra_methods(geometry)) if here("astra") else []
    return methods + ([deepinverse(geometry)] if here("deepinv") else [])


def speed(sizes: list[int], batches: list[int], rounds: int) -> None:
    print(f"## Speed, parallel beam, {ANGLES} angles: forward / adjoint in ms\n")
    for size in sizes:
        methods = parallel_methods(size)
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


def busy(size: int, batches: list[int], rounds: int) -> None:
    """Wall time with two threads, alone and beside a process on every core that does nothing but count."""
    print(f"## A busy machine: {size} x {size}, {ANGLES} angles, two threads, wall time forward / adjoint in ms\n")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    methods = parallel_methods(size)
    rows = {m.name: [m.name] for m in methods}
    heads = ["two threads"]
    for others in (0, os.cpu_count() or 1):
        # They end with this process, however it ends.
        count = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
        spinning = [subprocess.Popen([sys.executable, "-c", count]) for _ in range(others)]
        try:
            for batch in batches:
                images = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
                measured = milliseconds(methods, images, rounds, time.perf_counter)
                heads += [f"{batch} image{'s' * (batch > 1)}, {others} other processes", "over folded"]
                for name, pair in measured.items():
                    ratio = sum(pair) / sum(measured["folded"])
                    rows[name] += [f"{pair[0]:.1f} / {pair[1]:.1f}", f"{ratio:.1f}"]
        finally:
            for process in spinning:
                process.kill()
                process.wait()
    torch.set_num_threads(before)
    table(heads, list(rows.values()))


def blur(rounds: int) -> None:
    print("## Blur of 3 x 256 x 256, circular, beside its transforms alone: forward / adjoint in ms\n")
    kernel = torch.rand(9, 9, generator=torch.Generator().manual_seed(0))
    operator: Any = invsolve.operator("blur", kernel=kernel, boundary="circular")
    padded = torch.zeros(256, 256)
    padded[:9, :9] = kernel
    transfer = torch.fft.rfft2(padded.roll((-4, -4), (0, 1)))

    def raw(x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, x.shape[-2:])

    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(operator(images), raw(images), atol=1e-3, rtol=1e-4)
    methods = [Method("blur", operator, operator.adjoint), Method("two transforms and a product", raw, raw)]
    measured = milliseconds(methods, images, 10 * rounds)
    whole = sum(measured["two transforms and a product"])
    table(
        ["method", "forward / adjoint", "over transforms"],
        [[n, f"{p[0]:.2f} / {p[1]:.2f}", f"{sum(p) / whole:.2f}"] for n, p in measured.items()],
    )


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
    parser.add_argument("--skip", choices=["speed", "busy", "blur", "cone", "mri"], nargs="*", default=[])
    arguments = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, load {load}\n")
    if "speed" not in arguments.skip:
        speed(arguments.sizes, arguments.batches, arguments.rounds)
    if "busy" not in arguments.skip:
        busy(arguments.sizes[0], arguments.batches, arguments.rounds)
    if "blur" not in arguments.skip:
        blur(arguments.rounds)
    if "cone" not in arguments.skip:
        cone(arguments.volumes, max(1, arguments.rounds // 3))
    if "mri" not in arguments.skip:
        mri(3 * arguments.rounds)


if __name__ == "__main__":
    main()
