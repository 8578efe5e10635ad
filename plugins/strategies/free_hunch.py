"""Free Hunch (Rissanen 2025): the likelihood with the covariance that the images' spectrum and the way itself tell of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import rows
from invsolve.numerics.modes import Modes, white
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._covariance import Hunch
from invsolve.plugins.strategies._multistep import advance


@dataclass(frozen=True)
class FreeHunch(Strategy):
    """The likelihood with a covariance told by spectrum and trajectory (Rissanen 2025); one network call a step.

    D_y = D + C A' u with (A C A' + sigma_y^2) u = y - A D, where C begins as the spectrum of the images, and is corrected at each
    step by BFGS so that it explains how D has changed: C d = e, d the way of x, e = sigma^2 (D - what C foretold).

    Rissanen, Heinonen and Solin, ICLR 2025: C is the covariance sigma^2 J of x0 given x_sigma, J the Jacobian of D. Between noise
    levels C(sigma')^-1 = C(sigma)^-1 + 1 / sigma'^2 - 1 / sigma^2. Theirs pulls the data through J itself, sigma^2 J A' u, one
    vector-Jacobian product a call (`products="pull"`); ours through C, which needs none. Also ours: the basis and spectrum that
    the prior states (theirs: cosines), `mmps`'s two-step method and levels. The preset `published` has their pull, Heun's
    method, Karras' levels and the limits between which they correct C. A prior that states no spectrum begins with one
    variance for all, as their identity does; `products="learn"`, ours too, then corrects C by the product itself before it is
    used, C A' u = sigma^2 J A' u: after some steps it holds what a solve by products would ask for.

    Known bias: that of C. With the spectrum of a Gaussian, or with `learn`, its samples are exact; from one variance for all, the
    way of x tells too little where the data leave much open: means err by up to 0.6 posterior standard deviations, samples are
    up to 1.3 times too wide, and the preset can diverge. Modes of a mixture and sparse jumps get wrong weights, as by `mmps`.

    Args:
        steps: noise levels; each costs one network call, two with `heun`, and as many backward passes with `products`.
        products: of J: none; pull the data through them; learn C from them.
        rank: corrections a run, at most; each keeps two images in memory.
        lower, upper: noise levels between which the way of x corrects C, network units: far above 1 D is rounded to more than it
            tells.
        heun: Heun's method on Karras' levels, the deterministic flow, as theirs.
        churn: without `heun`: 1 for the stochastic solver, 0 for the deterministic flow.
        start: noise level to start from, network units; at most the prior's largest.
        iterations: of the inner solver, which asks no network, at most.
    """

    name = "free-hunch"
    paper: ClassVar[Paper | None] = Paper(
        "Free Hunch: Denoiser Covariance Estimation for Diffusion Models Without Extra Costs",
        ("Severi Rissanen", "Markus Heinonen", "Arno Solin"),
        2024,
        "arXiv:2410.11149",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {"steps": 30, "start": 80.0, "heun": True, "products": "pull", "lower": 1.0, "upper": 10.0}
    }

    steps: int = 28
    products: Literal["none", "pull", "learn"] = "none"
    rank: int = 10
    lower: float = 0.0
    upper: float = 1.0
    heun: bool = False
    churn: float = 1.0
    start: float = 20.0
    iterations: int = 50

    inner_limit: ClassVar[str] = "iterations"
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.1
    std_ratio: ClassVar[tuple[float, float]] = (0.98, 1.02)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.97, 1.03)

    def at_cost(self, evaluations: int) -> Self:
        calls = (1 if self.products == "none" else 2) * (2 if self.heun else 1)
        return replace(self, steps=max(evaluations // calls, 2))

    def schedule(self, problem: Problem) -> Tensor:
        low, high = problem.prior.sigma_min, min(self.start, problem.prior.sigma_max)
        return (schedules.edm if self.heun else schedules.geometric)(self.steps, low, high)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        if self.products != "none" and not problem.prior.differentiable:
            raise UserError(
                f"strategy 'free-hunch': products={self.products!r} needs a prior that can be differentiated; "
                "take products='none'"
            )
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        nothing = Hunch.of(modes(problem, x), x)
        return {"x": x, "u": torch.zeros_like(problem.y), "vectors": nothing.vectors, "blocks": nothing.blocks}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        last = sigma if self.heun else self.schedule(problem)[max(rng.step - 2, 0)].item()
        x, before = state["x"], state.get("moved")
        state = self.condition(problem, state, sigma, last)
        estimate = state["moved"]
        if not self.heun:
            return {**state, "x": advance(x, estimate, before, sigma, sigma_next, self.churn, rng)}
        slope = (x - estimate) / sigma
        end = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            state = self.condition(problem, {**state, "x": end}, sigma_next, sigma)
            end = x + (sigma_next - sigma) * (slope + (end - state["moved"]) / sigma_next) / 2
        return {**state, "x": end}

    def condition(self, problem: Problem, state: State, sigma: float, last: float) -> State:
        """The state with D_y at its x under "moved", and what the next call has to know."""
        with torch.set_grad_enabled(self.products != "none"):
            point = state["x"].detach().requires_grad_(self.products != "none")
            denoised = problem.denoise(point, sigma)
        x, estimate = point.detach(), denoised.detach()
        hunch = known = Hunch(modes(problem, x), state["vectors"], state["blocks"])
        if self.products != "learn" and "there" in state and self.lower < sigma < self.upper:
            foretold = hunch.after(state["denoised"], state["there"], last, sigma)
            hunch = hunch.corrected(x - state["there"], sigma**2 * (estimate - foretold), sigma)
        residual, covariance = problem.residual(estimate), hunch.covariance(sigma)
        u = self.solve(problem, covariance, sigma, residual, state["u"])
        pulled = problem.linear.adjoint(u)
        if self.products == "none":
            pull = covariance(pulled)
        else:
            (product,) = torch.autograd.grad(denoised, point, pulled)
            pull = sigma**2 * product
        if self.products == "learn":
            hunch = hunch.corrected(pulled, pull, sigma)
            covariance = hunch.covariance(sigma)
            u = self.solve(problem, covariance, sigma, residual, u)
            pull = covariance(problem.linear.adjoint(u))
        moved = estimate + pull
        # What there is no more room for serves this step.
        kept = hunch if hunch.corrections <= self.rank else known
        seen = {
            "there": x,
            "denoised": estimate,
            "moved": moved,
            "u": u,
            "vectors": kept.vectors,
            "blocks": kept.blocks,
        }
        return {"x": x, **seen, "residual": problem.misfit(problem.residual(moved))}

    def solve(
        self, problem: Problem, covariance: Callable[[Tensor], Tensor], sigma: float, residual: Tensor, start: Tensor
    ) -> Tensor:
        """(A C A' + sigma_y^2)^-1 residual."""
        unknown = problem.prior.error(sigma)
        variance = torch.as_tensor(unknown * problem.rho(unknown)).flatten()
        variance = rows(variance, residual) if len(variance) > 1 else variance

        def system(u: Tensor) -> Tensor:
            return problem.linear(covariance(problem.linear.adjoint(u))) + variance * u

        return problem.watched(CG(1e-3, self.iterations)).solve(system, residual, start).x


def modes(problem: Problem, x: Tensor) -> Modes:
    """What the prior states of its covariance, float64; one variance for all pixels if it states nothing."""
    known = problem.prior.modes(x.double())
    return white(problem.prior.error(problem.prior.sigma_max), x.double()) if known is None else known
