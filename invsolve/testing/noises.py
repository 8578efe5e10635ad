"""Conformance of a noise: draws against what it says of them, densities by quadrature, gradients, rows, precisions, copies."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.contracts.strategy import Strategy
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.testing import densities, pixels
from invsolve.testing.log import Log
from invsolve.testing.report import Report

#: Rows drawn; the standard error of each figure below is taken from the draws themselves.
_DRAWS = 20_000
#: Standard errors; twelve numbers stay within five of them but once in 150 000 times.
_ERRORS = 5.0
_SHAPE = (3, 4)
#: Of the precision with which y tells A(x), what Gaussian noise in its place may lose where it can stand for it.
_LOST = 0.25
#: Relative error of a variance that is told from y alone.
_FROM_DATA = 0.1


def check_noise(noise: Noise, device: str = "cpu", strategies: Sequence[Strategy] = ()) -> Report:
    """Check that a noise draws what it says it draws, that its densities add up to one, and that strategies can use it.

    Args:
        noise: an instance; parameters that are tensors must broadcast against one measurement (3, 4).
        device: where to run, such as "cuda".
        strategies: those that take the noise are held to the posterior of single pixels, by quadrature.

    Returns:
        Report: one line a property. `assert check_noise(noise)` in a test shows them all when one fails.
    """
    report = Log(f"noise {noise.name or type(noise).__name__}")
    # Away from zero, because counts and intensities are positive.
    clean = torch.rand(3, *_SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 0.5
    clean = clean.to(device)
    for x in (clean.float(), clean):
        label = str(x.dtype).removeprefix("torch.")
        report.attempt(f"draws, {label}", lambda x=x, n=label: _draws(report, noise, x, n))  # type: ignore[misc]
        report.attempt(f"likelihood, {label}", lambda x=x, n=label: _likelihood(report, noise, x, n))  # type: ignore[misc]
    report.attempt("gradient", lambda: _gradient(report, noise, clean))
    report.attempt("standard deviation", lambda: _spread(report, noise, clean[:1]))
    report.attempt("from the data", lambda: _from_data(report, noise, clean[:1]))
    report.attempt("quadrature", lambda: densities.look(report, noise, clean[:1]))
    report.attempt("complex numbers", lambda: _complex(report, noise, clean))
    report.attempt("copies", lambda: _copies(report, noise, clean))
    for strategy in strategies:
        title = f"posterior by {strategy.name or type(strategy).__name__}"
        report.attempt(title, lambda s=strategy, t=title: pixels.look(report, noise, s, t))  # type: ignore[misc]
    return report


def _rng(rows: int, seed: int = 0) -> ChainRandom:
    return ChainRandom(seed, [(item, 0) for item in range(rows)])


def _draws(report: Log, noise: Noise, clean: Tensor, label: str) -> None:
    before = torch.get_rng_state()
    y = noise.sample(clean, _rng(3))
    remedy = "draw with rng.normal(like), rng.uniform() and rng.poisson(rate), never from torch's own generator"
    report.holds(f"torch's own generator untouched, {label}", torch.equal(before, torch.get_rng_state()), remedy)
    kept = y.shape == clean.shape and y.dtype == clean.dtype and y.device == clean.device
    got = f"sample gives {tuple(y.shape)} {y.dtype}, A(x) is {tuple(clean.shape)} {clean.dtype}"
    report.holds(f"shape and precision of draws kept, {label}", kept, got)
    if not kept:
        return
    report.holds(f"draws are finite, {label}", bool(y.isfinite().all()), "sample gives NaN or infinity")
    again = torch.equal(noise.sample(clean, _rng(3)), y)
    report.holds(f"the same keys, the same draws, {label}", again, f"two draws with one rng differ; {remedy}")
    others = bool((noise.sample(clean, _rng(3, seed=1)) != y).any())
    report.holds(f"another seed, other draws, {label}", others, "the draws do not depend on rng")
    alone = torch.cat([noise.sample(clean[k : k + 1], ChainRandom(0, [(k, 0)])) for k in range(3)])
    remedy = "a row's draw depends on the other rows of its batch"
    report.holds(f"rows are drawn by themselves, {label}", torch.equal(alone, y), remedy)


def _likelihood(report: Log, noise: Noise, clean: Tensor, label: str) -> None:
    y = noise.sample(clean, _rng(3))
    value = noise.log_likelihood(y, clean)
    shaped = value.shape == (3,) and value.dtype == clean.dtype
    got = f"log_likelihood gives {tuple(value.shape)} {value.dtype}, expected one value per row, (3,) {clean.dtype}"
    report.holds(f"one likelihood per row, {label}", shaped, got)
    if not shaped:
        return
    report.holds(f"likelihood is finite, {label}", bool(value.isfinite().all()), "log_likelihood gives NaN or infinity")
    alone = torch.cat([noise.log_likelihood(y[k : k + 1], clean[k : k + 1]) for k in range(3)])
    error = float(((alone - value).abs() / (1 + value.abs())).max())
    limit = 1e-5 if clean.dtype == torch.float32 else 1e-12
    report.below(
        f"rows are judged by themselves, {label}", error, limit, "a row's likelihood depends on the other rows"
    )
    std = noise.std(clean)
    fits = not std.is_complex() and bool((std >= 0).all()) and torch.broadcast_shapes(std.shape, y.shape) == y.shape
    remedy = (
        f"std must be real, >= 0, and broadcast against y {tuple(y.shape)}; it gives {tuple(std.shape)} {std.dtype}"
    )
    report.holds(f"standard deviation fits y, {label}", fits, remedy)


def _gradient(report: Log, noise: Noise, clean: Tensor) -> None:
    y = noise.sample(clean, _rng(3))
    # A prediction beside the truth, where no model is at a kink of its density.
    point = (clean * 1.07).requires_grad_()
    with torch.enable_grad():
        value = noise.log_likelihood(y, point)
    if not value.requires_grad:
        report.holds("gradient", False, "log_likelihood has no gradient; write it in torch operations")
        return
    (gradient,) = torch.autograd.grad(value.sum(), point)
    direction = torch.randn(clean.shape, dtype=clean.dtype, generator=torch.Generator().manual_seed(1)).to(clean)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (noise.log_likelihood(y, point + s * step * direction) for s in (1, -1))
    numerical = (ahead - behind) / (2 * step)
    exact = (gradient * direction).flatten(1).sum(1)
    error = float(((numerical - exact).abs() / (1 + exact.abs())).max())
    # Rounding of a sum of order 100 over the step: 1e-14 / 1e-6, with a margin of a hundred.
    report.below("gradient against differences", error, 1e-6, "autograd's gradient of log_likelihood is not its slope")


def _many(noise: Noise, clean: Tensor) -> tuple[Tensor, Tensor]:
    """A(x) of many draws, (draws, 3, 4), spread over the interval on whose average mean and std hold; and y."""
    many = clean.expand(_DRAWS, *_SHAPE)
    part = torch.rand(many.shape, dtype=many.dtype, generator=torch.Generator().manual_seed(4)).to(many) - 0.5
    many = many + part * torch.as_tensor(noise.cell).to(many)
    return many, noise.sample(many, _rng(_DRAWS, seed=2))


def _standard_errors(values: Tensor, stated: Tensor | float) -> float:
    """How far the mean of draws (draws, ...) is from what is stated, in standard errors, the furthest."""
    error = (values.var(0) / len(values)).sqrt().clamp_min(1e-12)
    return float(((values.mean(0) - stated).abs() / error).max())


def _spread(report: Log, noise: Noise, clean: Tensor) -> None:
    """What `sample` draws against `mean` and `std`, and against `log_likelihood`."""
    many, y = _many(noise, clean)
    away = y - noise.mean(many)
    remedy = "mean(A(x)) is not the mean of what sample draws; figure in its standard errors"
    report.below("mean against the draws", _standard_errors(away, 0.0), _ERRORS, remedy)
    stated = noise.std(many).expand(many.shape).square()
    remedy = "std(A(x)) is not the standard deviation of what sample draws; figure in standard errors of the variance"
    report.below("std against the draws", _standard_errors(away.square() - stated, 0.0), _ERRORS, remedy)
    slope = noise.slope(many)
    # E[p(y | b) / p(y | a)] = 1 for y drawn given a: whatever the law, if it is the one that is drawn from.
    toward = torch.randn(clean.shape, dtype=clean.dtype, generator=torch.Generator().manual_seed(3)).to(clean)
    step = noise.std(clean) / torch.as_tensor(noise.slope(clean)).abs().clamp_min(0.1)
    other = many + 0.4 * step * toward / toward.norm()
    ratio = (noise.log_likelihood(y, other) - noise.log_likelihood(y, many)).exp()
    figure = float((ratio.mean() - 1).abs() / (ratio.std() / _DRAWS**0.5).clamp_min(1e-12))
    remedy = (
        "log_likelihood is not that of what sample draws: E[p(y | b) / p(y | a)] is not 1; figure in standard errors"
    )
    report.below("likelihood against the draws", figure, _ERRORS, remedy)
    if not noise.gaussian_like:
        return
    with torch.enable_grad():
        at = many.clone().requires_grad_()
        (score,) = torch.autograd.grad(noise.log_likelihood(y, at).sum(), at)
    # What Gaussian noise of this mean and variance tells of A(x), over the Fisher information that is there.
    told = (torch.as_tensor(slope).to(many).square() / stated).mean() / score.square().mean()
    remedy = (
        "Gaussian noise of its mean and variance loses more of what y tells: say gaussian_like = False, so that strategies "
        "which put it there refuse"
    )
    report.below("Gaussian noise can stand for it", float(1 - told), _LOST, remedy)


def _from_data(report: Log, noise: Noise, clean: Tensor) -> None:
    """What is said of y without A(x), and of how far it is from A(x)."""
    many, y = _many(noise, clean)
    inverse = noise.predicted_from(y)
    remedy = "predicted_from(y) gives NaN or infinity"
    report.holds("A(x) from the data is finite", bool(inverse.isfinite().all()), remedy)
    back = noise.predicted_from(noise.mean(clean))
    # Of magnitudes the second moment is inverted, and near zero the mean says little.
    far = float(((back - clean).abs() / noise.std(clean).maximum(clean)).max())
    report.below("A(x) from the data", far, 0.3, "predicted_from is not roughly the inverse of mean")
    stated = noise.std(many).expand(many.shape).square()
    told = noise.std_from(y).expand(y.shape).square().mean(0)
    error = float(((told / stated.mean(0)) - 1).abs().max())
    remedy = "std_from(y), squared, is not the variance on average"
    report.below("variance from the data", error, _FROM_DATA, remedy)
    away, expected, scatter = (v.expand(y.shape) for v in noise.deviation(y, many))
    remedy = "deviation(y, A(x)) says another mean of the squared deviation than draws have; figure in standard errors"
    report.below("deviation against the draws", _standard_errors(away - expected, 0.0), _ERRORS, remedy)
    difference = away - expected
    relative = float(((difference - difference.mean(0)).square().mean() / scatter.mean()).log().abs())
    remedy = "deviation(y, A(x)) says another variance of that difference than draws have: see kurtosis"
    report.below("scatter of the deviation", relative, 0.5, remedy)


def _complex(report: Log, noise: Noise, clean: Tensor) -> None:
    wanted = torch.complex(clean, clean.flip(-1))
    try:
        y = noise.sample(wanted, _rng(3))
    except UserError as error:
        report.holds("complex numbers refused in one line", "\n" not in str(error), "the refusal has several lines")
        return
    report.holds("complex numbers stay complex", y.dtype == wanted.dtype, f"sample of {wanted.dtype} gives {y.dtype}")
    value = noise.log_likelihood(y, wanted)
    report.holds("likelihood of complex numbers is real", not value.is_complex(), f"log_likelihood gives {value.dtype}")


def _copies(report: Log, noise: Noise, clean: Tensor) -> None:
    copy = pickle.loads(pickle.dumps(noise))
    same = torch.equal(copy.sample(clean, _rng(3)), noise.sample(clean, _rng(3)))
    report.holds(
        "pickled copy draws the same", same, "a pickled copy draws otherwise; keep what it needs in its fields"
    )
