"""What cheaper network calls cost in posterior error: variants of a prior side by side, on the same problems with the same draws.

    python scripts/prior_data.py ../shared/data DATA
    python benchmarks/cheaper_calls.py held-out DATA [--problem ct] [--strategy moment] [--evaluations 60] [--variant early=5]

Variants: `plain`, the prior as it is; `early=S`, its own Gaussian from noise level S on. Calls are per sample; one, mean, b and
v/b as in `held_out.py`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import held_out  # type: ignore[import-not-found]  # beside this script
import numpy as np
import torch

import invsolve
from invsolve.api import metrics

VARIANTS = ("plain", "early=10", "early=5", "early=2")


def variant(name: str, text: str) -> invsolve.Prior:
    """A bundled prior, changed as a variant says."""
    kind, _, value = text.partition("=")
    if kind == "early":
        return invsolve.load_prior(name, gaussian_above=float(value))
    return invsolve.load_prior(name)


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


def figures(rec: invsolve.Reconstruction, truth: torch.Tensor) -> str:
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["held-out"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--problem", action="append", choices=list(held_out.PROBLEMS))
    parser.add_argument("--strategy", action="append")
    parser.add_argument("--variant", action="append")
    parser.add_argument("--evaluations", type=int, default=60, help="per sample, before anything is saved")
    parser.add_argument("--items", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--precision", default="bf16", choices=["float32", "bf16"])
    on_held_out(parser.parse_args())
