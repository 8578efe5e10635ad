"""Strategies with the bundled priors against long Langevin runs: the posterior that the network itself stands for.

    python scripts/prior_data.py ../shared/data DATA
    python benchmarks/long_run.py DATA [--problem inpainting] [--strategy moment] [--evaluations 100] [--draws 64]

A learned denoiser has no posterior in closed form. But its score at a noise level s, (D(x, s) - x) / s^2, is that of the images
blurred by noise of that level, and with the gradient of the likelihood it drives kinetic Langevin dynamics (BAOAB, Leimkuhler
2013), preconditioned by (A'A / sigma_y^2 + 1 / s^2)^-1, in many chains: annealed from large s, then long enough for every
direction to be crossed many times. What it converges to is what the network's score at that one level stands for; two halves of
the chains say how well it is known. The strategies get the very same prior, the blurred images, whose denoiser follows from the
network's; "moved" is how far the mean of their draws went with more evaluations. For an exact denoiser all agree. A learned one
need not stand for the same images at one level as on the way down from the largest. Images are cut to 32 x 32, so that this
takes minutes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.numerics.krylov import CG
from invsolve.numerics.random import ChainRandom
from invsolve.testing.distances import draws

SIZE = 32


def linear(name: str, **settings: Any) -> invsolve.LinearOperator:
    operator = invsolve.operator(name, **settings)
    assert isinstance(operator, invsolve.LinearOperator)
    return operator


class Blurred(invsolve.Prior):
    """Images plus white noise of level s as a prior of their own.

    z = x0 + s n + sigma n' has noise tau^2 = s^2 + sigma^2; so E[x0 + s n | z] = (s^2 z + sigma^2 D(z, tau)) / tau^2.
    """

    def __init__(self, prior: invsolve.Prior, s: float) -> None:
        super().__init__()
        self.prior, self.s = prior, s
        self.event_shape, self.sigma_min, self.sigma_max = prior.event_shape, s / 10, prior.sigma_max

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        total = self.s**2 + sigma**2
        return (self.s**2 * x + sigma**2 * self.prior.denoise(x, total.sqrt())) / total

    def error(self, sigma: float) -> float:
        total = self.s**2 + sigma**2
        return (sigma**2 / total) ** 2 * self.prior.error(total**0.5) + self.s**2 * sigma**2 / total


@dataclass(frozen=True)
class Cut:
    """A part of a held-out image, in network units, and how it is measured."""

    prior: str
    file: str
    low: float
    high: float
    corner: tuple[int, int]
    operator: Callable[[], invsolve.LinearOperator]
    sigma: float


PROBLEMS = {
    "inpainting": Cut(
        "natural",
        "natural",
        0,
        1,
        (48, 48),
        lambda: linear("inpainting", fraction=0.5, image_size=SIZE),
        0.05,
    ),
    "blur": Cut("natural", "natural", 0, 1, (48, 48), lambda: linear("blur", sigma=1.5), 0.05),
    "ct": Cut("ct-128", "ct-128", -1000, 1200, (40, 40), lambda: linear("ct", image_size=SIZE, angles=12), 0.5),
    "mri": Cut("mr-128", "mr-128", 0, 1, (48, 48), lambda: linear("mri", image_size=SIZE, acceleration=3), 0.05),
}


def measured(data: Path, cut: Cut, rows: int, s: float) -> Problem:
    """The problem with `rows` equal rows: a held-out image with structure in its cut."""
    prior = Blurred(invsolve.load_prior(cut.prior).requires_grad_(False), s)
    with h5py.File(data / f"{cut.file}.h5") as file:
        held = np.flatnonzero(file["split"].asstr()[:] == "val")
        images = file["x"][held[0] : held[-1] + 1][held - held[0]]
    top, left = cut.corner
    parts = images[:, ..., top : top + SIZE, left : left + SIZE].reshape(len(images), SIZE, SIZE)
    truth = torch.from_numpy(parts[parts.std((1, 2)).argmax()].astype(np.float32)).view(1, 1, SIZE, SIZE)
    truth = (2 * (truth - cut.low) / (cut.high - cut.low) - 1).clamp(-1, 1)
    operator = cut.operator()
    y = operator(truth.to(torch.complex64) if operator.complex_image else truth)
    y = invsolve.Gaussian(cut.sigma).sample(y, ChainRandom(0, [(0, 0)]))
    mask = operator.measured()
    y = y if mask is None else y * mask
    noise = invsolve.Gaussian(cut.sigma)
    return make_problem(prior, operator, noise, y.expand(rows, *y.shape[1:]), (1, SIZE, SIZE), Scale(), rows)


@torch.no_grad()
def langevin(
    problem: Problem, prior: invsolve.Prior, s: float, burn_in: int, steps: int, h: float = 0.25, keep: float = 0.95
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation (pixels,) of x over the run, and the means of the two halves of the chains (2, pixels).

    Args:
        problem: a row a chain.
        prior: whose score is taken at noise level `s`.
        burn_in: steps from level 1 down to `s`, and as many again before anything counts.
        h: step, where 1 is the time in which the stiffest direction turns.
        keep: part of the velocity that a step keeps.
    """
    rng, operator, sigma = ChainRandom(11, [(0, i) for i in range(problem.batch)]), problem.linear, problem.sigma
    blank = torch.zeros_like(problem.y)
    level = 1.0

    def smooth(g: Tensor) -> Tensor:
        """(A'A / sigma_y^2 + 1 / level^2)^-1 g."""
        return problem.prox(level**2 * g, blank, sigma**2 / level**2, CG(1e-4, 50))

    def force(x: Tensor) -> Tensor:
        score = (prior.denoise(x, torch.tensor(level)) - x) / level**2
        return smooth(operator.adjoint(problem.y - operator(x)) / sigma**2 + score)

    total, squares, count = problem.zeros().double(), problem.zeros().double(), 0
    x = problem.prox(problem.zeros(), problem.y, sigma**2)
    v, push = problem.zeros(), force(x)
    for step in range(2 * burn_in + steps):
        rng = rng.at(step + 1)
        wanted = s ** min(step / burn_in, 1.0)
        if wanted != level:
            v, level = v * (wanted / level), wanted
            push = force(x)
        x = x + h / 2 * (v + h / 2 * push)
        kick = smooth(operator.adjoint(rng.normal(problem.y)) / sigma + rng.normal(x) / level)
        v = keep * (v + h / 2 * push) + math.sqrt(1 - keep**2) * kick
        x = x + h / 2 * v
        push = force(x)
        v = v + h / 2 * push
        if step >= 2 * burn_in:
            total, squares, count = total + x, squares + x.double() ** 2, count + 1
    means = total.flatten(1) / count
    mean = means.mean(0)
    std = (squares.flatten(1).mean(0) / count - mean**2).clamp_min(0).sqrt()
    half = problem.batch // 2
    return mean, std, torch.stack([means[:half].mean(0), means[half:].mean(0)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--problem", action="append", choices=list(PROBLEMS))
    parser.add_argument("--strategy", action="append")
    parser.add_argument("--evaluations", type=int, action="append", help="a sample; default 100; repeatable")
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--chains", type=int, default=10)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--burn-in", type=int, default=250)
    parser.add_argument("--level", type=float, default=0.05, help="s, in network units")
    parser.add_argument("--step-size", type=float, default=0.25)
    arguments = parser.parse_args()
    print(
        "| problem | strategy | evaluations | mean error / sd | sd ratio | moved / sd | reference's halves apart / sd |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.problem or list(PROBLEMS):
        cut = PROBLEMS[name]
        network = invsolve.load_prior(cut.prior).requires_grad_(False)
        chains = measured(arguments.data, cut, arguments.chains, arguments.level)
        mean, std, halves = langevin(
            chains, network, arguments.level, arguments.burn_in, arguments.steps, arguments.step_size
        )
        typical = std.square().mean().sqrt()
        apart = float((halves[0] - halves[1]).square().mean().sqrt() / typical)
        posed = measured(arguments.data, cut, arguments.draws, arguments.level)
        for which in arguments.strategy or ["moment"]:
            before = None
            for evaluations in arguments.evaluations or [100]:
                images, cost = draws(invsolve.strategy(which).at_cost(evaluations), posed, 1)
                centre = images.mean(0)
                error = float((centre - mean).square().mean().sqrt() / typical)
                ratio = float(images.std(0).square().mean().sqrt() / typical)
                moved = "" if before is None else f"{float((centre - before).square().mean().sqrt() / typical):.2f}"
                before = centre
                print(
                    f"| {name} | {which} | {cost['evaluations']:.0f} | {error:.2f} | {ratio:.2f} | {moved} | {apart:.2f} |",
                    flush=True,
                )
        print(f"{name}: posterior sd {float(typical):.3f} of a range of 2", file=sys.stderr)


if __name__ == "__main__":
    main()
