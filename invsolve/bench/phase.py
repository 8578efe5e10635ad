"""Family "phase": phase retrieval of 16 x 16 Gaussian fields: is one of an image's eight samples the image?"""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve import api
from invsolve.bench.family import Family, Measure
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.engine.batch import run_batch
from invsolve.engine.needs import check_needs
from invsolve.errors import UserError
from invsolve.numerics.linalg import norm
from invsolve.numerics.random import ChainRandom
from invsolve.testing.field import Field

SIZE = 16
#: Samples per image, and how near to it, relative to its norm, one counts as the image.
SAMPLES, NEAR = 8, 0.3
#: Noise of the moduli, whose root mean square is 0.075.
PROBLEMS = {"fine": 0.002, "coarse": 0.004}


def away(images: Tensor, truth: Tensor) -> Tensor:
    """Distance of images from the truth, both (B, 1, N, N), over the truth's norm, up to sign and a half turn; (B,)."""
    turned = truth.flip(-1, -2)
    same = torch.stack([norm(images - t) for t in (truth, -truth, turned, -turned)])
    return same.amin(0) / norm(truth)


def make(problem: str, seed: int, samples: int, device: str) -> Measure:
    """As many images as `samples` gives eight to each; moduli of twofold oversampled Fourier coefficients."""
    count, sigma = max(samples // SAMPLES, 1), PROBLEMS[problem]
    prior = Field(SIZE).to(device)
    rng = ChainRandom(seed, [(i, 0) for i in range(count)])
    truth = prior.sample(rng, torch.zeros(1))
    operator, noise = api.operator("phase-retrieval"), Gaussian(sigma)
    y = noise.sample(operator(truth), rng)
    rows = y.repeat_interleave(SAMPLES, 0).to(device)
    posed = make_problem(prior, operator.to(device), noise, rows, (1, SIZE, SIZE), Scale(), SAMPLES)

    def measure(strategy: Strategy, seed_of_draws: int) -> dict[str, float]:
        if strategy.couples_items:
            raise UserError(f"strategy {strategy.name!r} couples slices; these images are apart")
        check_needs(strategy, posed)
        chains = [(i, s) for i in range(count) for s in range(SAMPLES)]
        outcome = run_batch(posed, strategy, ChainRandom(seed_of_draws, chains))
        off = away(outcome.images.cpu(), truth.repeat_interleave(SAMPLES, 0)).view(count, SAMPLES)
        best = off.gather(1, outcome.discrepancy.cpu().view(count, SAMPLES).argmin(1, keepdim=True))
        return {
            "found": float((off < NEAR).any(1).float().mean()),
            "told": float((best < NEAR).float().mean()),
            "hits": float((off < NEAR).float().mean()),
            "residual": float(outcome.discrepancy.median()),
            "evaluations": outcome.facts["network_calls"] + outcome.facts["vjp_calls"],
            "seconds": outcome.facts["seconds"] * posed.batch,
        }

    return measure


FAMILY = Family(
    problems=list(PROBLEMS),
    usual=list(PROBLEMS),
    columns={"found": "found", "told": "told", "hits": "hits", "residual": "residual"},
    legend=(
        "found: images of which one of 8 samples is within 0.3 of the norm, up to sign and a half turn; told: of which the "
        "sample that fits best is; hits: part of all samples; residual: over what the noise explains, median."
    ),
    make=make,
)
