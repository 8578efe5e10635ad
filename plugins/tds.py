"""TDS: the twisted diffusion sampler (Wu 2023), sequential Monte Carlo around a guided reverse diffusion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from invsolve import hookimpl
from invsolve.contracts import schedules
from invsolve.contracts.linalg import inner
from invsolve.contracts.problem import Problem
from invsolve.contracts.random import ChainRandom
from invsolve.contracts.strategy import State, Strategy
from invsolve.plugins import _particles as smc
from invsolve.plugins._likelihood import gaussian_draw


@dataclass(frozen=True)
class TDS(Strategy):
    particles: int = 16
    steps: int = 100
    twist: Literal["isotropic", "moment"] = "isotropic"
    threshold: float = 0.5
    start: float = 20.0
    analytic: bool = True

    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "linear", "gaussian")

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.edm(self.steps, problem.prior.sigma_min, min(self.start, problem.prior.sigma_max))

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        zeros = problem.zeros()[:, None].expand(-1, self.particles, *problem.image_shape)
        x = self.schedule(problem)[0].item() * rng.normal(zeros)
        return {"x": x, "log_weight": x.new_zeros(x.shape[:2]), "due": x.new_zeros(x.shape[:2])}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        x = state["x"]
        shape = x.shape
        many = smc.for_particles(problem, self.particles)
        guide = moment_twist if self.twist == "moment" else isotropic_twist
        estimate, guided, log_twist = guide(many, x.flatten(0, 1), sigma)
        estimate, guided, log_twist = estimate.view(shape), guided.view(shape), log_twist.view(shape[:2])
        log_weight = state["log_weight"] + log_twist - state["due"]
        unknown = problem.prior.error(sigma)
        if sigma_next == 0:
            chosen = smc.one(log_weight, rng.uniform())
            estimate = smc.take(estimate, chosen)[:, 0]
            x = gaussian_draw(problem, estimate, unknown, rng)[:, None]
            return {"x": x, "residual": problem.misfit(problem.residual(x[:, 0]))}
        ancestors, log_weight = smc.resample_where_needed(log_weight, self.threshold, rng)
        x, estimate, guided, log_twist = (smc.take(v, ancestors) for v in (x, estimate, guided, log_twist))
        ratio = (sigma_next / sigma) ** 2
        variance = sigma_next**2 * (1 - ratio) + ((1 - ratio) ** 2 * unknown if self.analytic else 0)
        push = (1 - ratio) * (guided - estimate)
        noise = math.sqrt(variance) * rng.normal(x)
        x = ratio * x + (1 - ratio) * estimate + push + noise
        proposed = (push.square() + 2 * push * noise).flatten(2).sum(2) / (2 * variance)
        return {"x": x, "log_weight": log_weight, "due": log_twist + proposed}

    def result(self, problem: Problem, state: State) -> Tensor:
        return state["x"][:, 0]


def isotropic_twist(problem: Problem, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    unknown = problem.prior.error(sigma)
    rho = problem.rho(unknown)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        estimate = problem.denoise(x, sigma)
    residual = problem.residual(estimate.detach())
    image = problem.linear.prox(torch.zeros_like(x), residual, rho) / unknown
    (gradient,) = torch.autograd.grad(estimate, x, image)
    fit = inner(residual, residual - unknown * problem.linear(image)) / (torch.as_tensor(rho).flatten() * unknown)
    return estimate.detach(), estimate.detach() + sigma**2 * gradient, -fit / 2


def moment_twist(problem: Problem, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        estimate = problem.denoise(x, sigma)
    residual = problem.residual(estimate.detach())
    count = residual.shape[1]
    columns = []
    for j in range(count):
        e = torch.zeros_like(residual); e[:, j] = 1
        (p,) = torch.autograd.grad(estimate, x, problem.linear.adjoint(e), retain_graph=True)
        columns.append(sigma**2 * p)
    gram = torch.stack([problem.linear(c) for c in columns], 2)
    gram = (gram + gram.mT) / 2 + torch.as_tensor(problem.sigma, dtype=x.dtype)**2 * torch.eye(count, dtype=x.dtype)
    chol = torch.linalg.cholesky(gram)
    u = torch.cholesky_solve(residual[..., None], chol)[..., 0]
    log = -0.5 * (u * residual).sum(1) - chol.diagonal(dim1=1, dim2=2).log().sum(1)
    shift = sum(c * u[:, j].view(-1, *[1] * (x.ndim - 1)) for j, c in enumerate(columns))
    return estimate.detach(), estimate.detach() + shift, log


@hookimpl
def invsolve_strategies() -> Mapping[str, type]:
    return {"tds": TDS}
