"""Conformance of a prior: shapes, precision, batches, the limit of no noise, and the score of analytic ones."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.contracts.prior import Prior
from invsolve.testing.report import Report


def check_prior(prior: Prior, image_shape: tuple[int, ...] | None = None, device: str = "cpu") -> Report:
    """Check that a prior denoises as `invsolve.Prior` promises.

    Args:
        prior: the prior; moved to `device`.
        image_shape: (C, *spatial), for priors of free size; default 32 pixels along each free axis.
        device: where to run.
    """
    report = Report(f"prior {prior.name or type(prior).__name__}")
    shape = image_shape or tuple(32 if s is None else s for s in prior.event_shape)
    prior = prior.to(device)
    low, high = prior.sigma_min, prior.sigma_max
    report.holds("0 < sigma_min < sigma_max", 0 < low < high, f"sigma_min {low}, sigma_max {high}")
    clean = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).to(device) * 0.3
    noise = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)).to(device)

    def run(x: Tensor, sigma: float | Tensor) -> Tensor:
        with torch.no_grad():
            return prior.denoise(x, torch.as_tensor(sigma, dtype=x.dtype, device=x.device))

    def shapes() -> None:
        for sigma in (low, (low * high) ** 0.5, high):
            out = run(clean + sigma * noise, sigma)
            good = out.shape == clean.shape and out.dtype == clean.dtype and bool(out.isfinite().all())
            report.holds(f"shape, precision, finite at sigma {sigma:.3g}", good, f"got {tuple(out.shape)} {out.dtype}")
        wide = run(clean.double(), 0.3)
        report.holds("takes float64", wide.dtype == torch.float64, f"float64 images come back as {wide.dtype}")

    def batches() -> None:
        x, sigma = clean + 0.3 * noise, 0.3
        together = run(x, sigma)
        alone = torch.cat([run(x[i : i + 1], sigma) for i in range(len(x))])
        error = float((together - alone).abs().max() / together.abs().max())
        report.below("batch independence", error, 1e-4, "an image's estimate depends on the others in its batch")
        levels = torch.tensor([low, 0.1, 1.0, high], device=device)
        mixed = run(clean + levels.view(-1, *[1] * (clean.ndim - 1)) * noise, levels)
        single = torch.cat([run(clean[i : i + 1] + s * noise[i : i + 1], s) for i, s in enumerate(levels)])
        error = float((mixed - single).abs().max() / single.abs().max())
        report.below("a sigma for each row", error, 1e-4, "sigma (B,) and a scalar sigma give different estimates")

    def limit() -> None:
        change = float((run(clean, low) - clean).square().mean().sqrt())
        remedy = (
            "at sigma_min the estimate must stay within a few sigma_min of x: wrong parametrisation or sigma units?"
        )
        report.below("identity as sigma -> 0, in units of sigma_min", change / low, 10.0, remedy)

    def score() -> None:
        log_prob = getattr(prior, "log_prob", None)
        if log_prob is None:
            return
        for sigma in (0.1, 1.0):
            s = torch.tensor(sigma, dtype=torch.float64, device=device)
            x = (clean + sigma * noise).double()
            direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)
            step = 1e-4
            slope = (log_prob(x + step * direction, s) - log_prob(x - step * direction, s)) / (2 * step)
            predicted = (prior.score(x, s) * direction).flatten(1).sum(1)
            error = float(((slope - predicted).abs() / slope.abs().clamp_min(1.0)).max())
            report.below(
                f"score matches finite differences of log_prob, sigma {sigma}",
                error,
                1e-5,
                "D is not the posterior mean",
            )

    def gradient() -> None:
        if not prior.differentiable:
            return
        x = (clean + 0.3 * noise).requires_grad_()
        with torch.enable_grad():
            out = prior.denoise(x, torch.tensor(0.3, device=device))
            good = out.requires_grad
            if good:
                (g,) = torch.autograd.grad(out.sum(), x)
                good = bool(g.isfinite().all()) and bool((g != 0).any())
        report.holds(
            "differentiable", good, "no gradient flows through denoise; set differentiable = False if that is meant"
        )

    for name, check in (
        ("shapes", shapes),
        ("batches", batches),
        ("limit", limit),
        ("score", score),
        ("gradient", gradient),
    ):
        report.attempt(name, check)
    return report
