"""Conformance of a prior: shapes, precision, batches, the limit of no noise, and the score of analytic ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial

import torch
from torch import Tensor

from invsolve.contracts.prior import Prior
from invsolve.testing.cases import Case, below, expecting, holds, report_of
from invsolve.testing.report import Finding, Report


class Trial:
    """A prior on a device, four images and the noise to put on them."""

    def __init__(self, prior: Prior, image_shape: tuple[int, ...] | None, device: str) -> None:
        self.given, self.device = prior, device
        self.shape = image_shape or tuple(32 if s is None else s for s in prior.event_shape)
        self.low, self.high = prior.sigma_min, prior.sigma_max

    @cached_property
    def prior(self) -> Prior:
        return self.given.to(self.device)

    def normal(self, seed: int) -> Tensor:
        """Standard normal numbers (4, C, *spatial)."""
        return torch.randn(4, *self.shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    @cached_property
    def clean(self) -> Tensor:
        return self.normal(0) * 0.3

    @cached_property
    def noise(self) -> Tensor:
        return self.normal(1)

    def run(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D(x, sigma)."""
        with torch.no_grad():
            return self.prior.denoise(x, torch.as_tensor(sigma, dtype=x.dtype, device=x.device))


def prior_cases(prior: Prior, image_shape: tuple[int, ...] | None = None, device: str = "cpu") -> list[Case]:
    """The properties of a prior, see `check_prior`."""
    trial = Trial(prior, image_shape, device)
    silent = "" if hasattr(prior, "log_prob") else "no log_prob"
    fixed = "" if prior.differentiable else "not differentiable"
    cases: list[Case] = []

    def add(name: str, check: Callable[..., Finding], *arguments: object, absent: str = "") -> None:
        cases.append(Case(name, partial(check, trial, *arguments), absent))

    add("0 < sigma_min < sigma_max", _levels)
    for where, sigma in (
        ("least sigma", trial.low),
        ("middle sigma", abs(trial.low * trial.high) ** 0.5),
        ("largest sigma", trial.high),
    ):
        add(f"shape and precision, {where}", _shape, sigma)
    add("takes float64", _wide)
    add("batch independence", _independent)
    add("one sigma per row", _rows)
    add("identity as sigma -> 0", _limit)
    for sigma in (0.1, 1.0):
        add(f"score matches log_prob, sigma {sigma}", _score, sigma, absent=silent)
    add("differentiable", _gradient, absent=fixed)
    return cases


def check_prior(
    prior: Prior,
    image_shape: tuple[int, ...] | None = None,
    device: str = "cpu",
    expected: Mapping[str, str] | None = None,
) -> Report:
    """Check that a prior denoises as `invsolve.Prior` promises: the cases of `checks`, one line each.

    Args:
        prior: the prior; moved to `device`.
        image_shape: (C, *spatial), for priors of free size; default 32 pixels along each free axis.
        device: where to run.
        expected: properties known not to hold, with the reason.

    Raises:
        UserError: `expected` names no property.
    """
    cases = prior_cases(prior, image_shape, device)
    return report_of(f"prior {prior.name or type(prior).__name__}", expecting(cases, expected or {}))


def _levels(t: Trial) -> Finding:
    return holds(0 < t.low < t.high, f"sigma_min {t.low}, sigma_max {t.high}")


def _shape(t: Trial, sigma: float) -> Finding:
    out = t.run(t.clean + sigma * t.noise, sigma)
    good = out.shape == t.clean.shape and out.dtype == t.clean.dtype and bool(out.isfinite().all())
    return holds(good, f"got {tuple(out.shape)} {out.dtype}, or not finite, at sigma {sigma:.3g}")


def _wide(t: Trial) -> Finding:
    wide = t.run(t.clean.double(), 0.3)
    return holds(wide.dtype == torch.float64, f"float64 images come back as {wide.dtype}")


def _independent(t: Trial) -> Finding:
    x, sigma = t.clean + 0.3 * t.noise, 0.3
    together = t.run(x, sigma)
    alone = torch.cat([t.run(x[i : i + 1], sigma) for i in range(len(x))])
    error = float((together - alone).abs().max() / together.abs().max())
    return below(error, 1e-4, "an image's estimate depends on the others in its batch")


def _rows(t: Trial) -> Finding:
    levels = torch.tensor([t.low, 0.1, 1.0, t.high], device=t.device)
    mixed = t.run(t.clean + levels.view(-1, *[1] * (t.clean.ndim - 1)) * t.noise, levels)
    single = torch.cat([t.run(t.clean[i : i + 1] + s * t.noise[i : i + 1], s) for i, s in enumerate(levels)])
    error = float((mixed - single).abs().max() / single.abs().max())
    return below(error, 1e-4, "sigma (B,) and a scalar sigma give different estimates")


def _limit(t: Trial) -> Finding:
    change = float((t.run(t.clean, t.low) - t.clean).square().mean().sqrt()) / t.low
    remedy = "at sigma_min the estimate must stay within a few sigma_min of x: wrong parametrisation or sigma units?"
    return below(change, 10.0, remedy)


def _score(t: Trial, sigma: float) -> Finding:
    s = torch.tensor(sigma, dtype=torch.float64, device=t.device)
    x = (t.clean + sigma * t.noise).double()
    direction, step = t.normal(2).double(), 1e-4
    log_prob: Callable[[Tensor, Tensor], Tensor] = getattr(t.prior, "log_prob")  # noqa: B009
    slope = (log_prob(x + step * direction, s) - log_prob(x - step * direction, s)) / (2 * step)
    predicted = (t.prior.score(x, s) * direction).flatten(1).sum(1)
    error = float(((slope - predicted).abs() / slope.abs().clamp_min(1.0)).max())
    return below(error, 1e-5, "D is not the posterior mean: the score differs from finite differences of log_prob")


def _gradient(t: Trial) -> Finding:
    x = (t.clean + 0.3 * t.noise).requires_grad_()
    with torch.enable_grad():
        out = t.prior.denoise(x, torch.tensor(0.3, device=t.device))
        good = out.requires_grad
        if good:
            (g,) = torch.autograd.grad(out.sum(), x)
            good = bool(g.isfinite().all()) and bool((g != 0).any())
    return holds(good, "no gradient flows through denoise; set differentiable = False if that is meant")
