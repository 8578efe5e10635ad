"""Restarts: many descents into the data, one chosen by its likelihood, and split Gibbs sampling from there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.linalg import rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._likelihood import draw
from invsolve.plugins.strategies._reverse import reverse

#: Standard deviations by which the data may miss an image before its weight falls: draws of one posterior scatter by about one.
SLACK = 3.0
#: A descent whose misfit is so many times its least is thrown back to there. Rolling over a ridge takes less.
CLIMB = 10.0


@dataclass(frozen=True)
class Restarts(Strategy):
    """Many descents into the data, one chosen by likelihood, and sampling from there; for phase retrieval.

    Draw `restarts` images of the prior, let each descend |y - A(x)|^2 with momentum, choose one by weight, go on as `pnp-dm`.

    Ours. Where the data have many local fits, as moduli of Fourier coefficients do, every sampler that anneals settles on
    one of them long before the data can tell which is right. Descents without the network are cheap; with little friction they
    roll through shallow fits (Polyak 1964), and the likelihood tells afterwards which arrived. Descents that fit as
    well as the noise lets an image fit have equal weights, others exp(-(excess of |y - A(x)|^2 / 2 sigma_y^2)). From the chosen
    image on it is split Gibbs sampling (Wu 2024, `pnp-dm`), with a coupling that stays and then falls.

    Known bias: modes that fit equally well get the shares of their basins, not those of their posterior mass; a descent that
    arrived nowhere is sampled all the same where none did better; and that of `pnp-dm`.

    Args:
        steps: pairs of draws from the chosen image on.
        inner: network calls per pair, and of each restart's prior draw.
        coupling: at the start, network units, small enough that a chosen image is not left again; None: a third of what the
            prior's images vary by.
        iterations: Langevin proposals a pair, where the likelihood is not Gaussian in the image.
        restarts: descents a sample.
        descent: gradient steps a descent; operator calls alone.
        momentum: part of the velocity that a gradient step keeps; over the last 40 % of a descent friction grows tenfold.
    """

    name = "restarts"
    builds_on: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors",
            ("Zihui Wu", "Yu Sun", "Yifan Chen", "Bingliang Zhang", "Yisong Yue", "Katherine L. Bouman"),
            2024,
            "arXiv:2405.18782",
        ),
        Paper(
            "Some methods of speeding up the convergence of iteration methods",
            ("Boris T. Polyak",),
            1964,
            "doi:10.1016/0041-5553(64)90137-5",
        ),
    )
    cost: ClassVar[str] = "5 forward, and 5 a restart"

    steps: int = 40
    inner: int = 5
    coupling: float | None = None
    iterations: int = 40
    restarts: int = 32
    descent: int = 200
    momentum: float = 0.97

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "operator-gradient", "noise-slope", "low-noise")
    mean_error: ClassVar[float] = 0.3
    std_ratio: ClassVar[tuple[float, float]] = (0.85, 1.1)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.8, 1.2)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"restarts": 2, "descent": 50},)

    def at_cost(self, evaluations: int) -> Self:
        restarts = min(self.restarts, max(evaluations // (4 * self.inner), 1))
        return replace(self, restarts=restarts, steps=max(evaluations // self.inner - restarts, 2))

    def schedule(self, problem: Problem) -> Tensor:
        prior = problem.prior
        coupling = math.sqrt(prior.error(prior.sigma_max)) / 3 if self.coupling is None else self.coupling
        high = min(max(coupling, prior.sigma_min), prior.sigma_max)
        # Half of the pairs to forget what the descent fitted of the noise; then down to what hides next to any noise.
        falling = schedules.geometric(max(self.steps // 2, 2), min(max(high / 20, prior.sigma_min), high), high)
        return torch.cat([falling[:1].expand(self.steps + 1), falling])[-self.steps - 1 :]

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        if self.restarts < 1:
            raise UserError(f"strategy 'restarts': restarts must be at least 1, got {self.restarts}")
        length = 1 / gain(problem) ** 2
        chosen = problem.zeros()
        total = torch.full((problem.batch,), -math.inf, dtype=torch.float64, device=chosen.device)
        for _ in range(self.restarts):
            image = self.descend(problem, self.prior_draw(problem, rng), length)
            weight = log_weight(problem, image)
            total = torch.logaddexp(total, weight)
            # The newest of k replaces the chosen one with the probability of its share: a draw by weight in the end.
            taken = rng.uniform().to(total).log() < weight - total
            chosen = torch.where(rows(taken, chosen), image, chosen)
        return {"x": chosen, "pace": chosen.new_zeros(problem.batch)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        z, pace = draw(problem, state["x"], sigma**2, state["x"], state["pace"], self.iterations, rng)
        x, _ = reverse(problem, z, sigma, self.inner, 1.0, rng)
        return {"x": x, "pace": pace, "residual": problem.misfit(problem.residual(x))}

    def prior_draw(self, problem: Problem, rng: ChainRandom) -> Tensor:
        top = problem.prior.sigma_max
        image, _ = reverse(problem, top * rng.normal(problem.zeros()), top, self.inner, 1.0, rng)
        return image

    def descend(self, problem: Problem, x: Tensor, length: float | Tensor) -> Tensor:
        """The best image on the way of the heavy-ball method on |y - A(x)|^2 / 2.

        A row that climbs away starts its roll anew from there, at half the step.
        """
        velocity, best, pace = torch.zeros_like(x), x, x.new_ones(len(x))
        least = problem.misfit(problem.residual(x))
        for k in range(self.descent):
            gradient, residual = problem.data_gradient(x)
            misfit = problem.misfit(residual)
            # Not below, so that what is not a number counts.
            wild = ~(misfit < CLIMB * least)
            best = torch.where(rows(misfit < least, x), x, best)
            least = torch.where(misfit < least, misfit, least)
            pace = torch.where(wild, pace / 2, pace)
            late = max(0.0, (k / self.descent - 0.6) / 0.4)
            keep = max(1 - (1 - self.momentum) * (1 + 9 * late), 0.0)
            velocity = torch.where(rows(wild, x), 0.0, keep * velocity - length * rows(pace, x) * gradient)
            x = torch.where(rows(wild, x), best, x) + velocity
        return torch.where(rows(problem.misfit(problem.residual(x)) < least, x), x, best)


def gain(problem: Problem) -> float | Tensor:
    """Norm of the operator, or of its tangent at an image such as the prior's; a tensor (B, 1, ...) where rows differ."""
    prior = problem.prior
    if isinstance(problem.operator, LinearOperator):
        return problem.linear_norm()
    one = replace(problem, y=problem.y[:1])
    spread = math.sqrt(prior.error(prior.sigma_max))
    image = one.denoise(one.zeros(), prior.sigma_max)
    return problem.operator.linearise(image + spread * ChainRandom(0, [(0, 0)]).normal(image)).norm()


def log_weight(problem: Problem, image: Tensor) -> Tensor:
    """Log likelihood (B,) short of what the noise explains, up to `SLACK` standard deviations of it; float64."""
    ratio, numbers = problem.discrepancy(image)
    numbers = numbers.double()
    excess = (ratio.double() ** 2 - 1) * numbers / 2 - SLACK * (numbers / 2).sqrt()
    return -excess.clamp_min(0).nan_to_num(nan=0.0, posinf=1e300)
