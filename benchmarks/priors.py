"""The bundled priors measured: denoising against NL-means and TV, error against their own claim, loading, throughput.

python scripts/prior_data.py ../shared/data DATA
python benchmarks/priors.py denoising DATA [--items 12]
python benchmarks/priors.py claim DATA [--items 12]
python benchmarks/priors.py speed
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

import invsolve
from invsolve.contracts.scale import Scale
from invsolve.numerics.random import ChainRandom

PRIORS = ("ct-128", "mr-128", "mr-complex-128", "natural")
LEVELS = (0.05, 0.1, 0.2, 0.5)


def validation(path: Path, count: int, prior: invsolve.Prior) -> torch.Tensor:
    """Held-out images in network units (N, C, rows, columns)."""
    with h5py.File(path) as file:
        rows = np.flatnonzero(file["split"].asstr()[:] == "val")
        images = np.stack(
            [file["x"][r] for r in rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]]
        )
    if np.iscomplexobj(images):
        images = np.concatenate([images.real, images.imag], 1)
    low, high = prior.data_range or (-1.0, 1.0)
    return Scale.from_range(low, high).to_network(torch.from_numpy(images.astype(np.float32)).clamp(low, high))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB of the range 2 of network units."""
    return 10 * math.log10(4 / float(((a - b) ** 2).mean()))


def best(candidates: list[np.ndarray], truth: np.ndarray) -> float:
    """The baselines' strength is chosen by the truth, which flatters them."""
    return max(psnr(c, truth) for c in candidates)


def denoising(data: Path, items: int) -> None:
    print("| prior | images | sigma / range | NL-means | TV | prior |\n|---|---|---|---|---|---|")
    for name in PRIORS:
        prior = invsolve.load_prior(name)
        clean = validation(data / f"{name}.h5", items, prior)
        noise = ChainRandom(7, [(i, 0) for i in range(len(clean))]).normal(clean)
        for level in LEVELS:
            sigma = 2 * level
            noisy = clean + sigma * noise
            with torch.no_grad():
                ours = torch.cat([prior.denoise(x[None], torch.tensor(sigma)) for x in noisy])
            scores: dict[str, list[float]] = {"nlm": [], "tv": [], "prior": []}
            for x, y, z in zip(clean.double().numpy(), noisy.double().numpy(), ours.double().numpy(), strict=True):
                means = [
                    np.stack([denoise_nl_means(c, h=h * sigma, sigma=sigma, patch_size=5, patch_distance=7) for c in y])
                    for h in (0.4, 0.6, 0.8, 1.0)
                ]
                flat = [
                    denoise_tv_chambolle(y, weight=w * sigma, channel_axis=0, max_num_iter=400)
                    for w in (0.5, 0.8, 1.2, 1.8, 2.7)
                ]
                for key, value in (("nlm", best(means, x)), ("tv", best(flat, x)), ("prior", psnr(z, x))):
                    scores[key].append(value)
            row = " | ".join(f"{statistics.mean(scores[key]):.2f}" for key in ("nlm", "tv", "prior"))
            print(f"| {name} | {len(clean)} | {level} | {row} |", flush=True)


def claim(data: Path, items: int) -> None:
    """Mean squared error over what the Jacobian says of it, sigma^2 trace J (Tweedie); 1 for the true posterior mean.

    The trace by Hutchinson's estimate, one probe an image. Above 1 the prior is surer than it is right, and the samples
    of a strategy that goes by its covariance are too alike.
    """
    levels = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    print(f"| prior | images | {' | '.join(f'sigma {s}' for s in levels)} |\n|---|---|{'---|' * len(levels)}")
    for name in PRIORS:
        prior = invsolve.load_prior(name).requires_grad_(False)
        clean = validation(data / f"{name}.h5", items, prior)
        rng = ChainRandom(7, [(i, 0) for i in range(len(clean))])
        noise, probe = rng.normal(clean), rng.at(1).normal(clean).sign()
        ratios = []
        for sigma in levels:
            error = trace = 0.0
            for x0, n, v in zip(clean, noise, probe, strict=True):
                x = (x0 + sigma * n)[None].requires_grad_()
                estimate = prior.denoise(x, torch.tensor(sigma))
                (product,) = torch.autograd.grad(estimate, x, v[None])
                error += float((estimate.detach()[0] - x0).square().sum())
                trace += float((product[0] * v).sum())
            ratios.append(error / (sigma**2 * trace))
        print(f"| {name} | {len(clean)} | {' | '.join(f'{value:.2f}' for value in ratios)} |", flush=True)


_LOAD = """
import time, resource, json, sys
import torch, invsolve
from invsolve import registry
registry.available("prior")
import diffusers.models.unets.unet_2d, safetensors.torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
t = time.perf_counter(); prior = invsolve.load_prior(sys.argv[1]); t = time.perf_counter() - t
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": t, "MiB": (after - before) / 1024, "weights": sum(p.numel() for p in prior.parameters())}))
"""


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def speed(batch: int, repeats: int, device: str, modes: list[str]) -> None:
    print(f"batch {batch}, 128 x 128, {device}, {torch.get_num_threads()} threads; milliseconds an image")
    print("| prior | weights | load s | MiB | mode | forward | forward + backward |\n|---|---|---|---|---|---|---|")
    for name in PRIORS:
        loaded = json.loads(
            subprocess.run([sys.executable, "-c", _LOAD, name], capture_output=True, check=True, text=True).stdout
        )
        for mode in modes:
            prior = invsolve.load_prior(name).to(device).requires_grad_(False)
            network: Any = prior.network
            network.to(memory_format=torch.contiguous_format if mode == "eager" else torch.channels_last)
            if mode == "compiled":
                prior.network = torch.compile(network)
            x = torch.randn(batch, prior.event_shape[0] or 1, 128, 128, device=device)
            if mode != "eager":
                x = x.contiguous(memory_format=torch.channels_last)
            sigma = torch.tensor(0.5, device=device)

            def forward(prior: invsolve.Prior = prior, x: torch.Tensor = x, sigma: torch.Tensor = sigma) -> None:
                with torch.no_grad():
                    prior.denoise(x, sigma)

            def backward(prior: invsolve.Prior = prior, x: torch.Tensor = x, sigma: torch.Tensor = sigma) -> None:
                inside = x.clone().requires_grad_()
                prior.denoise(inside, sigma).square().sum().backward()

            half = torch.autocast(device, torch.bfloat16, enabled=mode == "bf16")
            with half:
                costs = [1e3 * median_seconds(call, repeats) / batch for call in (forward, backward)]
            print(
                f"| {name} | {loaded['weights'] / 1e6:.2f} M | {loaded['seconds']:.2f} | {loaded['MiB']:.0f} | {mode} | "
                f"{costs[0]:.1f} | {costs[1]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["denoising", "claim", "speed"])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", action="append", choices=["eager", "channels-last", "compiled", "bf16"])
    arguments = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
    if arguments.what == "denoising":
        denoising(arguments.data, arguments.items)
    elif arguments.what == "claim":
        claim(arguments.data, arguments.items)
    else:
        speed(
            arguments.batch,
            arguments.repeats,
            arguments.device,
            arguments.mode or ["eager", "channels-last", "compiled", "bf16"],
        )
