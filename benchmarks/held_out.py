"""Every strategy on held-out images with the bundled priors: error of the mean, spread over it, coverage, at equal cost.

    python scripts/prior_data.py ../shared/data DATA
    python benchmarks/held_out.py DATA [--problem ct] [--strategy dps:zeta=4] [--evaluations 100] [--items 6] [--samples 2]

With S samples, MSE(mean of S) = b + v / S: b is the error of the posterior mean, v the spread of the samples. A calibrated
sampler whose prior is right has v = b. Each row is printed as soon as it is there, and kept in --log as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

import invsolve
from invsolve import registry
from invsolve.api import metrics
from invsolve.errors import UserError

COLUMNS = ("strategy", "one", "mean", "ssim", "b", "v/b", "in 50 %", "in 90 %", "residual", "evaluations", "seconds")


@dataclass(frozen=True)
class HeldOut:
    """Images in [0, 1] that the prior has not seen, and how they are measured."""

    prior: str
    images: Tensor
    operator: invsolve.Operator
    noise: float


def _validation(path: Path, count: int, keep: Callable[[np.ndarray], bool] = lambda x: True) -> np.ndarray:
    """`count` held-out images spread evenly over the file."""
    with h5py.File(path) as file:
        rows = np.flatnonzero(file["split"].asstr()[:] == "val")
        images = file["x"][rows[0] : rows[-1] + 1][rows - rows[0]]
    images = np.stack([x for x in images if keep(x)])
    return images[np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)]


def ct(data: Path, count: int, views: int = 30) -> HeldOut:
    """Parallel-beam line integrals of `views` angles; attenuation in units of the prior's range, noise 0.3 of up to 63."""
    hu = torch.from_numpy(_validation(data / "ct-128.h5", count)).float()
    attenuation = ((hu + 1000) / 2200).clamp(0, 1)
    return HeldOut("ct-128", attenuation, invsolve.operator("ct", image_size=128, angles=views), 0.3)


def mri(data: Path, count: int) -> HeldOut:
    """A quarter of the k-space columns at random, the central 8 % always; real images, noise 0.02."""
    images = torch.from_numpy(_validation(data / "mr-128.h5", count, lambda x: (x > 0.1).mean() > 0.2)).float()
    return HeldOut("mr-128", images.clamp(0, 1), invsolve.operator("mri", image_size=128, acceleration=4), 0.02)


def motion(data: Path, count: int) -> HeldOut:
    """A camera's motion: a curved path of 13 pixels, circular boundary; photographs, noise 0.02."""
    images = torch.from_numpy(_validation(data / "natural.h5", count, lambda x: x.std() > 0.08)).float()
    t = np.linspace(0, 1, 400)
    rows, columns = 6 + 5 * np.sin(1.9 * t), 1 + 11 * t**1.3
    kernel, _, _ = np.histogram2d(rows, columns, bins=13, range=[[-0.5, 12.5], [-0.5, 12.5]])
    return HeldOut(
        "natural", images, invsolve.operator("blur", kernel=torch.from_numpy(kernel / kernel.sum()).float()), 0.02
    )


PROBLEMS: dict[str, Callable[[Path, int], HeldOut]] = {"ct": ct, "mri": mri, "motion": motion}


def run(
    problem: HeldOut, y: Tensor, name: str, settings: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """One row of the table."""
    strategy = invsolve.strategy(name, **settings)
    if arguments.evaluations and not settings:
        strategy = strategy.at_cost(arguments.evaluations)
    samples = arguments.samples if strategy.draws else 1
    # Strategies that do without a prior take the number of channels from it: a real image, also of complex data.
    prior = invsolve.load_prior(problem.prior)
    began = time.perf_counter()
    rec = invsolve.reconstruct(
        y, problem.operator, prior, noise=invsolve.Gaussian(problem.noise), strategy=strategy, samples=samples, seed=0,
        scale=(0.0, 1.0), batch_size=arguments.batch_size, precision=arguments.precision, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    truth, count = problem.images, len(problem.images)
    mse = (rec.mean - truth).square().mean().item()
    span = 1.0
    row: dict[str, Any] = {
        "strategy": name + "".join(f" {k}={v}" for k, v in settings.items()),
        "one": 10 * math.log10(span / (rec.samples[:, 0] - truth).square().mean().item()),
        "mean": 10 * math.log10(span / mse) if samples > 1 else None,
        "ssim": float(np.mean([metrics.ssim(rec.mean[i], truth[i], span) for i in range(count)])),
        "residual": float(np.nanmean(rec.diagnostics["residual"][..., -1])),
        "evaluations": float(np.mean(rec.diagnostics["network_calls"]) + np.mean(rec.diagnostics["vjp_calls"])),
        "seconds": seconds / count / samples,
    }
    if samples > 1:
        v = rec.std.square().mean().item()
        b = mse - v / samples
        row |= {"b": -10 * math.log10(b) if b > 0 else None, "v/b": v / b}
        inside = [metrics.coverage(rec.mean[i], rec.std[i], truth[i], samples) for i in range(count)]
        row |= {f"in {level} %": float(np.mean([c[f"coverage_{level}"] for c in inside])) for level in (50, 90)}
    return row


def shown(value: Any) -> str:
    return (
        "" if value is None else value if isinstance(value, str) else f"{value:.3g}" if value < 10 else f"{value:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--problem", choices=list(PROBLEMS), action="append")
    parser.add_argument("--strategy", action="append", help="NAME or NAME:key=value,key=value; default all registered")
    parser.add_argument(
        "--evaluations", type=int, default=100, help="a sample, for strategies without settings of their own"
    )
    parser.add_argument("--items", type=int, default=6)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    for name in arguments.problem or PROBLEMS:
        problem = PROBLEMS[name](arguments.data, arguments.items)
        y = invsolve.simulate(problem.images, problem.operator, invsolve.Gaussian(problem.noise), seed=0)
        print(f"\n{name}: {len(y)} held-out images, prior {problem.prior}\n\n| {' | '.join(COLUMNS)} |")
        print("|" + "---|" * len(COLUMNS), flush=True)
        for text in arguments.strategy or registry.available("strategy"):
            strategy, _, given = text.partition(":")
            settings = {k: json.loads(v) for k, v in (part.split("=") for part in given.split(",") if part)}
            try:
                row = run(problem, y, strategy, settings, arguments)
            except (UserError, ArithmeticError) as error:
                print(f"| {text} | {str(error)[:100]} |", flush=True)
                continue
            print("| " + " | ".join(shown(row.get(c)) for c in COLUMNS) + " |", flush=True)
            if arguments.log:
                with arguments.log.open("a") as log:
                    log.write(json.dumps({"problem": name, **row}) + "\n")


if __name__ == "__main__":
    main()
