"""The likelihood that a denoised particle expects: mean and spread of A(x0) for x0 white around D, by draws. For `tds`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.contracts.problem import Problem
from invsolve.numerics.linalg import inner, rows
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._particles import for_rows

#: Draws around D, in pairs of opposite sign.
DRAWS = 32


def expected_twist(problem: Problem, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """D, sigma^2 grad log psi, log psi up to a constant and y - A(D), for any operator, psi(x) = N(y; m, diag(v) + noise).

    m and v are mean and variance of A(D + sqrt(V) u) over draws u that all particles share, V the prior's measured error: where
    the operator is bent, its tangent at D would promise what no image near D gives.
    """
    noise, half = problem.noise, ChainRandom(0, [(0, m) for m in range(DRAWS // 2)])
    around = half.normal(problem.zeros()[:1].expand(DRAWS // 2, *x.shape[1:]))
    # Their second moment is V exactly, entry by entry.
    around = around / around.square().mean(0).sqrt().clamp_min(1e-6)
    around = math.sqrt(problem.prior.error(sigma)) * torch.cat([around, -around])
    owner = torch.arange(len(x), device=x.device).repeat_interleave(DRAWS)
    some = for_rows(problem, owner)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = problem.denoise(x, sigma)
        images = (denoised[:, None] + around).flatten(0, 1)
        seen = noise.mean(some.operator(images)) if noise.shifts else some.operator(images)
        seen = seen.view(len(x), DRAWS, *seen.shape[1:])
        mean = seen.mean(1)
        # Of a complex entry both parts count, each with half of the spread.
        parts = 2 if problem.y.is_complex() else 1
        spread = (seen - mean[:, None]).abs().square().mean(1) / parts
        variance = (spread + noise.std(mean.detach()).square()).clamp_min(torch.finfo(x.dtype).tiny)
        log_twist = -((problem.y - mean).abs().square() / variance + parts * variance.log()).flatten(1).sum(1) / 2
        (slope,) = torch.autograd.grad(log_twist.sum(), x)
    denoised = denoised.detach()
    return denoised, sigma**2 * slope, log_twist.detach(), problem.residual(denoised)


def not_past_the_data(problem: Problem, estimate: Tensor, push: Tensor, residual: Tensor) -> Tensor:
    """The push (B, K, ...), shortened where it alone would carry D past the data, as the operator itself tells."""
    flat = estimate.flatten(0, 1)
    owner = torch.arange(problem.batch, device=push.device).repeat_interleave(push.shape[1])
    some, gap = for_rows(problem, owner), residual.flatten(0, 1)
    reach = gap - some.residual(flat + push.flatten(0, 1))
    way = inner(reach, gap) / inner(reach, reach).clamp_min(torch.finfo(push.dtype).tiny)
    return rows(way.clamp(0, 1), flat).view(*push.shape[:2], *[1] * (push.ndim - 2)) * push
