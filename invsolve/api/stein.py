"""Whether samples are draws from prior times likelihood, without a truth: Stein identities of the score at two noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import inner, norm, rows
from invsolve.numerics.random import ChainRandom

#: Noise levels at which the score is taken, over the samples' own root mean square standard deviation.
LEVELS = (0.25, 1.0)
#: The covariance is applied through the network, once an iteration; the rest is far below what samples scatter by.
SOLVER = CG(1e-4, 60)
#: Images of up to so many pixels have the trace of a filter computed, larger ones estimated by this many probes.
EXACT_TRACE, PROBES = 1024, 16
PARTS = ("width", "width_measured", "width_unmeasured")


@dataclass(frozen=True)
class Terms:
    """What the samples of one item contribute to the Stein identities, each 0 on average for exact draws.

    Attributes:
        width: by part of the image space, (S,): variance over the posterior's, seen through the added noise, less 1.
        reach: by part, how much of a change of the variance the added noise lets through, 0 to 1.
        pairs: (S, S) for each of `LEVELS`: products of two samples' errors, in posterior standard deviations squared; the
            diagonal is not used.
        power: for each of `LEVELS` the number of directions that count in `pairs`, weighted.
        spread_unmeasured: root mean square standard deviation of what the data do not determine, network units.
        residual, dof: |y - A x| of each sample over what the noise explains, (S,), and of how many numbers.
        residual_mean: the same of the samples' mean.
        residual_expected: what that is for exact draws with this spread: the noise, less the spread of A x.
    """

    width: dict[str, Tensor]
    reach: dict[str, float]
    pairs: tuple[Tensor, ...]
    power: tuple[float, ...]
    spread_unmeasured: float
    residual: Tensor
    dof: float
    residual_mean: float
    residual_expected: float


def unfit(problem: Problem) -> str:
    """Why the score of this posterior cannot be had; empty where it can."""
    prior = problem.known
    if prior is None:
        return "there is no prior to hold the samples against"
    if problem.latent is not None:
        return "the prior's score is one of latents, not of images"
    if not prior.differentiable:
        return f"prior {prior.name or type(prior).__name__!r} cannot be differentiated"
    if not isinstance(problem.operator, LinearOperator) or problem.noise.shifts or not problem.noise.gaussian_like:
        return "the likelihood's score is taken for linear operators and Gaussian-like noise"
    return ""


def stein_terms(problem: Problem, images: Tensor, rng: ChainRandom, batch: int = 64) -> Terms:
    """The Stein identities of one item's samples.

    A kernel Stein discrepancy asks whether E[K(x, x') s(x)] and the trace of K's derivatives cancel, s the score of the
    target. With a scalar kernel of a bandwidth it loses its power as the dimension grows; here the kernel is matrix-valued,
    K = W + sum over P of P (x - c)(x' - c)' P: the constant part sees a biased mean, each projection P a width that is wrong
    in that part of the image space, and both gain from every pixel. c is the samples' own mean.

    The score is that of the posterior smoothed by a little noise, at samples with that noise added: s = (D_y - z) / sigma^2,
    where D_y is the denoiser conditioned on y by its own covariance sigma^2 J (exact for Gaussian priors, and the prior's
    score plus that of the likelihood for small sigma). W is that covariance, which weighs each direction by the posterior.

    Args:
        problem: one item's posterior, a row a sample; `unfit` found nothing.
        images: (S, C, *spatial), network units, S >= 3.
        rng: of S chains, for the noise that is added.
        batch: rows that go through the network at once.
    """
    count, prior = len(images), problem.prior
    flat = images.flatten(1)
    spread = float(flat.var(0).mean().sqrt())
    known = math.sqrt(prior.error(prior.sigma_max))
    apart, whole = _parts(problem, images, known)
    white = rng.normal(images)
    pairs, power = [], []
    width: dict[str, Tensor] = {}
    reach: dict[str, float] = {}
    for k, level in enumerate(LEVELS):
        sigma = min(max(level * spread, prior.sigma_min), max(known, prior.sigma_min))
        noisy = images + sigma * white
        estimate = torch.cat([conditional(problem, noisy, sigma, slice(i, i + batch)) for i in range(0, count, batch)])
        score, error = (v.flatten(1).double() for v in ((estimate - noisy) / sigma**2, images - estimate))
        product = -(score @ error.T)
        product = (product + product.T) / 2
        pairs.append(product)
        power.append(float(_off_diagonal(product).var()))
        if k == 0:
            centred = (noisy - noisy.mean(0)).double()
            away, factor = score - score.mean(0), count / (count - 1)
            for name, part in apart.items():
                seen = part(centred.to(images)).flatten(1).double()
                pulled = part(away.to(images).view(images.shape)).flatten(1).double()
                width[name] = -factor * (away * seen).sum(1) / whole[name] - 1
                hidden = sigma**2 * factor * float((away * pulled).sum(1).mean()) / whole[name]
                reach[name] = min(max(1 - hidden, 0.05), 1.0)
    lost = apart["width_unmeasured"](images - images.mean(0)) if "width_unmeasured" in apart else images[:0]
    hidden_spread = float((lost.square().sum() / (count - 1) / whole["width_unmeasured"]).sqrt()) if len(lost) else 0.0
    return Terms(width, reach, tuple(pairs), tuple(power), hidden_spread, *_residuals(problem, images))


def conditional(problem: Problem, z: Tensor, sigma: float, which: slice = slice(None)) -> Tensor:
    """E[x | x + sigma n = z, y] for rows of a problem, (B, C, *spatial): D + V A' (A V A' + R)^-1 (y - A D), V = sigma^2 J."""
    operator, z = problem.linear, z[which]
    with torch.enable_grad():
        x = z.detach().requires_grad_()
        denoised = problem.denoise(x, sigma)
    mean = denoised.detach()
    mask = operator.measured()
    variance = problem.noise.std_from(problem.y).to(z.device, z.dtype).expand(problem.y.shape)[which].square()

    def image(v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(denoised, x, operator.adjoint(v), retain_graph=True)
        return sigma**2 * product

    def system(v: Tensor) -> Tensor:
        seen = operator(image(v)) + variance * v
        return seen if mask is None else seen * mask

    rest = problem.y[which] - operator(mean)
    rest = rest if mask is None else rest * mask
    return mean + image(SOLVER.solve(system, rest).x)


Filter = Callable[[Tensor], Tensor]


def _parts(problem: Problem, images: Tensor, known: float) -> tuple[dict[str, Filter], dict[str, float]]:
    """The whole image, what the data determine of it, and what they do not, as filters; and their traces.

    Not determined is rho (A'A + rho)^-1 with rho = sigma_y^2 / v, v the prior's variance of a pixel: directions in which the
    noise is larger than what the prior's images vary by. Parts of less than a pixel are left out.
    """
    size = images[0].numel()
    nothing = torch.zeros_like(problem.y)
    rho = problem.noise_level()[:1] ** 2 / known**2
    rho = rho.clamp_min(1e-7 * problem.operator_norm() ** 2).to(images)

    def unmeasured(x: Tensor) -> Tensor:
        data = nothing[:1].expand(len(x), *nothing.shape[1:])
        return problem.linear.prox(x, data, rows(rho.expand(len(x)), x), CG(1e-4, 200))

    if size <= EXACT_TRACE:
        basis = torch.eye(size, dtype=images.dtype, device=images.device).view(size, *images.shape[1:])
        trace = sum(float(inner(block, unmeasured(block)).sum()) for block in basis.split(256))
    else:
        probes = ChainRandom(0, [(0, k) for k in range(PROBES)]).normal(images[:1].expand(PROBES, *images.shape[1:]))
        trace = float(inner(probes, unmeasured(probes)).mean())
    filters: dict[str, Filter] = {"width": lambda x: x}
    traces = {"width": float(size), "width_measured": size - trace, "width_unmeasured": trace}
    if traces["width_measured"] > 1:
        filters["width_measured"] = lambda x: x - unmeasured(x)
    if traces["width_unmeasured"] > 1:
        filters["width_unmeasured"] = unmeasured
    return filters, traces


def _residuals(problem: Problem, images: Tensor) -> tuple[Tensor, float, float, float]:
    """`Terms.residual`, `dof`, `residual_mean` and `residual_expected`."""
    with torch.no_grad():
        ratio, numbers = problem.discrepancy(images)
        mean = images.mean(0, keepdim=True).expand_as(images)
        of_mean, _ = problem.discrepancy(mean)
        std = problem.noise.std_from(problem.y).expand(problem.y.shape)
        seen = problem.linear(images - mean) / std.clamp_min(1e-30)
        mask = problem.operator.measured()
        seen = seen if mask is None else seen * mask
        spread = float((norm(seen).double() ** 2).mean()) / problem.dof()
    # |y - A mean|^2 = mean of |y - A x|^2 - mean of |A (x - mean)|^2, and the first is the noise's.
    return ratio.double().cpu(), float(numbers[0]), float(of_mean[0]), math.sqrt(max(1 - spread, 0.0))


def _off_diagonal(matrix: Tensor) -> Tensor:
    """The entries above the diagonal."""
    row, column = torch.triu_indices(len(matrix), len(matrix), 1)
    return matrix[row, column]
