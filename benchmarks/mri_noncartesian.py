"""What radial MRI costs and how exact it is, beside finufft and mri-nufft where they are installed; one run, medians.

    OMP_NUM_THREADS=1 python benchmarks/mri_noncartesian.py [--size 320] [--spokes 256] [--coils 16] [--rounds 9]

    pip install --no-deps finufft mri-nufft   # never imported by invsolve

Milliseconds of processor time, methods taken in turns. Other work on the machine then counts only through the caches that it
takes; the load is printed. Spokes have twice as many samples as the image has pixels. Accuracy: relative error against the
exact sum at 200 of the samples, in double precision. A'A is held against the two FFTs of twice the size for each coil that it
cannot do without, coil by coil and all at once.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import invsolve

Action = Callable[[], Any]


def here(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def medians(actions: dict[str, Action], rounds: int) -> dict[str, float]:
    """Median times in ms, the actions taken in turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            began = time.process_time()
            action()
            if turn:
                times[name].append(1e3 * (time.process_time() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def exact(k: Tensor, images: Tensor) -> Tensor:
    """The sum at points k (points, 2) in cycles per pixel, of complex images (coils, N, N), without a factor."""
    axes = [torch.arange(n, dtype=torch.float64) - n // 2 for n in images.shape[1:]]
    rows, columns = (torch.exp(-2j * math.pi * k[:, d, None] * axis) for d, axis in enumerate(axes))
    return torch.einsum("pr,crk,pk->cp", rows, images.to(torch.complex128), columns)


def _chosen(forward: Callable[[np.ndarray], np.ndarray], images: Tensor, chosen: Tensor) -> Tensor:
    return torch.from_numpy(forward(images.numpy()))[:, chosen]


def finufft_plans(
    k: np.ndarray, size: int, coils: int, tolerance: float, threads: int
) -> Iterator[tuple[str, Any, Any]]:
    finufft: Any = importlib.import_module("finufft")
    points = [np.ascontiguousarray(2 * np.pi * axis, np.float32) for axis in k.T]
    for oversampling in (2.0, 1.25):
        options = {"n_trans": coils, "eps": tolerance, "dtype": "complex64", "nthreads": threads}
        options |= {"upsampfac": oversampling}
        forward = finufft.Plan(2, (size, size), isign=-1, **options)
        adjoint = finufft.Plan(1, (size, size), isign=1, **options)
        for plan in (forward, adjoint):
            plan.setpts(*points)
        yield f"finufft, oversampling {oversampling:g}", forward.execute, adjoint.execute


def _mrinufft() -> Any:
    """The library, or None where it is not installed, or not usable because something that it looks for is broken."""
    if not here("finufft", "mrinufft"):
        return None
    try:
        return importlib.import_module("mrinufft")
    except RuntimeError as error:
        print(f"without mri-nufft: {error}\n")
        return None


def transforms(operator: Any, tolerance: float, rounds: int) -> None:
    """Forward and adjoint of all coils, without coil maps: what gridding libraries compute."""
    size, coils = operator.size[0], operator.coils
    k = (operator.trajectory.flatten(0, -2) / torch.tensor(operator.size)).contiguous()
    images = torch.randn(coils, size, size, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    ours = operator._transform(images)
    y = ours.forward(images)
    chosen = torch.randperm(len(k), generator=torch.Generator().manual_seed(0))[:200]
    wanted = exact(k[chosen], images)
    actions: dict[str, tuple[Action, Action, Action]] = {
        "invsolve": (lambda: ours.forward(images), lambda: ours.adjoint(y), lambda: ours.forward(images)[:, chosen])
    }
    if here("finufft"):
        for name, forward, adjoint in finufft_plans(k.numpy(), size, coils, tolerance, torch.get_num_threads()):
            actions[name] = (
                partial(forward, images.numpy()),
                partial(adjoint, y.numpy()),
                partial(_chosen, forward, images, chosen),
            )
    mrinufft = _mrinufft()
    if mrinufft is not None:
        points = (2 * math.pi * k).numpy().astype(np.float32)
        theirs = mrinufft.get_operator("finufft")(points, shape=(size, size), n_coils=coils, n_trans=coils)
        share = float(theirs.norm_factor)
        actions["mri-nufft"] = (
            lambda: theirs.op(images.numpy()),
            lambda: theirs.adj_op(y.numpy()),
            lambda: torch.from_numpy(share * np.asarray(theirs.op(images.numpy())))[:, chosen],
        )
    forward_times = medians({name: action[0] for name, action in actions.items()}, rounds)
    adjoint_times = medians({name: action[1] for name, action in actions.items()}, rounds)
    print("| method | forward | adjoint | over invsolve | error |\n|---|---|---|---|---|")
    for name, action in actions.items():
        ratio = (forward_times[name] + adjoint_times[name]) / (forward_times["invsolve"] + adjoint_times["invsolve"])
        error = float((action[2]() - wanted).norm() / wanted.norm())
        print(f"| {name} | {forward_times[name]:.1f} | {adjoint_times[name]:.1f} | {ratio:.2f} | {error:.1e} |")
    print()


def normal(operator: Any, rounds: int) -> None:
    size, coils = operator.size[0], operator.coils
    x = torch.randn(1, 1, size, size, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    wide = torch.randn(coils, 2 * size, 2 * size, dtype=torch.complex64)
    times = medians(
        {
            "A'A, with coil maps": lambda: operator.normal(x),
            "two FFTs of twice the size, coil by coil": lambda: [torch.fft.ifft2(torch.fft.fft2(c)) for c in wide],
            "two FFTs of twice the size, all coils at once": lambda: torch.fft.ifft2(torch.fft.fft2(wide)),
            "adjoint after forward": lambda: operator.adjoint(operator(x)),
        },
        rounds,
    )
    print("| | ms | A'A over it |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value:.1f} | {times[next(iter(times))] / value:.2f} |")
    twice = operator.adjoint(operator(x))
    print(f"\nA'A against adjoint after forward: {float((operator.normal(x) - twice).norm() / twice.norm()):.1e}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--spokes", type=int, default=256)
    parser.add_argument("--coils", type=int, default=16)
    parser.add_argument("--tolerance", type=float, default=2e-6)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, load {load}")
    shape = (arguments.coils, arguments.size, arguments.size)
    maps = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    began = time.process_time()
    operator: Any = invsolve.operator(
        "mri-noncartesian", coil_maps=maps, spokes=arguments.spokes, tolerance=arguments.tolerance
    )
    x = torch.zeros(1, 1, *shape[1:], dtype=torch.complex64)
    operator(x)
    middle = time.process_time()
    operator.normal(x)
    ended = time.process_time()
    print(
        f"{arguments.size} x {arguments.size}, {arguments.coils} coils, {arguments.spokes} spokes; "
        f"tolerance {arguments.tolerance:g}; made ready in {middle - began:.1f} s, for A'A in {ended - middle:.1f} s\n"
    )
    transforms(operator, arguments.tolerance, arguments.rounds)
    normal(operator, arguments.rounds)


if __name__ == "__main__":
    main()
