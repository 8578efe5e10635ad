"""Samples judged without a truth: every strategy on the five Gaussian problems, beside what is known there of them.

For each strategy and problem the exact figures (mean error, widths of the half of the pixels that the data determine better
and of the other) and what `invsolve evaluate` says of the same samples from prior and scan alone. `imq` is the usual kernel Stein
discrepancy for comparison: the inverse multiquadric kernel, median bandwidth, score of the prior at its smallest noise level
plus that of the likelihood, p by a wild bootstrap.

    OMP_NUM_THREADS=1 python benchmarks/trust.py --evaluations 100 --samples 64
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from invsolve import api, registry
from invsolve.api.stein import stein_terms
from invsolve.api.trust import Trust, judge_trust
from invsolve.bench.gaussian import PROBLEMS
from invsolve.contracts.problem import Problem
from invsolve.errors import NonFinite, UserError
from invsolve.numerics.random import ChainRandom
from invsolve.testing.distances import distances, flat, run
from invsolve.testing.exact import Exact, exact_posterior


def judged(exact: Exact, images: Tensor, seed: int) -> Trust:
    """The verdict on samples (rows, pixels)."""
    rng = ChainRandom(seed, [(0, s) for s in range(len(images))])
    shaped = images.to(exact.problem.y.real.dtype).view(len(images), *exact.problem.image_shape)
    return judge_trust([stein_terms(exact.problem, shaped, rng)])


def imq(problem: Problem, images: Tensor, flips: int = 500) -> float:
    """P-value of the kernel Stein discrepancy with k = (c^2 + |x - x'|^2)^-1/2, c^2 the median of |x - x'|^2."""
    x = images.to(problem.y.real.dtype).view(len(images), *problem.image_shape)
    sigma = problem.prior.sigma_min
    gradient, _ = problem.data_gradient(x)
    score = (problem.denoise(x, sigma) - x) / sigma**2 - gradient / problem.noise_level()[0] ** 2
    points, score = x.flatten(1).double(), score.flatten(1).double()
    size = points.shape[1]
    apart = points[:, None] - points[None]
    squared = apart.square().sum(-1)
    row, column = torch.triu_indices(len(points), len(points), 1)
    base = squared[row, column].median() + squared
    kernel, slope = base**-0.5, base**-1.5
    # With r = x - x': grad_x k = -r base^-3/2, and the trace of the mixed derivative d base^-3/2 - 3 |r|^2 base^-5/2.
    cross = ((score[:, None] - score[None]) * apart).sum(-1) * slope
    stein = kernel * (score @ score.T) + cross + size * slope - 3 * squared * base**-2.5
    stein.fill_diagonal_(0)
    signs = torch.randint(0, 2, (flips, len(points)), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    null = ((signs @ stein) * signs).sum(1)
    return float((1 + (null >= stein.sum()).sum()) / (1 + flips))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--strategy", action="append", help="repeatable; default all that draw samples")
    parser.add_argument("--problem", action="append", choices=list(PROBLEMS), help="repeatable; default all")
    given = parser.parse_args()
    drawing = [name for name, cls in registry.available("strategy").items() if getattr(cls, "draws", False)]
    print(
        "| problem | strategy | mean error | observed | hidden | verdict | bias | measured | unmeasured | p | imq p |"
    )
    print("|" + "---|" * 11)
    for problem in given.problem or PROBLEMS:
        exact = exact_posterior(PROBLEMS[problem](), samples=given.samples)
        for name in ["exact draws", *(given.strategy or drawing)]:
            try:
                if name == "exact draws":
                    images = exact.draw(given.samples, 3)
                else:
                    outcome = run(api.strategy(name).at_cost(given.evaluations), exact.problem, 1)
                    if outcome.used is not None:
                        continue  # What is left out of the data is not stated in the problem.
                    images = flat(outcome)
            except (UserError, NonFinite):
                continue
            figures = distances(images, exact)
            trust = judged(exact, images, 5)
            known = [figures[k] for k in ("mean_error", "std_observed", "std_hidden")]
            told = [trust.bias, trust.width_measured, trust.width_unmeasured]
            cells = [f"{v:.2f}" for v in known], [f"{v:.2f}" if math.isfinite(v) else "-" for v in told]
            row = [problem, f"`{name}`", *cells[0], trust.verdict, *cells[1], f"{trust.p_value:.0e}"]
            print("| " + " | ".join([*row, f"{imq(exact.problem, images):.3f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
