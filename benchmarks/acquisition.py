"""Policies of acquisition on unseen slices: quality at one budget, what a choice costs, and what hurrying costs in quality.

    python scripts/prior_data.py ../shared/data DATA
    python benchmarks/acquisition.py DATA --log log.jsonl [--problem mri|ct-15|ct-30] [--size 128] [--slices 12] [--policy NAME]
    python benchmarks/acquisition.py DATA --log log.jsonl --table

Every row, one slice and policy, is appended to the log as soon as it is there, and what is there is not computed again: stop and
start as you like, and give `--table` at any time. PSNR and SSIM of the mean against the truth, of complex images as complex
numbers; uncertainty is the rms standard deviation over the rms of the truth. Calls are network calls and backward passes of a
particle, of all choices together. Seconds are of processor time, which other work on the machine lengthens little; the load is
in each row. Paces: "cold" draws particles anew before each choice with the default strategy; "warm" lets them go on from sigma
0.5; "quick" is a scanner's, 8 particles that go on by 6 calls of `dds`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
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

PACES: dict[str, dict[str, Any]] = {
    "cold": {},
    "warm": {"warm": 0.5},
    "quick": {"warm": 0.5, "calls": 6, "scout": "dds"},
}
COLUMNS = (
    "problem",
    "size",
    "policy",
    "pace",
    "slices",
    "PSNR",
    "sd",
    "SSIM",
    "sd",
    "uncertainty",
    "calls",
    "s a choice",
    "slowest",
)


def unseen(path: Path, count: int) -> np.ndarray:
    """Held-out slices, spread evenly over the file."""
    with h5py.File(path) as file:
        rows = np.flatnonzero(file["split"].asstr()[:] == "val")
        chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
        return np.stack([file["x"][row] for row in chosen])


def smaller(images: Tensor, size: int) -> Tensor:
    """Means over blocks, so that images (..., N, N) have this side."""
    step = images.shape[-1] // size
    return images.unflatten(-1, (size, step)).unflatten(-3, (size, step)).mean((-3, -1))


def problem(name: str, data: Path, size: int, count: int) -> dict[str, Any]:
    """Truth (N, C, size, size), the instrument, its noise, and how much is acquired."""
    if name == "mri":
        images = smaller(torch.from_numpy(unseen(data / "mr-complex-128.h5", count)), size)
        operator = invsolve.operator("mri", image_size=size)
        middle = list(range(size // 2 - size // 32, size // 2 + size // 32))
        return {
            "x": images,
            "operator": operator,
            "sigma": 0.02,
            "budget": size // 4,
            "initial": middle,
            "prior": "mr-complex-128",
        }
    views = int(name.removeprefix("ct-"))
    hu = smaller(torch.from_numpy(unseen(data / "ct-128.h5", count)).float(), size)
    images = ((hu + 1000) / 2200).clamp(0, 1)
    operator = invsolve.operator("ct", image_size=size, angles=180)
    return {"x": images, "operator": operator, "sigma": 0.3, "budget": views, "initial": [0, 90], "prior": "ct-128"}


def measure(case: dict[str, Any], item: int, policy: str, pace: str, particles: int) -> dict[str, Any]:
    """One row: acquire, reconstruct, compare."""
    truth = case["x"][item : item + 1]
    noise = invsolve.Gaussian(case["sigma"])
    y = invsolve.simulate(truth, case["operator"], noise, seed=item)[0]
    # Complex images are symmetric about zero.
    scale = (-1.0, 1.0) if truth.is_complex() else (0.0, 1.0)
    session = invsolve.acquire(
        case["operator"], case["prior"], noise=noise, policy=policy, budget=case["budget"], initial=case["initial"],
        particles=8 if pace == "quick" else particles, scale=scale, seed=0, **PACES[pace],
    )  # fmt: skip
    times = []
    while True:
        began = time.process_time()
        groups = session.ask()
        if session.acquired:
            times.append(time.process_time() - began)
        if not groups:
            break
        session.tell(groups, y)
    began = time.process_time()
    rec = invsolve.reconstruct(
        session.measurement(), prior=case["prior"], samples=particles, scale=scale, seed=0, progress=False
    )
    # Complex images are compared as such where the truth, too, has their parts as channels.
    shown = torch.cat([truth[0].real, truth[0].imag]) if truth.is_complex() else truth[0]
    mean, reference = metrics.comparable(rec.mean[0], shown)
    figures = metrics.score(rec.mean[0], shown, 1.0)
    assert rec.std is not None
    return {
        "psnr": float(figures["psnr"]),
        "ssim": float(figures["ssim"]),
        "uncertainty": float(rec.std.abs().square().mean().sqrt() / reference.abs().square().mean().sqrt()),
        "calls": session.calls,
        "choose": statistics.mean(times[:-1]) if len(times) > 1 else 0.0,
        "slowest": max(times[:-1], default=0.0),
        "reconstruct": time.process_time() - began,
        "acquired": session.acquired,
        "load": os.getloadavg()[0],
        "error": float((mean - reference).abs().square().mean().sqrt()),
    }


def rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def table(log: Path) -> str:
    """Mean and standard deviation over the slices of each problem, policy and pace."""
    sets: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows(log):
        sets[(row["problem"], row["size"], row["policy"], row["pace"])].append(row)
    lines = [[*COLUMNS], ["---"] * len(COLUMNS)]
    for key, group in sorted(sets.items()):
        cells = [*map(str, key), str(len(group))]
        for name in ("psnr", "ssim"):
            values = [row[name] for row in group]
            cells += [f"{statistics.mean(values):.3f}", f"{statistics.stdev(values):.3f}" if len(values) > 1 else ""]
        cells += [f"{statistics.mean(row['uncertainty'] for row in group):.4f}"]
        cells += [f"{statistics.mean(row['calls'] for row in group):.0f}"]
        cells += [
            f"{statistics.mean(row['choose'] for row in group):.2f}",
            f"{max(row['slowest'] for row in group):.2f}",
        ]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--problem", choices=("mri", "ct-15", "ct-30"), default="mri")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--policy", action="append", help="default all registered that make sense")
    parser.add_argument("--pace", choices=tuple(PACES), default="cold")
    parser.add_argument("--table", action="store_true", help="print the table of what the log holds")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.log))
        return
    case = problem(arguments.problem, arguments.data, arguments.size, arguments.slices)
    known = {(r["problem"], r["size"], r["slice"], r["policy"], r["pace"]) for r in rows(arguments.log)}
    policies = arguments.policy or list(registry.available("policy"))
    for item in range(len(case["x"])):
        for policy in policies:
            key = (arguments.problem, arguments.size, item, policy, arguments.pace)
            if key in known:
                continue
            try:
                row = measure(case, item, policy, arguments.pace, arguments.particles)
            except UserError as error:
                print(f"{policy}: {error}")
                continue
            named = dict(zip(("problem", "size", "slice", "policy", "pace"), key, strict=True))
            with arguments.log.open("a") as file:
                file.write(json.dumps(named | row) + "\n")
            print(f"{key}: {row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}, {row['choose']:.2f} s a choice", flush=True)


if __name__ == "__main__":
    main()
