"""What the operators cost beside the libraries that are installed and the transforms they rest on; one run, medians.

    OMP_NUM_THREADS=1 python benchmarks/operators.py [--only ct busy blur mri radial cone] [--rounds 5] > benchmarks/operators.md

    pip install --no-deps astra-toolbox nvidia-cuda-runtime-cu12 nvidia-cufft-cu12   # GPL; never imported by invsolve
    pip install --no-deps deepinv torchvision diffct numba llvmlite

Milliseconds of processor time, methods taken in turns; other work on the machine then counts only through the caches and the
bandwidth that it takes; the load is printed. A method that takes seconds gets fewer turns. Tomography: 180 angles of a parallel
beam. Busy: two threads and wall time, alone and with one process on every core beside them, which this script starts and ends.
Cone: a volume of N^3 voxels, 120 views, on N^2 detector pixels. MRI: 320 x 320 pixels, 16 coils, a quarter of k-space. Errors are
elsewhere: ct_accuracy.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import invsolve
from invsolve import Geometry

ANGLES = 180
#: Of the slice of MRI.
SLICE, COILS = 320, 16
#: Seconds after which a method gets no further turn.
ENOUGH = 4.0
#: Views that diffct projects on the CPU, where it takes minutes for all.
FEW_VIEWS = 10
#: Declarations that last as long as they are referred to.
KEPT: list[Any] = []
#: A figure, what it is and what it should be.
AIMS: list[list[str]] = []


def aim(figure: str, value: float, wanted: float, at_least: bool = True) -> None:
    reached = value >= wanted if at_least else value <= wanted
    AIMS.append([figure, f"{value:.2f}", f"{'>=' if at_least else '<='} {wanted:g}", "yes" if reached else "no"])


@dataclass
class Method:
    """One way to project: forward and adjoint of float32 batches, and the megabytes that it keeps."""

    name: str
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    stored: float = 0.0


QUARTER = "folded, off-centre: views 90 degrees apart alone fold"
GOLDEN = "folded, off-centre, golden angle: nothing folds"


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
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # Built for another torch, it fails where its operators are not known by name; DeepInverse calls none of those.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
            for full in (name, f"_{name}_backward"):
                library.define(f"{full}(Tensor x) -> Tensor")
        KEPT.append(library)
    from deepinv.physics import Tomography

    # Their angles are ours, on an image whose corners are covered by their own padding.
    physics = Tomography(
        angles=torch.tensor(geometry.angles), img_width=geometry.columns, circle=False, normalize=False
    )
    kept = sum(b.numel() * b.element_size() for b in physics.buffers())

    # Sixteen images of 512 x 512 at once take more than ten gigabytes.
    most = max(1, 16 * 256**2 // geometry.pixels)

    def forward(x: Tensor) -> Tensor:
        return torch.cat([physics.A(part) for part in x.split(most)])

    def adjoint(y: Tensor) -> Tensor:
        return torch.cat([physics.A_adjoint(part) for part in y.split(most)])

    return Method("DeepInverse", forward, adjoint, kept / 2**20)


def diffct_cone(geometry: Geometry) -> Method:
    import diffct

    views = geometry.views()
    parts = (views.source, views.middle, views.u, views.v)
    trajectory = [torch.from_numpy(v[:: len(v) // FEW_VIEWS]).float() for v in parts]
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

    return Method(f"diffct (its CPU back end), {FEW_VIEWS} views", forward, adjoint)


def milliseconds(
    methods: list[Method], images: Tensor, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, tuple[float, float]]:
    """Median forward and adjoint times, the methods taken in turns, of which the first warms up what is quick."""
    times: dict[str, list[tuple[float, float]]] = {m.name: [] for m in methods}
    for turn in range(rounds + 1):
        for method in methods:
            kept = times[method.name]
            if sum(map(sum, kept)) > 1e3 * ENOUGH:
                continue
            began = clock()
            y = method.forward(images)
            middle = clock()
            method.adjoint(y)
            ended = clock()
            if turn or ended - began > ENOUGH / 3:
                kept.append((1e3 * (middle - began), 1e3 * (ended - middle)))
    return {n: (statistics.median(p[0] for p in t), statistics.median(p[1] for p in t)) for n, t in times.items()}


def bandwidth() -> float:
    """GB/s that one thread reads from memory, of 256 MB."""
    values = torch.rand(2**26)
    times = []
    for _ in range(5):
        began = time.process_time()
        values.sum()
        times.append(time.process_time() - began)
    return 4 * len(values) / statistics.median(times) / 1e9


def table(heads: list[str], rows: list[list[str]]) -> None:
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def parallel_methods(size: int, peers: bool = True) -> list[Method]:
    geometry = Geometry(image_size=size, angles=ANGLES)
    quarter = Geometry(image_size=size, angles=[0.37 + 180 * k / ANGLES for k in range(ANGLES)], centre=size * 0.7)
    golden = Geometry(image_size=size, angles=[(111.246118 * k) % 180 for k in range(ANGLES)], centre=size * 0.7)
    methods = [ours("folded", geometry)]
    # Beyond, matrices that do not fold take gigabytes.
    if size <= 256:
        methods += [ours(QUARTER, quarter), ours(GOLDEN, golden)]
    methods += [ours("fourier", geometry, "fourier")]
    if peers and size <= 256:
        methods += [ours("joseph, no matrix", geometry, "joseph")]
    methods += list(astra_methods(geometry))[: 2 if peers and size <= 256 else 1] if here("astra") else []
    return methods + ([deepinverse(geometry)] if here("deepinv") else [])


def ratios(what: str, measured: dict[str, tuple[float, float]], wanted: dict[tuple[str, str], float]) -> None:
    for (method, peer), least in wanted.items():
        if method in measured and peer in measured:
            aim(f"{what}: {peer} over {method}", sum(measured[peer]) / sum(measured[method]), least)


def speed(sizes: list[int], batches: list[int], rounds: int) -> None:
    read = bandwidth()
    print(f"## Parallel beam, {ANGLES} angles: forward / adjoint in ms\n")
    print(f"Stored: MB, and the ms in which one thread reads them once at the {read:.0f} GB/s that it reads at here.\n")
    for size in sizes:
        methods = parallel_methods(size)
        rows = {m.name: [m.name, f"{m.stored:.0f}", f"{m.stored * 1.049 / read:.1f}"] for m in methods}
        for batch in batches:
            images = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
            measured = milliseconds(methods, images, rounds)
            for name, pair in measured.items():
                rows[name] += [f"{pair[0]:.1f} / {pair[1]:.1f}", f"{sum(pair) / sum(measured['folded']):.1f}"]
            many = batch > 1
            wanted = {
                ("folded", "DeepInverse"): 60.0 if many else 30.0,
                ("folded", "ASTRA linear"): 30.0 if many else 12.0,
            }
            if not many:
                wanted |= {(GOLDEN, "DeepInverse"): 10.0, (GOLDEN, "ASTRA linear"): 4.0}
            ratios(f"{size} x {size}, {batch} image{'s' * many}", measured, wanted)
        kept = {m.name: m.stored for m in methods}
        if "DeepInverse" in kept:
            aim(f"{size} x {size}: stored, DeepInverse over folded", kept["DeepInverse"] / kept["folded"], 5.0)
        heads = [f"{size} x {size}", "stored MB", "ms"]
        for batch in batches:
            heads += [f"{batch} image{'s' * (batch > 1)}", "over folded"]
        table(heads, list(rows.values()))


def busy(size: int, batches: list[int], rounds: int) -> None:
    """Wall time with two threads, alone and beside a process on every core that does nothing but count."""
    print(f"## A busy machine: {size} x {size}, {ANGLES} angles, two threads, wall time forward / adjoint in ms\n")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    methods = parallel_methods(size, peers=False)
    rows = {m.name: [m.name] for m in methods}
    heads = ["two threads"]
    found: dict[tuple[int, int], dict[str, tuple[float, float]]] = {}
    for others in (0, os.cpu_count() or 1):
        # They end with this process, however it ends.
        count = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
        spinning = [subprocess.Popen([sys.executable, "-c", count]) for _ in range(others)]
        try:
            for batch in batches:
                images = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
                found[others, batch] = milliseconds(methods, images, rounds, time.perf_counter)
                heads += [f"{batch} image{'s' * (batch > 1)}, {others} other processes", "over folded"]
                for name, pair in found[others, batch].items():
                    ratio = sum(pair) / sum(found[others, batch]["folded"])
                    rows[name] += [f"{pair[0]:.1f} / {pair[1]:.1f}", f"{ratio:.1f}"]
        finally:
            for process in spinning:
                process.kill()
                process.wait()
    torch.set_num_threads(before)
    table(heads, list(rows.values()))
    for batch in batches:
        alone, beside = found[0, batch], found[os.cpu_count() or 1, batch]
        for peer in ("DeepInverse", "ASTRA linear"):
            if peer in alone:
                kept = [sum(times[peer]) / sum(times["folded"]) for times in (beside, alone)]
                aim(
                    f"{size} x {size}, {batch} images, two threads: {peer} over folded, busy over alone",
                    kept[0] / kept[1],
                    0.5,
                )


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
    aim("blur over its transforms", sum(measured["blur"]) / whole, 1.1, at_least=False)


def cone(sizes: list[int]) -> None:
    print("## Cone beam, 120 views: forward / adjoint in ms, one volume\n")
    rows = []
    for size in sizes:
        shape: dict[str, Any] = {"beam": "cone", "angles": 120, "detectors": size, "detector_rows": size}
        geometry = Geometry(image_size=[size] * 3, source_distance=3.0 * size, **shape)
        methods = [ours("joseph-3d", geometry)]
        if here("diffct"):
            # Its kernels are compiled when they are first used.
            small = diffct_cone(Geometry(image_size=[4] * 3, source_distance=12.0, **shape | {"detectors": 4}))
            small.adjoint(small.forward(torch.rand(1, 1, 4, 4, 4)))
            methods.append(diffct_cone(geometry))
        volume = torch.rand(1, 1, size, size, size, generator=torch.Generator().manual_seed(0))
        measured = milliseconds(methods, volume, 1)
        for method in methods:
            pair = measured[method.name]
            rows.append([f"{size}^3", method.name, f"{pair[0]:.0f} / {pair[1]:.0f}", f"{method.stored:.2f}"])
        if len(methods) > 1:
            theirs = sum(measured[methods[1].name]) * 120 / FEW_VIEWS
            aim(
                f"cone, {size}^3: diffct, all views at the time of {FEW_VIEWS}, over joseph-3d",
                theirs / sum(measured["joseph-3d"]),
                1.0,
            )
        view = 4 * size**2 / 2**20
        aim(f"cone, {size}^3: stored over the rays of one view", methods[0].stored / view, 1.0, at_least=False)
    table(["volume", "method", "forward / adjoint", "stored MB"], rows)


def shifted(x: Tensor) -> Tensor:
    """The centred transform as it is mostly written."""
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, axes), norm="ortho"), axes)


def mri(rounds: int) -> None:
    print(f"## Cartesian MRI, {SLICE}^2 pixels, {COILS} coils: ms, one image\n")
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
    aim("MRI forward over its transforms", median["forward"] / median["fft2 alone"], 1.35, at_least=False)
    aim(
        "MRI A'A, lines, over transforms there and back",
        median["A'A, lines"] / median["fft2 and back alone"],
        1.5,
        at_least=False,
    )


def radial(rounds: int) -> None:
    """Beside finufft, in a process of its own, whose other figures are its own page's."""
    script = Path(__file__).with_name("mri_noncartesian.py")
    done = subprocess.run(
        [sys.executable, str(script), "--rounds", str(rounds)], check=True, capture_output=True, text=True
    )
    print(f"## Radial MRI, 256 spokes: ms\n\n{done.stdout}")
    cells = [
        [part.strip() for part in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("|")
    ]
    forward = {row[0]: float(row[1]) for row in cells if len(row) == 5 and row[1].replace(".", "").isdigit()}
    others = [value for name, value in forward.items() if "finufft" in name]
    if others:
        aim("radial MRI: forward of finufft at its best over ours", min(others) / forward["invsolve"], 1.0)
    transforms = next(float(row[2]) for row in cells if row[0] == "two FFTs of twice the size, coil by coil")
    aim("radial MRI: A'A over two FFTs of twice the size", transforms, 1.5, at_least=False)


def machine() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"


def main() -> None:
    parts = ["ct", "busy", "blur", "mri", "radial", "cone"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--volumes", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    arguments = parser.parse_args()
    began = time.perf_counter()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    print("# Speed of the operators\n")
    print(f"`{threads}python benchmarks/operators.py {' '.join(sys.argv[1:])}".rstrip() + "`: ", end="")
    print(f"{machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, load {load}.\n")
    run = {
        "ct": lambda: speed(arguments.sizes, arguments.batches, arguments.rounds),
        "busy": lambda: busy(arguments.sizes[0], arguments.batches, arguments.rounds),
        "blur": lambda: blur(arguments.rounds),
        "mri": lambda: mri(3 * arguments.rounds),
        "radial": lambda: radial(arguments.rounds),
        "cone": lambda: cone(arguments.volumes),
    }
    for part in arguments.only:
        run[part]()
        sys.stdout.flush()
    print("## Figures and aims\n")
    table(["figure", "found", "aim", "reached"], AIMS)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"It took {time.perf_counter() - began:.0f} s; load at the end {load}.")


if __name__ == "__main__":
    main()
