"""Log-likelihoods against scipy's densities, in the tails too, with their slopes; refusals; what y alone tells."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import invsolve
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom


def log_density(noise: invsolve.Noise, y: Tensor, predicted: Tensor) -> np.ndarray:
    """log p of each number, as a measurement of its own."""
    y, predicted = (v.reshape(-1, 1) for v in torch.broadcast_tensors(y, predicted))
    constant = noise.constant(y)
    assert constant is not None
    return (noise.log_likelihood(y, predicted) + constant).numpy()


def grid(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


#: Far in the tails as well: up to thousands of standard deviations.
FAR = torch.tensor([-3000.0, -60.0, -5.0, -0.3, 0.0, 0.2, 2.0, 9.0, 40.0, 4000.0], dtype=torch.float64)
COUNTS = torch.tensor([0.0, 1.0, 2.0, 7.0, 40.0, 300.0, 100_000.0], dtype=torch.float64)


def test_laplace_and_student_are_those_of_scipy() -> None:
    y = FAR + 0.7
    ours = log_density(invsolve.noise("laplace:0.3"), y, torch.tensor(0.7, dtype=torch.float64))
    # scipy's is the logarithm of a density that is zero in the tails.
    near = abs(FAR.numpy()) < 100
    np.testing.assert_allclose(ours[near], stats.laplace.logpdf(FAR.numpy(), scale=0.3)[near], rtol=1e-12)
    np.testing.assert_allclose(ours[~near], -abs(FAR.numpy()[~near]) / 0.3 - math.log(0.6), rtol=1e-12)
    ours = log_density(invsolve.noise("student:0.3,3.5"), y, torch.tensor(0.7, dtype=torch.float64))
    np.testing.assert_allclose(ours, stats.t.logpdf(FAR.numpy(), 3.5, scale=0.3), rtol=1e-12)


def test_gaussian_adds_up_with_its_constant() -> None:
    ours = log_density(invsolve.Gaussian(0.3), FAR, torch.tensor(0.0, dtype=torch.float64))
    np.testing.assert_allclose(ours, stats.norm.logpdf(FAR.numpy(), scale=0.3), rtol=1e-12)


@pytest.mark.parametrize("looks", [0.7, 1.0, 4.0, 250.0])
def test_gamma_is_that_of_scipy(looks: float) -> None:
    y = torch.tensor([1e-4, 0.1, 1.0, 3.0, 70.0], dtype=torch.float64)
    for mean in (0.3, 2.0, 50.0):
        ours = log_density(invsolve.noise("gamma", looks=looks), y, torch.tensor(mean, dtype=torch.float64))
        exact = stats.gamma.logpdf(y.numpy(), looks, scale=mean / looks)
        inside = y.numpy() <= 1000 * mean
        np.testing.assert_allclose(ours[inside], exact[inside], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("signal", [0.0, 0.01, 1.0, 30.0, 5e4])
def test_rician_is_that_of_scipy_and_holds_where_its_bessel_function_overflows(signal: float) -> None:
    sigma = 0.2
    y = signal + torch.tensor([0.003, 0.1, 0.2, 1.0, 3.0], dtype=torch.float64)
    ours = log_density(invsolve.noise("rician", sigma=sigma), y, torch.tensor(signal, dtype=torch.float64))
    exact = stats.rice.logpdf(y.numpy(), signal / sigma, scale=sigma)
    # The difference of two squares of order (signal / sigma)^2 in scipy; ours takes the square of the difference.
    np.testing.assert_allclose(ours, exact, rtol=1e-10, atol=1e-15 * (signal / sigma) ** 2 + 1e-10)
    noise = invsolve.noise("rician", sigma=sigma)
    at = torch.tensor([signal], dtype=torch.float64)
    if signal < 10:
        mean, variance = stats.rice.stats(signal / sigma, scale=sigma)
        assert float(noise.mean(at)) == pytest.approx(float(mean), rel=1e-12)
        assert float(noise.std(at)) ** 2 == pytest.approx(float(variance), rel=1e-8)
    else:
        # Gudbjartsson & Patz, equations for large ratios; scipy's overflow there.
        ratio = signal / sigma
        assert float(noise.mean(at)) == pytest.approx(signal + sigma / (2 * ratio), rel=1e-7)
        assert float(noise.std(at)) == pytest.approx(sigma * (1 - 1 / (4 * ratio**2)), rel=1e-7)


def test_the_spread_of_magnitudes_has_no_step_where_its_series_begins() -> None:
    at = 0.2 * torch.tensor([49.999, 50.001], dtype=torch.float64)
    below, above = invsolve.noise("rician:0.2").std(at).tolist()
    assert above == pytest.approx(below, rel=1e-7)


@pytest.mark.parametrize("gain", [0.5, 1.0, 40.0])
def test_poisson_is_that_of_scipy(gain: float) -> None:
    y = COUNTS / gain
    for mean in (0.2, 7.0, 1e5):
        ours = log_density(invsolve.Poisson(gain), y, torch.tensor(mean / gain, dtype=torch.float64))
        inside = mean >= 1e-3 * COUNTS.numpy()
        np.testing.assert_allclose(ours[inside], stats.poisson.logpmf(COUNTS.numpy(), mean)[inside], rtol=1e-11)


@pytest.mark.parametrize("name", ["poisson:1", "transmission:1e6", "poisson-gaussian:1,5"])
def test_images_are_told_apart_by_many_counts_in_single_precision(name: str) -> None:
    """A sinogram of a million counts a ray, of two images whose means differ by a ten-thousandth."""
    mean = np.full((1, 40_000), 1e6)
    y = np.random.default_rng(0).poisson(mean).astype(np.float32)
    # Whole in single precision, too.
    apart = mean.astype(np.float32) * np.float32(1.0001)
    spread = np.sqrt(apart + 25.0) if "gaussian" in name else None
    exact = 0.0
    for rate, sign in ((apart.astype(np.float64), 1), (mean, -1)):
        if spread is None:
            exact += sign * stats.poisson.logpmf(y.astype(np.float64), rate).sum()
        else:
            # So many counts and five of read noise: a Gaussian, to a part in a thousand of the difference.
            exact += sign * stats.norm.logpdf(y.astype(np.float64), rate, np.sqrt(rate + 25)).sum()
    noise, single = invsolve.noise(name), torch.from_numpy(y)
    predicted = [torch.from_numpy(rate).float() for rate in (apart, mean)]
    if "transmission" in name:
        predicted = [-(rate.double() / 1e6).log().float() for rate in predicted]
    ours = float(noise.log_likelihood(single, predicted[0]) - noise.log_likelihood(single, predicted[1]))
    assert single.dtype == torch.float32
    # A line integral of 1e-4 has seven digits in single precision, too.
    assert abs(ours - exact) < 2e-3 * abs(exact) + 0.01


@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0])
def test_transmission_is_the_poisson_of_scipy(gain: float) -> None:
    noise = invsolve.noise("transmission", i0=1000.0, background=4.0, gain=gain)
    lines = torch.tensor([0.0, 0.5, 4.0, 9.0, 25.0], dtype=torch.float64)
    for p in lines:
        rate = gain * (1000 * math.exp(-float(p)) + 4)
        ours = log_density(noise, COUNTS / gain, p)
        exact = stats.poisson.logpmf(COUNTS.numpy(), rate)
        # Below a thousandth of the counts a straight line goes on, above a density that is as good as zero there.
        kept = rate >= 1e-3 * COUNTS.numpy()
        np.testing.assert_allclose(ours[kept], exact[kept], rtol=1e-10, atol=1e-9)
        assert (ours[~kept] < -1e4).all()


@pytest.mark.parametrize(
    ("read", "gain", "offset"), [(0.2, 1.0, 0.0), (1.0, 2.0, 5.0), (3.0, 0.5, 100.0), (30.0, 1.0, 0.0)]
)
@pytest.mark.parametrize("mean", [0.0, 0.4, 6.0, 11.0, 25.0, 90.0, 4000.0])
def test_poisson_gaussian_is_the_sum_over_photons(read: float, gain: float, offset: float, mean: float) -> None:
    noise = invsolve.noise("poisson-gaussian", gain=gain, read=read, offset=offset)
    rate = gain * mean
    spread = math.sqrt(rate + read**2)
    data = rate + spread * np.array([-6.0, -2.0, -0.3, 0.0, 1.1, 5.0, 20.0])
    photons = np.arange(0, rate + 60 * spread + 200)
    exact = np.log(gain) + np.array(
        [np.logaddexp.reduce(stats.poisson.logpmf(photons, rate) + stats.norm.logpdf(d, photons, read)) for d in data]
    )
    y = torch.from_numpy(data) / gain + offset
    ours = log_density(noise, y, torch.tensor(mean, dtype=torch.float64))
    np.testing.assert_allclose(ours, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_rounding_is_the_chance_of_its_interval_however_far_out(sigma: float) -> None:
    noise = invsolve.noise("rounding", step=0.5, sigma=sigma)
    for away in (0.0, 0.1, 0.25, 1.0, 3.0):
        ours = log_density(noise, grid(1.0), grid(1.0 + away))[0]
        # By the normal's density, integrated in logarithms: no difference of numbers that are nearly one.
        t = np.linspace(-0.25, 0.25, 20001)
        log = stats.norm.logpdf(t - away, scale=sigma)
        weights = np.full(len(t), 0.5 / 20000)
        weights[[0, -1]] /= 2
        assert ours == pytest.approx(np.logaddexp.reduce(log + np.log(weights)), rel=1e-5, abs=1e-6)
    point = torch.full((1, 1), 1e4, dtype=torch.float64, requires_grad=True)
    value = noise.log_likelihood(torch.zeros(1, 1, dtype=torch.float64), point)
    (slope,) = torch.autograd.grad(value.sum(), point)
    assert bool(value.isfinite().all())
    # Far out the nearest edge of the interval is all that counts.
    assert float(slope) == pytest.approx(-(1e4 - 0.25) / sigma**2, rel=1e-3)


SLOPES = [
    "laplace:0.3",
    "student:0.3,4",
    "gamma:4",
    "rician:0.2",
    "transmission:50",
    "poisson-gaussian:4,2",
    "rounding:0.3,0.1",
]


@pytest.mark.parametrize("text", SLOPES)
def test_likelihoods_stay_finite_and_lead_back_from_where_no_mean_can_be(text: str) -> None:
    noise = invsolve.noise(text)
    y = torch.full((1, 5), 2.0)
    wild = torch.tensor([[-1e4, -3.0, 0.0, 50.0, 1e4]], requires_grad=True)
    value = noise.log_likelihood(y, wild)
    (slope,) = torch.autograd.grad(value.sum(), wild)
    assert bool(value.isfinite().all())
    assert bool(slope.isfinite().all())
    assert bool(noise.predicted_from(torch.tensor([[0.0, -5.0, 1e6]])).isfinite().all())
    if text.startswith(("gamma", "poisson")):
        assert float(slope[0, 1]) > 0


def test_sums_of_many_counts_keep_what_a_step_changes_in_single_precision() -> None:
    # A hundred thousand entries of ten thousand counts: y log A(x) - A(x) alone is 1e10, in single precision to a thousand.
    noise = invsolve.noise("transmission", i0=1e4)
    lines = torch.full((1, 100_000), 0.1)
    y = noise.sample(lines, ChainRandom(0, [(0, 0)]))
    moved = lines + 1e-3
    change = float(noise.log_likelihood(y, moved) - noise.log_likelihood(y, lines))
    rate, there = (1e4 * (-v.double()).exp() for v in (lines, moved))
    exact = float((y.double() * (there / rate).log() - (there - rate)).sum())
    # Of sums of 5e4 single precision leaves 0.004.
    assert change == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("laplace:0", "noise laplace: scale must be > 0 and finite, got 0"),
        ("student:1,2", "noise student: dof must be > 2 and finite, got 2"),
        ("gamma:-1", "noise gamma: looks must be > 0 and finite, got -1"),
        ("rician:nan", "noise rician: sigma must be > 0 and finite, got nan"),
        ("transmission:0", "noise transmission: i0 must be > 0 and finite, got 0"),
        ("transmission:i0=9,background=-1", "noise transmission: background must be >= 0 and finite, got -1"),
        ("poisson-gaussian:1,0", "noise poisson-gaussian: read must be > 0 and finite, got 0"),
        ("poisson-gaussian:1,1,inf", "noise poisson-gaussian: offset must be finite, got inf"),
        ("rounding:0,1", "noise rounding: step must be > 0 and finite, got 0"),
        ("rounding:1,-1", "noise rounding: sigma must be >= 0 and finite, got -1"),
        ("poisson-gaussian:2", "noise 'poisson-gaussian' needs read=: "),
        ("transmision:9", "unknown noise 'transmision'. Did you mean 'transmission'?"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        invsolve.noise(text)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["gamma:4", "rician:0.2", "transmission:50", "poisson-gaussian:4,2", "rounding:0.3,0.1"]
)
def test_complex_numbers_are_refused_in_one_line(text: str) -> None:
    noise = invsolve.noise(text)
    with pytest.raises(UserError, match=rf"^noise {text.partition(':')[0]}: A\(x\) must be real, got complex64$"):
        noise.sample(torch.zeros(1, 2, dtype=torch.complex64), ChainRandom(0, [(0, 0)]))


def test_parameters_may_be_maps_and_differ_by_item() -> None:
    beam = torch.tensor([[[100.0, 400.0]], [[900.0, 1600.0]]])
    noise: Any = invsolve.noise("transmission", i0=beam)
    assert noise.rows([1], 3).i0.tolist() == [[[900.0, 1600.0]]]
    y = invsolve.simulate(torch.zeros(2, 1, 3, 2), Same(), noise)
    assert torch.allclose(y.mean(1), beam[:, 0], rtol=0.2)
    with pytest.raises(
        UserError, match=r"^noise transmission: i0 \(2, 1, 2\) does not broadcast against y \(1, 3, 5\)"
    ):
        noise.check_shape((1, 3, 5))


class Same(invsolve.Operator):
    """The image's first channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]
