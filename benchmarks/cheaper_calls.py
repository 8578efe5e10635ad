"""What cheaper network calls cost in posterior error: variants of a prior side by side, on the same problems with the same draws.

    python scripts/prior_data.py ../shared/data DATA
    python benchmarks/cheaper_calls.py gaussian            a network trained on a Gaussian field, against the exact posterior
    python benchmarks/cheaper_calls.py held-out DATA [--problem ct] [--strategy moment] [--evaluations 56]
    python benchmarks/cheaper_calls.py schedules           five and eight levels found by search, against EDM's

Variants: `plain`, the prior as it is; `early=S`, its own Gaussian from noise level S on; `bits=B`, weights of B bits;
`reuse=K`, the levels below the finest computed at every K-th call only (DeepCache, Ma 2024). Calls are per sample; one, mean, b
and v/b as in `held_out.py`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import held_out  # type: ignore[import-not-found]  # beside this script
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import invsolve
from invsolve.api import metrics
from invsolve.bench.gaussian import PROBLEMS
from invsolve.numerics.random import ChainRandom
from invsolve.testing.distances import compare
from invsolve.testing.exact import exact_posterior
from invsolve.testing.field import Field
from invsolve.training.job import train_file
from invsolve.training.settings import Request, make_settings

VARIANTS = ("plain", "early=10", "early=5", "early=2", "bits=8", "bits=4", "reuse=2")


class Reuse(torch.nn.Module):
    """A fast network that computes what lies below its finest level at every k-th call, and takes it from the last one between.

    Nothing says which run a call belongs to, so that this stands for one batch at a time, as here, and not in the library.
    """

    def __init__(self, net: Any, every: int) -> None:
        super().__init__()
        self.net, self.every, self.calls, self.deep = net, every, 0, torch.zeros(0)

    def forward(self, x: Tensor, label: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        net = self.net
        angles = label.float()[:, None] * net.rates
        embedded = net.embed(torch.cat([angles.cos(), angles.sin()], 1))
        hidden = net.enter(F.pixel_unshuffle(x, 2))
        for block in net.down[0]:
            hidden = block(hidden, embedded)
        skip = hidden
        if self.calls % self.every == 0 or len(self.deep) != len(x):
            kept = [skip]
            hidden = net.shrink[0](hidden)
            for k in range(1, len(net.down)):
                for block in net.down[k]:
                    hidden = block(hidden, embedded)
                if k < len(net.shrink):
                    kept.append(hidden)
                    hidden = net.shrink[k](hidden)
            hidden = net.middle(hidden, embedded)
            for k in reversed(range(1, len(net.up))):
                hidden = F.interpolate(net.grow[k](hidden), scale_factor=2.0, mode="nearest") + kept[k]
                for block in net.up[k]:
                    hidden = block(hidden, embedded)
            deep, self.deep = hidden, hidden.detach()
        else:
            deep = self.deep
        self.calls += 1
        hidden = F.interpolate(net.grow[0](deep), scale_factor=2.0, mode="nearest") + skip
        for block in net.up[0]:
            hidden = block(hidden, embedded)
        estimate = F.pixel_shuffle(net.leave(F.silu(hidden)), 2)
        return (estimate if net.largest is None else estimate.clamp(-net.largest, net.largest),)


def variant(name: str | Path, text: str) -> Any:
    """A prior by name or file, changed as a variant says."""
    kind, _, value = text.partition("=")
    if kind == "early":
        return invsolve.load_prior(name, gaussian_above=float(value))
    prior: Any = invsolve.load_prior(name, gaussian_above=0)
    if kind == "bits":
        with tempfile.TemporaryDirectory() as folder:
            prior.save(Path(folder) / "small.safetensors", int(value))
            return invsolve.load_prior(Path(folder) / "small.safetensors", gaussian_above=0)
    if kind == "reuse":
        prior.network = Reuse(prior.network, int(value))
    return prior


def on_held_out(arguments: argparse.Namespace) -> None:
    print("| problem | strategy | variant | network calls | one | mean | b | v/b | in 90 % |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for problem_name in arguments.problem or held_out.PROBLEMS:
        problem = held_out.PROBLEMS[problem_name](arguments.data, arguments.items)
        noise = invsolve.Gaussian(problem.noise)
        y = invsolve.simulate(problem.images, problem.operator, noise, seed=0)
        for strategy_name in arguments.strategy or ["moment", "dds"]:
            strategy = invsolve.strategy(strategy_name).at_cost(arguments.evaluations)
            for text in arguments.variant or VARIANTS:
                rec = invsolve.reconstruct(
                    y, problem.operator, variant(problem.prior, text), noise=noise, strategy=strategy, seed=0,
                    samples=arguments.samples, scale=(0.0, 1.0), batch_size=8, precision=arguments.precision, progress=False,
                )  # fmt: skip
                print(f"| {problem_name} | {strategy_name} | {text} | {figures(rec, problem.images)} |", flush=True)


def figures(rec: invsolve.Reconstruction, truth: Tensor) -> str:
    """Calls, PSNR of one sample, of their mean and of the posterior mean, spread over error, coverage."""
    samples = rec.samples.shape[1]
    mse = (rec.mean - truth).square().mean().item()
    v = rec.std.square().mean().item()
    b = max(mse - v / samples, 1e-12)
    inside = [
        metrics.coverage(m, s, x, samples)["coverage_90"] for m, s, x in zip(rec.mean, rec.std, truth, strict=True)
    ]
    one, mean, best = (-10 * math.log10(e) for e in ((rec.samples[:, 0] - truth).square().mean().item(), mse, b))
    calls = float(np.mean(rec.diagnostics["network_calls"]))
    return f"{calls:.0f} | {one:.2f} | {mean:.2f} | {best:.2f} | {v / b:.2f} | {float(np.mean(inside)):.3f}"


def field_network(folder: Path, steps: int) -> Path:
    """A fast network trained on the field of the Gaussian tests, 16 x 16 and pixel standard deviation 0.15."""
    field, out = Field(), folder / "field.safetensors"
    x = field.sample(ChainRandom(0, [(k, 0) for k in range(8192)]), torch.zeros(1))
    with h5py.File(folder / "field.h5", "w") as file:
        file["x"] = x.numpy()
    settings = {
        "range": "-1:1", "network": "fast", "width": 16, "levels": 3, "batch_size": 64, "steps": steps, "lr": 2e-3,
        "ema": 0.998, "dropout": 0.0, "sigma_data": 0.15, "sigma_mean": -1.5, "sigma_std": 1.8, "validate_every": 10**6,
        "store": "float16", "resident": "yes",
    }  # fmt: skip
    train_file(Request(folder / "field.h5", out, make_settings(settings), device="cpu"))
    return out


def on_gaussian(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.network or field_network(Path(folder), arguments.steps)
        print("| strategy | variant | MB | ms per call | evaluations | mean error | sd ratio |")
        print("|---|---|---|---|---|---|---|", flush=True)
        exact = {name: exact_posterior(make(), samples=arguments.draws) for name, make in PROBLEMS.items()}
        for strategy_name in arguments.strategy or ["moment", "dds"]:
            strategy = invsolve.strategy(strategy_name).at_cost(arguments.evaluations)
            for text in (
                "exact D",
                *(arguments.variant or ("plain", "early=5", "early=1", "bits=8", "bits=4", "reuse=2")),
            ):
                found = []
                for problem in exact.values():
                    prior = problem.problem.prior if text == "exact D" else variant(path, text)
                    found.append(compare(strategy, replace(problem, problem=replace(problem.problem, known=prior))))
                size, speed = ("", "") if text == "exact D" else storage(path, text)
                keys = ("evaluations", "mean_error", "std_ratio")
                cost, off, ratio = (statistics.mean(f[key] for f in found) for key in keys)
                print(
                    f"| {strategy_name} | {text} | {size} | {speed} | {cost:.1f} | {off:.2f} | {ratio:.3f} |",
                    flush=True,
                )
    floor = arguments.draws**-0.5
    print(
        f"\nOver {len(exact)} operators, {arguments.draws} draws each: mean error in posterior sd, floor {floor:.2f}."
    )


def storage(path: Path, text: str) -> tuple[str, str]:
    """Megabytes of the file, and milliseconds of a call with 64 images of 16 x 16."""
    prior = variant(path, text)
    size = path.stat().st_size
    if text.startswith("bits"):
        with tempfile.TemporaryDirectory() as folder:
            prior.save(Path(folder) / "x.safetensors")
            size = (Path(folder) / "x.safetensors").stat().st_size
    x, times = torch.randn(64, 1, 16, 16), []
    with torch.no_grad():
        for _ in range(20):
            began = time.perf_counter()
            prior.denoise(x, torch.tensor(0.5))
            times.append(time.perf_counter() - began)
    # Of reuse the mean of both kinds of call, else the median: other work disturbs it less.
    per_call = statistics.mean(sorted(times)[:-4]) if text.startswith("reuse") else statistics.median(times)
    return f"{size / 1e6:.2f}", f"{1e3 * per_call:.1f}"


def on_schedules(arguments: argparse.Namespace) -> None:
    print("| prior | solver | steps | EDM | searched | levels |\n|---|---|---|---|---|---|", flush=True)
    for prior, shape in ((Field(16, std=0.5), (1, 16, 16)), (invsolve.load_prior("natural"), (1, 64, 64))):
        for steps in (5, 8):
            for name in ("dpmpp-2m", "unipc-2", "ddim"):
                found = invsolve.search_schedule(
                    prior, steps, name, shape=shape, count=arguments.items, fine=32, sweeps=3
                )
                levels = ", ".join(f"{level:.3g}" for level in found.levels)
                print(
                    f"| {prior.name} | {name} | {steps} | {found.usual:.4f} | {found.error:.4f} | {levels} |",
                    flush=True,
                )
    print("\nRoot mean square per pixel off Heun's method with 32 steps, from the same noise.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gaussian", "held-out", "schedules"])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--problem", action="append", choices=list(held_out.PROBLEMS))
    parser.add_argument("--strategy", action="append")
    parser.add_argument("--variant", action="append")
    parser.add_argument("--evaluations", type=int, default=56, help="per sample, before anything is saved")
    parser.add_argument("--items", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2000, help="of training on the Gaussian field")
    parser.add_argument("--network", type=Path, help="a network trained on the Gaussian field before")
    parser.add_argument("--precision", default="bf16", choices=["float32", "bf16"])
    arguments = parser.parse_args()
    {"gaussian": on_gaussian, "held-out": on_held_out, "schedules": on_schedules}[arguments.what](arguments)
