"""Moment: the likelihood score with the denoising posterior's own covariance, a second-order solver, warm-started solves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve import hookimpl
from invsolve.contracts import schedules
from invsolve.contracts.linalg import inner, rows
from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.contracts.random import ChainRandom
from invsolve.contracts.strategy import State, Strategy
from invsolve.plugins._local import local


@dataclass(frozen=True)
class Moment(Strategy):
    """Sample with D_y = D + sigma^2 J A' u, where u solves (A sigma^2 J A' + sigma_y^2) u = y - A D, J the Jacobian of D.

    sigma^2 J is the covariance of x0 given x_sigma (Tweedie's second-order formula; Boys 2023, Rozet 2024), so for Gaussian
    priors D_y is exactly E[x0 | x_sigma, y], and the sampler converges to the posterior. Products with it are
    vector-Jacobian products of one network call. Solves start from the previous step's u, are preconditioned by the
    operator's proximal solve with the prior's measured error in place of sigma^2 J, and minimise the residual over a
    growing basis, which needs no symmetry of a learned network's J. The part of the residual that so few products leave
    unsolved is then given to that proximal solve; it vanishes as the products suffice. Between steps DPM-Solver++ 2M (Lu 2022).

    An operator that is not linear is replaced by its tangent at the previous step's D_y, noise that is not Gaussian by
    Gaussian noise of the variance expected there. The tangent takes operators that torch can differentiate twice.

    Known bias: it takes p(x0 | x_sigma) for a Gaussian, so modes of a mixture get wrong weights. Spread is the prior's: a
    network that is surer than it is right gives samples that are too alike.

    Args:
        steps: network calls.
        solves: vector-Jacobian products a step, at most; thrice at the first, one where the measurement noise dominates.
        churn: 1 for the stochastic solver, which forgets the errors of early steps; 0 for the deterministic flow.
        start: noise level to start from, network units; at most the prior's largest.
    """

    steps: int = 28
    solves: int = 3
    churn: float = 1.0
    start: float = 20.0

    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "linearisation")
    mean_error: ClassVar[float] = 0.12
    std_ratio: ClassVar[tuple[float, float]] = (0.93, 1.07)

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // (1 + self.solves), 2))

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.edm(self.steps, problem.prior.sigma_min, min(self.start, problem.prior.sigma_max))

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        return {"x": x, "u": torch.zeros_like(problem.y), "before": x, "level": x.new_zeros(problem.batch)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x = state["x"]
        estimate, residual, u = self.condition(problem, x, sigma, state["u"], state["before"] if rng.step > 1 else None)
        forecast = estimate
        if sigma_next > 0 and rng.step > 1:
            r = (state["level"] / sigma).log() / math.log(sigma / sigma_next)
            forecast = estimate + (estimate - state["before"]) / (2 * rows(r, x))
        ratio = sigma_next / sigma
        shrink = ratio**self.churn
        x = ratio * shrink * x + (1 - ratio * shrink) * forecast
        if self.churn > 0 and sigma_next > 0:
            x = x + sigma_next * math.sqrt(1 - shrink**2) * rng.normal(x)
        level = torch.full_like(state["level"], sigma)
        return {"x": x, "u": u, "before": estimate, "level": level, "residual": problem.misfit(residual)}

    def condition(
        self, problem: Problem, x: Tensor, sigma: float, u: Tensor, point: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """D_y at x, the residual y - A D_y, and u; the operator is linearised at `point`, where None at D."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = problem.denoise(x, sigma)
        mean = denoised.detach()
        near = local(problem, mean if point is None else point)

        def system(v: Tensor) -> tuple[Tensor, Tensor]:
            (product,) = torch.autograd.grad(denoised, x, near.adjoint(v), retain_graph=True)
            image = sigma**2 * product
            return near.forward(image) + near.variance * v, image

        unknown = problem.prior.error(sigma)
        budget = 3 * self.solves if point is None else self.solves if self.matters(problem, unknown) else 1
        u, shift, rest = minimal_residual(
            system, lambda r: near.precondition(r, unknown), near.residual(mean), u, budget
        )
        # What a few products leave unsolved is not left out of the image: it gets the white covariance of the same error.
        extra = near.white(rest, unknown)
        return mean + shift + extra, rest + near.variance * u - near.forward(extra), u

    def matters(self, problem: Problem, unknown: float) -> bool:
        """Whether what the prior leaves unknown, seen through the operator, stands above the measurement noise."""
        if not isinstance(problem.operator, LinearOperator) or not isinstance(problem.noise, Gaussian):
            return True  # The norm of a tangent is not known.
        return unknown * problem.operator_norm() ** 2 > 0.1 * problem.largest_sigma() ** 2


def minimal_residual(
    system: Callable[[Tensor], tuple[Tensor, Tensor]],
    precondition: Callable[[Tensor], Tensor],
    b: Tensor,
    start: Tensor,
    budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve M u = b by generalised conjugate residuals (Eisenstat 1983) with `budget` products, every row for itself.

    Args:
        system: v -> (M v, image of v); the image is accumulated beside u.
        precondition: an approximate inverse of M, up to a factor.
        start: tried as the first direction, with the length that suits it best: a poor one does no harm.

    Returns:
        u, its image, and b - M u.
    """
    basis: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    u, r = torch.zeros_like(b), b
    image: Tensor | None = None
    warm = rows(inner(start, start) > 0, b)
    for k in range(budget):
        p = torch.where(warm, start, precondition(r)) if k == 0 else precondition(r)
        q, s = system(p)
        for p_old, q_old, s_old, square in basis:
            c = inner(q_old, q) / square
            p, q, s = p - rows(c, p) * p_old, q - rows(c, q) * q_old, s - rows(c, s) * s_old
        square = inner(q, q).clamp_min(torch.finfo(s.dtype).tiny)
        alpha = inner(q, r) / square
        u, r = u + rows(alpha, p) * p, r - rows(alpha, q) * q
        image = rows(alpha, s) * s if image is None else image + rows(alpha, s) * s
        basis.append((p, q, s, square))
    assert image is not None
    return u, image, r


@hookimpl
def invsolve_strategies() -> Mapping[str, type]:
    return {"moment": Moment}
