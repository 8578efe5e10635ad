"""MCGdiff: Monte Carlo guided diffusion (Cardoso 2023), sequential Monte Carlo in the operator's singular basis, no gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.numerics.spectrum import safe_reciprocal
from invsolve.plugins.strategies import _particles as particles
from invsolve.plugins.strategies._likelihood import gaussian_draw


@dataclass(frozen=True)
class MCGDiff(Strategy):
    """Sequential Monte Carlo in the singular basis (Cardoso 2023).

    Particles run the reverse diffusion; in each singular direction the datum draws them, and they are weighted by it.

    Cardoso et al., ICLR 2024 (arXiv 2308.07983), Algorithms 1 and 2, in variance-exploding coordinates. In the singular
    basis the datum y / s is the image's coordinate at the noise level tau = sigma_y / s. Above tau the particles are drawn
    and weighted by the potential N(y / s; x, sigma^2 - tau^2); at tau the coordinate is y / s itself; below it diffuses
    freely. The weights are known before the particles move, so resampling comes first. The last step draws from
    N(D, error) p(y | x). Needs the singular system: closed forms, or the dense matrix of a small operator.

    Every sample is one particle, drawn by weight, of a run of its own with `particles` particles: samples are independent
    whatever their number, and none is a copy of another. The price: a sample costs `particles` times the calls.

    Known bias: of order one over the particles, and growing with the number of data, since the potentials compare the datum
    with the noisy particle and not with its denoised image. Images with many data call for `tds`.

    Args:
        particles: of each sample's run.
        steps: network calls per particle, forward only.
        threshold: resample a run when its effective number of particles is below this part of all.
        start: noise level to start from, network units; default and limit: the prior's largest.
    """

    name = "mcgdiff"
    paper: ClassVar[Paper | None] = Paper(
        "Monte Carlo guided Diffusion for Bayesian linear inverse problems",
        ("Gabriel Cardoso", "Yazid Janati El Idrissi", "Sylvain Le Corff", "Eric Moulines"),
        2024,
        "arXiv:2308.07983",
    )
    cost: ClassVar[str] = "particles x forward"
    weighs_modes: ClassVar[bool] = True
    decomposes: ClassVar[bool] = True

    particles: int = 32
    steps: int = 100
    threshold: float = 0.5
    start: float | None = None

    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    needs: ClassVar[tuple[str, ...]] = ("prior", "linear", "gaussian")
    mean_error: ClassVar[float] = 0.4
    std_ratio: ClassVar[tuple[float, float]] = (0.95, 1.15)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.9, 1.2)
    examples = ({"particles": 4, "steps": 40},)

    def at_cost(self, evaluations: int) -> Self:
        """As many particles as leave 25 steps: here weights gain more than steps."""
        count = min(max(evaluations // 25, 1), self.particles)
        return replace(self, particles=count, steps=max(evaluations // count, 2))

    def schedule(self, problem: Problem) -> Tensor:
        top = problem.prior.sigma_max if self.start is None else min(self.start, problem.prior.sigma_max)
        return schedules.edm(self.steps, problem.prior.sigma_min, top)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        if self.particles < 1:
            raise UserError(f"strategy 'mcgdiff': particles must be at least 1, got {self.particles}")
        top = self.schedule(problem)[0].item()
        zeros = problem.zeros()[:, None].expand(-1, self.particles, *problem.image_shape)
        x = top * rng.normal(zeros).flatten(0, 1)
        system, (datum, level) = problem.svd(), self.data(problem)
        c = system.to_basis(x)
        # N(0, top^2) times the first potential: all weights are equal.
        gain = top**2 / (2 * top**2 - level**2)
        drawn = gain * datum + (1 - gain).clamp_min(0).sqrt() * c
        x = x + system.from_basis(torch.where(level < top, drawn - c, 0.0))
        return {"x": x.view(zeros.shape), "log_weight": x.new_zeros(zeros.shape[:2])}

    def data(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """y / s and tau = sigma_y / s in the singular basis, one row a particle; tau is infinite where there is no datum."""
        system = problem.svd()
        inverse = safe_reciprocal(system.values)
        datum = system.measurement_to_basis(problem.y) * inverse
        noise = torch.as_tensor(problem.sigma).to(datum.device, datum.dtype)
        noise = noise.reshape(-1, *[1] * (datum.ndim - 1)) if noise.ndim else noise
        level = torch.where(system.values > 0, noise * inverse, math.inf).expand(datum.shape)
        return datum.repeat_interleave(self.particles, 0), level.repeat_interleave(self.particles, 0)

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        shape, unknown, system = state["x"].shape, problem.prior.error(sigma), problem.svd()
        estimate, misfit = particles.over_particles(
            problem, state["x"], lambda some, images: denoised(some, images, sigma)
        )
        x, estimate = state["x"].flatten(0, 1), estimate.flatten(0, 1)
        datum, level = self.data(problem)
        log_weight = state["log_weight"] + gained(
            system.to_basis(x), system.to_basis(estimate), datum, level, sigma, sigma_next, unknown
        ).view(shape[:2])
        if sigma_next == 0:
            chosen = particles.one(log_weight, rng.uniform())
            image = gaussian_draw(problem, particles.take(estimate.view(shape), chosen)[:, 0], unknown, rng)
            return {"x": image[:, None], "residual": problem.misfit(problem.residual(image))}
        ancestors, log_weight = particles.resample_where_needed(log_weight, self.threshold, rng)
        x, estimate = (particles.take(v.view(shape), ancestors).flatten(0, 1) for v in (x, estimate))
        noise = rng.normal(state["x"]).flatten(0, 1)
        mean, variance = particles.reverse_kernel(x, estimate, sigma, sigma_next, unknown)
        free = mean + math.sqrt(variance) * noise
        drawn = guided(
            system.to_basis(x),
            system.to_basis(estimate),
            datum,
            level,
            system.to_basis(noise),
            sigma,
            sigma_next,
            unknown,
        )
        x = free + system.from_basis(torch.where(level < sigma, drawn - system.to_basis(free), 0.0))
        return {"x": x.view(shape), "log_weight": log_weight, "residual": misfit[:, 0]}

    def result(self, problem: Problem, state: State) -> Tensor:
        """The chosen particle; before the end, each run's first."""
        return state["x"][:, 0]


def denoised(problem: Problem, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """D and |y - A D|."""
    estimate = problem.denoise(x, sigma)
    return estimate, problem.misfit(problem.residual(estimate))


def gained(
    c: Tensor, d: Tensor, datum: Tensor, level: Tensor, sigma: float, sigma_next: float, unknown: float
) -> Tensor:
    """Log weight of particles for the step to come, (R,): the next potential's expectation over the last potential.

    Args:
        c, d: particles and their denoised images in the singular basis, (R, *basis).
        datum, level: y / s and tau, alike.
    """
    # The datum waits at the next level, or at tau when that comes first.
    stop = level.clamp_min(sigma_next)
    mean, variance = particles.reverse_kernel(c, d, sigma, stop, unknown)
    ahead = log_normal(datum - mean, variance + (stop**2 - level**2))
    behind = log_normal(datum - c, sigma**2 - level**2)
    return torch.where(level < sigma, ahead - behind, 0.0).flatten(1).sum(1)


def guided(
    c: Tensor, d: Tensor, datum: Tensor, level: Tensor, noise: Tensor, sigma: float, sigma_next: float, unknown: float
) -> Tensor:
    """Coordinates at `sigma_next` drawn from the reverse kernel times the potential, for those with tau below `sigma`."""
    mean, variance = particles.reverse_kernel(c, d, sigma, sigma_next, unknown)
    width = sigma_next**2 - level**2
    gain = variance / (variance + width)
    above = mean + gain * (datum - mean) + (gain * width).clamp_min(0).sqrt() * noise
    # Where tau is passed on the way: y / s at tau, and freely from there.
    mean, variance = particles.reverse_kernel(datum, d, level, sigma_next, 0.0)
    below = mean + torch.as_tensor(variance).clamp_min(0).sqrt() * noise
    return torch.where(level > sigma_next, below, above)


def log_normal(away: Tensor, variance: Tensor | float) -> Tensor:
    """log N(away; 0, variance) but for log sqrt(2 pi)."""
    return -away.square() / (2 * variance) - torch.as_tensor(variance).log() / 2
