"""RLSD (Zilberstein 2025): RED-diff over several particles that repel one another, image and prior split apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.linalg import rows, size_of
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._adam import adam


@dataclass(frozen=True)
class RLSD(Strategy):
    """RED-diff with several particles that repel one another (Zilberstein 2025); low noise.

    Adam on w, of |x - w|^2 / 2 and the denoising term with repulsion, and on x, of |y - A x|^2 / 2 and coupling |x - w|^2 / 2.

    Zilberstein, Mardani and Segarra, ICLR 2025: the particles are the samples of an item, asked for together. Theirs are latents
    w_i with pixel images x_i and repel one another in DINO's features; here the prior is one of images, w are images, and the
    features are their pixels: a Gaussian kernel of bandwidth median^2 / ln N. All terms are means, over measurements and over
    pixels, as in their code; operators are divided by their norm. Their committed settings have gamma 0, no repulsion.

    Known bias: one mode of a Gaussian approximation each; no noise level enters, so the noise is fitted; how far apart the
    particles are follows from gamma and not from the posterior, and is no uncertainty.

    Args:
        steps: network calls, forward only.
        gamma: strength of the repulsion.
        weight: of the denoising term, in units of `coupling`.
        coupling: weight of |x - w|^2 against the data, rho in the paper.
        learning_rate: of Adam, network units.
    """

    name = "rlsd"
    paper: ClassVar[Paper | None] = Paper(
        "Repulsive Latent Score Distillation for Solving Inverse Problems",
        ("Nicolas Zilberstein", "Morteza Mardani", "Santiago Segarra"),
        2024,
        "arXiv:2406.16683",
    )

    steps: int = 500
    gamma: float = 1.0
    weight: float = 0.1
    coupling: float = 0.2
    learning_rate: float = 0.2

    couples_samples: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "operator-gradient", "gaussian", "low-noise")
    mean_error: ClassVar[float] = 1.1
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"steps": 200},)

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = problem.baseline() if isinstance(problem.operator, LinearOperator) else problem.zeros()
        nought = torch.zeros_like(x)
        moments = {"x_first": nought, "x_second": nought, "w_first": nought, "w_second": nought}
        return {"x": x, "w": x, **moments, "count": x.new_zeros(problem.batch)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, w, noise, pixels = state["x"], state["w"], rng.normal(state["w"]), size_of(problem.image_shape)
        noised = w + sigma * noise
        estimate = problem.denoise(noised, sigma)
        # sqrt(1 - alpha_bar) of the variance-preserving coordinates.
        push = sigma / math.sqrt(1 + sigma**2) * crowding(w, problem.samples_per_item)
        score = (noised - estimate) / sigma - noise + self.gamma * push
        count = state["count"] + 1
        gradient_w = (w - x + self.weight / self.coupling * sigma * score) / pixels
        move_w, w_first, w_second = adam(gradient_w, state["w_first"], state["w_second"], count)
        slope, residual = problem.data_gradient(x)
        gradient_x = slope / problem.linear_norm() ** 2 / problem.dof() + self.coupling * (x - w) / pixels
        move_x, x_first, x_second = adam(gradient_x, state["x_first"], state["x_second"], count)
        moments = {"x_first": x_first, "x_second": x_second, "w_first": w_first, "w_second": w_second}
        x, w = x - self.learning_rate * move_x, w - self.learning_rate * move_w
        return {"x": x, "w": w, **moments, "count": count, "residual": problem.misfit(residual)}


def crowding(w: Tensor, together: int) -> Tensor:
    """The gradient of ln sum_j K(w_i, w_j) in w_i, K = exp(-|w_i - w_j|^2 / h), h = median^2 / ln N; shaped like w.

    It points to where the others are: Adam descends it, which drives particles apart. Zero where they coincide but for rounding.

    Args:
        w: (B, C, *spatial); rows that belong to one item follow one another.
        together: rows an item, N. Of a single one there is nothing to repel it.
    """
    if together < 2:
        return torch.zeros_like(w)
    flat = w.flatten(1).view(-1, together, w[0].numel())
    # Not by products of matrices, whose rounding would tell coinciding particles apart.
    squares = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
    pairs = squares[:, *torch.triu_indices(together, together, 1)]
    width = rows(pairs.median(1).values.clamp_min(1e-12), squares) / math.log(together)
    kernel = (-squares / width).exp()
    # sum_j of -2 (w_i - w_j) K_ij / h.
    slope = -2 / width * (kernel.sum(2, keepdim=True) * flat - kernel @ flat)
    apart = rows(pairs.median(1).values > 1e-10 * flat.shape[2], slope)
    return torch.where(apart, slope / kernel.sum(2, keepdim=True), 0.0).view_as(w)
