"""MMPS (Rozet 2024), also called moment: the likelihood score with the denoising posterior's own covariance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.numerics import schedules
from invsolve.numerics.krylov import GCR
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._local import local
from invsolve.plugins.strategies._multistep import advance


@dataclass(frozen=True)
class MMPS(Strategy):
    """The likelihood with the prior's own uncertainty (Rozet 2024); closest to the exact posterior.

    Sample with D_y = D + sigma^2 J A' u, where u solves (A sigma^2 J A' + sigma_y^2) u = y - A D, J the Jacobian of D.

    sigma^2 J is the covariance of x0 given x_sigma (Tweedie's second-order formula), so for Gaussian priors D_y is exactly
    E[x0 | x_sigma, y], and the sampler converges to the posterior. Products with it are vector-Jacobian products of one
    network call.

    Theirs: the covariance sigma^2 J in the likelihood (Boys 2023, TMPD, which takes the sums of its rows for a diagonal), and
    to solve with it by a few products instead (Rozet 2024, MMPS: conjugate gradients from zero, one to five steps, in a DDIM
    sampler on the network's own schedule). Ours is the rest. Solves start from the previous step's u, are preconditioned by the
    operator's proximal solve with the prior's measured error in place of sigma^2 J, and minimise the residual over a
    growing basis, which needs no symmetry of a learned network's J. The part of the residual that so few products leave
    unsolved is then given to that proximal solve; it vanishes as the products suffice. Between steps, which all have one
    length in log sigma, DPM-Solver++ 2M (Lu 2022) with a coefficient that keeps the samples' width.

    An operator that is not linear is replaced by its tangent at the previous step's D_y, noise that is not Gaussian by
    Gaussian noise of the variance expected there. The tangent takes operators that torch can differentiate twice. Those that
    are flat over ranges of x (saturation, rounding) are refused: of single pixels their samples spread half as wide as the
    posterior, with means 0.5 to 1.2 of its widths off.

    Known bias: it takes p(x0 | x_sigma) for a Gaussian, so modes of a mixture and sparse jumps get wrong weights. Spread is
    the prior's: a network that is surer than it is right gives samples that are too alike.

    Args:
        steps: network calls.
        solves: vector-Jacobian products a step, at most; thrice at the first, one where the measurement noise dominates.
        churn: 1 for the stochastic solver, which forgets the errors of early steps; 0 for the deterministic flow.
        start: noise level to start from, network units; at most the prior's largest.
    """

    name = "mmps"
    aliases: ClassVar[tuple[str, ...]] = ("moment",)
    paper: ClassVar[Paper | None] = Paper(
        "Learning Diffusion Priors from Observations by Expectation Maximization",
        ("François Rozet", "Gérôme Andry", "François Lanusse", "Gilles Louppe"),
        2024,
        "arXiv:2405.13712",
    )
    builds_on: ClassVar[tuple[Paper, ...]] = (
        Paper(
            "Tweedie Moment Projected Diffusions For Inverse Problems",
            (
                "Benjamin Boys",
                "Mark Girolami",
                "Jakiw Pidstrigach",
                "Sebastian Reich",
                "Alan Mosca",
                "O. Deniz Akyildiz",
            ),
            2023,
            "arXiv:2310.06721",
        ),
        Paper(
            "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
            ("Cheng Lu", "Yuhao Zhou", "Fan Bao", "Jianfei Chen", "Chongxuan Li", "Jun Zhu"),
            2022,
            "arXiv:2211.01095",
        ),
    )
    cost: ClassVar[str] = "forward + 3 backward"
    preference: ClassVar[int | None] = 0
    unimodal: ClassVar[bool] = True

    steps: int = 28
    solves: int = 3
    churn: float = 1.0
    start: float = 20.0

    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "linearisation", "tangent", "gaussian-like")
    mean_error: ClassVar[float] = 0.1
    std_ratio: ClassVar[tuple[float, float]] = (0.98, 1.02)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.97, 1.03)

    def at_cost(self, evaluations: int) -> Self:
        return replace(self, steps=max(evaluations // (1 + self.solves), 2))

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.geometric(self.steps, problem.prior.sigma_min, min(self.start, problem.prior.sigma_max))

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        return {"x": x, "u": torch.zeros_like(problem.y), "before": x}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x, before = state["x"], state["before"]
        start = (state["u"], before) if rng.step > 1 else None
        estimate, residual, u = self.condition(problem, x, sigma, start)
        x = advance(x, estimate, None if start is None else before, sigma, sigma_next, self.churn, rng)
        return {"x": x, "u": u, "before": estimate, "residual": problem.misfit(residual)}

    def condition(
        self, problem: Problem, x: Tensor, sigma: float, start: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """D_y at x, the residual y - A D_y, and u.

        Args:
            start: the previous step's u and D_y, where the operator is linearised; None at the first step, which
                linearises at D.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = problem.denoise(x, sigma)
        mean = denoised.detach()
        near = local(problem, mean if start is None else start[1])

        def system(v: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
            (product,) = torch.autograd.grad(denoised, x, pulled, retain_graph=True)
            image = sigma**2 * product
            return near.forward(image) + near.variance * v, image

        unknown = problem.prior.error(sigma)
        budget, enough = 3 * self.solves, None
        if start is not None:
            budget, enough = self.budget(problem, unknown)
        first = None if start is None else (start[0], near.adjoint(start[0]))
        u, shift, rest = GCR(budget).solve(
            system, lambda r: near.direction(r, unknown), near.residual(mean), first, enough
        )
        # What a few products leave unsolved is not left out of the image: it gets the white covariance of the same error.
        extra = near.white(rest, unknown)
        return mean + shift + extra, rest + near.variance * u - near.forward(extra), u

    def budget(self, problem: Problem, unknown: float) -> tuple[int, Tensor | None]:
        """Products to take, and rows (B,) for which one is enough: there the noise hides what the prior leaves unknown."""
        if not isinstance(problem.operator, LinearOperator) or not isinstance(problem.noise, Gaussian):
            return self.solves, None  # The norm of a tangent is not known.
        seen = 10 * unknown * problem.operator_norm() ** 2
        if isinstance(problem.sigma, Tensor):
            # Asking whether it is all rows would wait for the device.
            return self.solves, (seen <= problem.sigma.flatten() ** 2).to(problem.y.device)
        return self.solves if seen > problem.sigma**2 else 1, None
