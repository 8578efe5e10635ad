"""TDS: the twisted diffusion sampler (Wu 2023), sequential Monte Carlo around a guided reverse diffusion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.linalg import inner, rows, size_of
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies import _particles as particles
from invsolve.plugins.strategies._expected import expected_twist, not_past_the_data
from invsolve.plugins.strategies._likelihood import draw, is_exact

#: Most real numbers in y for the twist "moment", which takes a vector-Jacobian product for each.
MOST_NUMBERS = 64
#: Most for which "auto" takes it: there modes part by few numbers, and a backward pass each is cheap.
FEW_NUMBERS = 4


@dataclass(frozen=True)
class TDS(Strategy):
    """Twisted sequential Monte Carlo (Wu 2023); for posteriors of several modes.

    Particles follow the guided diffusion, and are weighted by what the guidance got wrong.

    Wu et al., NeurIPS 2023 (arXiv 2306.17775), Algorithm 1. The twisting function is psi(x) = N(y; A D, A C A' + sigma_y^2),
    D the denoised particle. Proposals are ancestral steps with D + sigma^2 grad log psi in place of D; the weight of a
    particle is p(x' | x) psi(x') / (p~(x' | x) psi(x)). The paper's C is a hand-set multiple of the identity; here it is the
    prior's measured error ("isotropic"), or each particle's own sigma^2 J, J the Jacobian of D ("moment"), which sees at
    which noise level modes part. The last step draws from N(D, error) p(y | x).

    Every sample is one particle, drawn by weight, of a run of its own with `particles` particles. So samples are
    independent draws whatever their number, none is a copy of another, and memory is that of a batch without particles. The
    price: a sample costs `particles` times the calls.

    An operator that is not linear, or noise that is not Gaussian, takes for A D and A C A' the mean and variance of A(x0), x0
    white around D, by draws through the operator.

    Known bias: of order one over the particles, and that of steps of finite length.

    Args:
        particles: of each sample's run; with 1 nothing is weighted, and the guided diffusion remains.
        steps: network calls per particle, each with a backward pass.
        twist: "isotropic" serves every operator; "moment" takes as many backward passes as y has numbers, at most 64; "auto"
            is "moment" for up to 4 numbers.
        threshold: resample a run when its effective number of particles is below this part of all.
        start: noise level to start from, network units; default and limit: the prior's largest.
        iterations: Langevin proposals of the last draw, where it is not Gaussian.
    """

    name = "tds"
    paper: ClassVar[Paper | None] = Paper(
        "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models",
        ("Luhuan Wu", "Brian L. Trippe", "Christian A. Naesseth", "David M. Blei", "John P. Cunningham"),
        2023,
        "arXiv:2306.17775",
    )
    cost: ClassVar[str] = "particles x (forward + backward)"
    weighs_modes: ClassVar[bool] = True

    particles: int = 8
    steps: int = 100
    twist: Literal["auto", "isotropic", "moment"] = "auto"
    threshold: float = 0.5
    start: float | None = None
    iterations: int = 50

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "linearisation", "gaussian-like")
    mean_error: ClassVar[float] = 0.15
    std_ratio: ClassVar[tuple[float, float]] = (0.95, 1.05)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.9, 1.15)
    examples = ({"particles": 2, "steps": 40},)

    def at_cost(self, evaluations: int) -> Self:
        """Steps first: below 50 the discretisation costs more than the weights gain. Right for one backward pass a step."""
        count = min(max(evaluations // 100, 1), self.particles)
        return replace(self, particles=count, steps=max(evaluations // (2 * count), 2))

    def schedule(self, problem: Problem) -> Tensor:
        top = problem.prior.sigma_max if self.start is None else min(self.start, problem.prior.sigma_max)
        return schedules.edm(self.steps, problem.prior.sigma_min, top)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        if self.particles < 1:
            raise UserError(f"strategy 'tds': particles must be at least 1, got {self.particles}")
        numbers = numbers_of(problem)
        if self.twist == "moment" and not is_exact(problem):
            raise UserError(
                "strategy 'tds': twist 'moment' needs a linear operator and Gaussian noise; leave twist out"
            )
        if self.twist == "moment" and numbers > MOST_NUMBERS:
            raise UserError(
                f"strategy 'tds': twist 'moment' takes at most {MOST_NUMBERS} numbers in y, here are {numbers}; use "
                "twist='isotropic', or strategy 'mmps'"
            )
        zeros = problem.zeros()[:, None].expand(-1, self.particles, *problem.image_shape)
        x = self.schedule(problem)[0].item() * rng.normal(zeros)
        return {"x": x, "log_weight": x.new_zeros(x.shape[:2]), "owed": x.new_zeros(x.shape[:2])}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        exact = is_exact(problem)
        moment = exact and (self.twist == "moment" or (self.twist == "auto" and numbers_of(problem) <= FEW_NUMBERS))
        twisted = moment_twist if moment else isotropic_twist if exact else expected_twist
        x, unknown = state["x"], problem.prior.error(sigma)
        estimate, pull, log_twist, residual = particles.over_particles(
            problem, x, lambda some, images: twisted(some, images, sigma)
        )
        log_weight = state["log_weight"] + log_twist - state["owed"]
        if sigma_next == 0:
            chosen = particles.one(log_weight, rng.uniform())
            centre = particles.take(estimate, chosen)[:, 0]
            pace = centre.new_zeros(problem.batch)
            image, _ = draw(problem, centre, unknown, centre, pace, self.iterations, rng)
            return {"x": image[:, None], "residual": problem.misfit(problem.residual(image))}
        ancestors, log_weight = particles.resample_where_needed(log_weight, self.threshold, rng)
        x, estimate, pull, log_twist, residual = (
            particles.take(v, ancestors) for v in (x, estimate, pull, log_twist, residual)
        )
        push = (1 - (sigma_next / sigma) ** 2) * pull
        if moment:
            # The average error is too wide for particles that have settled on a mode: the plain ancestral kernel.
            mean, variance = particles.reverse_kernel(x, estimate, sigma, sigma_next, 0.0)
        else:
            mean, variance = particles.reverse_kernel(x, estimate, sigma, sigma_next, unknown)
            push = (
                short_of_the_data(problem, push, residual)
                if exact
                else not_past_the_data(problem, estimate, push, residual)
            )
        noise = math.sqrt(variance) * rng.normal(x)
        # log p~(x' | x) - log p(x' | x) at x' = mean + push + noise.
        favour = (push.square() + 2 * push * noise).flatten(2).sum(2) / (2 * variance)
        owed = log_twist + favour
        misfit = problem.misfit(residual[:, 0])
        return {"x": mean + push + noise, "log_weight": log_weight, "owed": owed, "residual": misfit}

    def result(self, problem: Problem, state: State) -> Tensor:
        """The chosen particle; before the end, each run's first."""
        return state["x"][:, 0]


def short_of_the_data(problem: Problem, push: Tensor, residual: Tensor) -> Tensor:
    """The push (B, K, ...), shortened where it alone would carry a particle past the data.

    A long step with a C that is too small in some direction would overshoot, the next one more so. Any proposal is
    allowed, the weights make up for it; steps that are fine enough are left as they are.
    """
    reach = problem.linear(push.flatten(0, 1))
    way = inner(reach, residual.flatten(0, 1)) / inner(reach, reach).clamp_min(torch.finfo(push.dtype).tiny)
    return push * way.clamp(0, 1).view(*push.shape[:2], *[1] * (push.ndim - 2))


def isotropic_twist(problem: Problem, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """D, sigma^2 grad log psi, log psi up to a constant and y - A D for C = the prior's measured error."""
    unknown = problem.prior.error(sigma)
    rho = problem.rho(unknown)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = problem.denoise(x, sigma)
    residual = problem.residual(denoised.detach())
    # image = A'u with u = (C A A' + sigma_y^2)^-1 (y - A D).
    image = problem.tikhonov(residual, unknown) / unknown
    (pull,) = torch.autograd.grad(denoised, x, image)
    # (y - A D)'u as C |A'u|^2 + sigma_y^2 |u|^2: the plain product would cancel to nothing where sigma_y is small.
    rest = residual - unknown * problem.linear(image)
    scale = unknown * (rho.flatten() if isinstance(rho, Tensor) else rho)
    fit = unknown * inner(image, image) + inner(rest, rest) / scale
    return denoised.detach(), sigma**2 * pull, -fit / 2, residual


def moment_twist(problem: Problem, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for C = sigma^2 J of each particle; the pull leaves out the slope of C, for which the weights make up."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = problem.denoise(x, sigma)
    residual = problem.residual(denoised.detach())
    away = as_numbers(residual)
    count = away.shape[1]
    units = torch.eye(count, dtype=away.dtype, device=away.device)
    units = torch.view_as_complex(units.view(count, -1, 2)) if residual.is_complex() else units
    images = problem.linear.adjoint(units.view(count, *residual.shape[1:]))
    columns = []
    for j, image in enumerate(images):
        (product,) = torch.autograd.grad(denoised, x, image.expand_as(x), retain_graph=j + 1 < count)
        columns.append(sigma**2 * product)
    gram = torch.stack([as_numbers(problem.linear(c)) for c in columns], 2)
    unknown = problem.prior.error(sigma)
    rho = problem.rho(unknown)
    noise = unknown * (rho.view(-1, 1) if isinstance(rho, Tensor) else torch.full_like(away[:, :1], rho))
    # A learned J is neither symmetric nor positive; its symmetric positive part is the nearest covariance.
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    values = values.clamp_min(0) + noise
    inside = (vectors.mT @ away[..., None])[..., 0]
    u = (vectors @ (inside / values)[..., None])[..., 0]
    pull = torch.stack([rows(u[:, j], c) * c for j, c in enumerate(columns)]).sum(0)
    log_twist = -(inside.square() / values + values.log()).sum(1) / 2
    return denoised.detach(), pull, log_twist, residual


def as_numbers(y: Tensor) -> Tensor:
    """The real numbers of a measurement (B, *measurement) in a row, (B, m) or (B, 2 m)."""
    return torch.view_as_real(y).flatten(1) if y.is_complex() else y.flatten(1)


def numbers_of(problem: Problem) -> int:
    """Real numbers in one measurement."""
    return size_of(problem.y.shape[1:]) * (2 if problem.y.is_complex() else 1)
