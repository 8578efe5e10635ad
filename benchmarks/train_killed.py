"""A prior from one volume, from zero to use: trained once in peace and once killed twice on the way, which must not show.

    python benchmarks/train_killed.py VOLUME.h5 WORK [--steps 2000] [--kills 2] [-- OPTIONS OF invsolve train]

The loss curves and the weights of both runs are compared to the last bit; then the prior is measured on the held-out slices:
denoising against NL-means and TV (whose strength is chosen by the truth), and CT from 30 views against linear and tv.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from priors import LEVELS, best, psnr  # type: ignore[import-not-found]  # beside it, when it is run
from safetensors.torch import load_file
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

import invsolve
from invsolve.api import metrics
from invsolve.contracts.scale import Scale
from invsolve.numerics.random import ChainRandom


def command(volume: Path, out: Path, steps: int, options: list[str]) -> list[str]:
    train = [sys.executable, "-m", "invsolve", "train", str(volume), "-o", str(out), "--steps", str(steps), *options]
    return [
        *train,
        "--snapshot-steps",
        "100",
        "--set",
        "log_every=20",
        "--set",
        f"validate_every={max(steps // 10, 1)}",
    ]


def last_step(curve: Path) -> int:
    """The last step that a loss curve has."""
    if not curve.exists():
        return 0
    lines = curve.read_text(encoding="utf-8").splitlines()
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def train_killed(arguments: list[str], curve: Path, at: list[int]) -> None:
    """Train, and kill the process with SIGKILL as soon as the curve has reached each of these steps."""
    for step in at:
        process = subprocess.Popen(
            arguments, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while last_step(curve) < step:
            assert process.poll() is None, "training ended before it could be killed"
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed after step {last_step(curve)}", flush=True)
    subprocess.run(arguments, check=True)


def held_out(volume: Path, prior: invsolve.Prior, count: int) -> torch.Tensor:
    """Held-out slices with something in them, physical units."""
    rows = prior.header["training"]["data"]["split"]["validation_rows"]
    with h5py.File(volume) as file:
        slices = np.stack([file["volume"][r] for r in rows]).astype(np.float32)[:, None]
    slices = slices[(slices > 0.1 * slices.max()).mean((1, 2, 3)) > 0.1]
    return torch.from_numpy(slices[np.linspace(0, len(slices) - 1, min(count, len(slices))).astype(int)])


def denoising(prior: invsolve.Prior, clean: torch.Tensor) -> None:
    noise = ChainRandom(7, [(i, 0) for i in range(len(clean))]).normal(clean)
    print("| sigma / range | NL-means | TV | prior |\n|---|---|---|---|")
    for level in LEVELS:
        sigma = 2 * level
        noisy = clean + sigma * noise
        with torch.no_grad():
            ours = prior.denoise(noisy, torch.tensor(sigma))
        rows = []
        for x, y, z in zip(clean.double().numpy(), noisy.double().numpy(), ours.double().numpy(), strict=True):
            means = [
                denoise_nl_means(y[0], h=h * sigma, sigma=sigma, patch_size=5, patch_distance=7)
                for h in (0.4, 0.6, 0.8, 1.0)
            ]
            flat = [denoise_tv_chambolle(y[0], weight=w * sigma, max_num_iter=400) for w in (0.5, 0.8, 1.2, 1.8, 2.7)]
            rows.append((best(means, x[0]), best(flat, x[0]), psnr(z, x)))
        print(
            f"| {level} | " + " | ".join(f"{statistics.mean(column):.2f}" for column in zip(*rows, strict=True)) + " |"
        )


def reconstruction(prior: invsolve.Prior, truth: torch.Tensor) -> None:
    size = max(truth.shape[-2:])
    square = torch.zeros(len(truth), 1, size, size)
    square[..., : truth.shape[-2], : truth.shape[-1]] = truth
    operator = invsolve.operator("ct", image_size=size, angles=30)
    clean = operator(square)
    noise = invsolve.Gaussian(0.005 * float(clean.max()))
    y = invsolve.simulate(square, operator, noise)
    span = metrics.data_range(square)
    print("| 30-view CT | PSNR dB | SSIM |\n|---|---|---|")
    for name, parameters in (("linear", {}), ("tv", {"steps": 600}), ("dds", {"steps": 30}), ("moment", {"steps": 20})):
        strategy = invsolve.strategy(name, **parameters)
        rec = invsolve.reconstruct(y, operator, prior, noise=noise, strategy=strategy, samples=2, progress=False)
        average = metrics.average([metrics.score(m, t, span) for m, t in zip(rec.mean, square, strict=True)])
        print(f"| {name} | {average['psnr']:.2f} | {average['ssim']:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--items", type=int, default=3)
    given = sys.argv[1:]
    own, options = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    arguments = parser.parse_args(own)
    arguments.work.mkdir(parents=True, exist_ok=True)
    peace, killed = (arguments.work / f"{name}.safetensors" for name in ("peace", "killed"))
    curves = [path.with_name(f"{path.name}.curve.jsonl") for path in (peace, killed)]
    stretch = arguments.steps // (arguments.kills + 1)
    at = [k * stretch + random.randrange(stretch // 4, stretch) for k in range(arguments.kills)]
    began = time.perf_counter()
    train_killed(command(arguments.volume, killed, arguments.steps, options), curves[1], at)
    print(f"killed and resumed: {(time.perf_counter() - began) / 60:.1f} min", flush=True)
    subprocess.run(command(arguments.volume, peace, arguments.steps, options), check=True)
    a, b = (path.read_text(encoding="utf-8") for path in curves)
    lines = len(a.splitlines())
    print(f"loss curves of {lines} lines: {'identical' if a == b else 'DIFFERENT'}")
    first, second = load_file(peace), load_file(killed)
    same = first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    print(f"weights: {'identical' if same else 'DIFFERENT'}")
    prior = invsolve.load_prior(killed)
    physical = held_out(arguments.volume, prior, arguments.items)
    low, high = prior.data_range or (-1.0, 1.0)
    denoising(prior, Scale.from_range(low, high).to_network(physical.clamp(low, high)))
    reconstruction(prior, physical.clamp(low, high))
    sys.exit(0 if a == b and same else 1)


if __name__ == "__main__":
    main()
