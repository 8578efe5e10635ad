"""The self-test of priors: every right reading passes, every wrong one is caught and the right one named."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import invsolve
from invsolve import Prior
from invsolve.networks.selftest import reference_images
from invsolve.testing import check_prior
from tests.support.analytic import KINDS, GaussianNet, arguments

#: Each kind on images between -1 and 1; some also between 0 and 1.
TRUTHS = [*((kind, False) for kind in KINDS), *((kind, True) for kind in ("epsilon", "ve score", "edm", "flow"))]
CONFUSED = [*itertools.product(KINDS, (False, True))]


def wanted(kind: str, unit_range: bool) -> str:
    """How a rightly read network of this kind calls itself."""
    return invsolve.self_test(
        invsolve.prior_from(GaussianNet(kind, unit_range), **arguments(kind, unit_range))
    ).declared


@pytest.mark.parametrize(("kind", "unit_range"), TRUTHS)
def test_right_reading_is_exact_and_passes(kind: str, unit_range: bool) -> None:
    net = GaussianNet(kind, unit_range)
    prior = invsolve.prior_from(net, **arguments(kind, unit_range))
    x = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    reference = GaussianNet(kind)
    for sigma in (0.03, 0.7, 12.0):
        error = (prior.denoise(x, torch.tensor(sigma)) - reference.exact(x, sigma)).abs().max()
        assert error < 1e-5, (sigma, error)
    report = invsolve.self_test(prior)
    assert report, report
    assert not report.likely
    assert max(report.ratios) < 1


#: One of each family; the others take ten times as long.
FEW = [("epsilon", False), ("edm", True), ("flow", False)]


@pytest.mark.parametrize(
    ("kind", "unit_range"),
    [pytest.param(*truth, marks=() if truth in FEW else pytest.mark.slow) for truth in TRUTHS],
)
def test_every_wrong_reading_is_caught_and_the_right_one_named(kind: str, unit_range: bool) -> None:
    net = GaussianNet(kind, unit_range)
    right = wanted(kind, unit_range)
    for other, other_range in CONFUSED:
        if (other, other_range) == (kind, unit_range):
            continue
        report = invsolve.self_test(invsolve.prior_from(net, **arguments(other, other_range)))
        assert not report, f"{kind} read as {other}, 0..1 {other_range}: {report}"
        assert report.likely == right, f"{kind} read as {other}, 0..1 {other_range}: {report}"
        assert report.remedy


def test_remedy_is_what_must_be_changed() -> None:
    net = GaussianNet("v")
    report = invsolve.self_test(invsolve.prior_from(net, **arguments("epsilon")))
    assert report.remedy == {"parametrisation": "v"}
    assert "give parametrisation='v'" in str(report)
    again = invsolve.prior_from(net, **(arguments("epsilon") | report.remedy))
    assert invsolve.self_test(again)


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow"])
def test_wrong_range_of_images_from_0_to_1(kind: str) -> None:
    report = invsolve.self_test(invsolve.prior_from(GaussianNet(kind, unit_range=True), **arguments(kind)))
    assert report.remedy == {"network_range": (0.0, 1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [{"parametrisation": "epsilon", "schedule": "linear"}, {"parametrisation": "flow"}])
def test_real_network_read_wrongly(wrong: dict[str, Any]) -> None:
    bundled: Any = invsolve.load_prior("ct-128")
    size: dict[str, Any] = {"event_shape": (1, None, None), "multiple": bundled.multiple}
    right: dict[str, Any] = {
        "parametrisation": "edm",
        "time_scale": 4 * bundled.noise_label_scale,
        "sigma_data": bundled.sigma_data,
    }
    prior = invsolve.prior_from(bundled.network, **right, **size)
    x = torch.randn(1, 1, 20, 28)
    torch.testing.assert_close(prior.denoise(x, torch.tensor(0.3)), bundled.denoise(x, torch.tensor(0.3)))
    assert invsolve.self_test(prior)
    assert invsolve.self_test(bundled)
    report = invsolve.self_test(invsolve.prior_from(bundled.network, **wrong, **size))
    assert not report
    assert report.remedy["parametrisation"] == "edm"


def test_untrained_network_is_no_denoiser() -> None:
    torch.manual_seed(0)
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    prior = invsolve.prior_from(lambda x, t: net(x), "epsilon", schedule="linear", event_shape=(1, None, None))
    report = invsolve.self_test(prior)
    assert not report
    assert not report.likely
    assert "no other reading does better" in str(report)
    assert "\n" not in str(report)


def test_prior_without_a_network_is_tried_in_both_ranges() -> None:
    class Unit(Prior):
        """A denoiser that wants images between 0 and 1."""

        event_shape = (1, 64, 64)

        def __init__(self) -> None:
            self.net = GaussianNet("denoiser", unit_range=True)

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return self.net(x, sigma.expand(len(x)))

    report = invsolve.self_test(Unit())
    assert report.remedy == {"network_range": (0.0, 1.0)}
    assert invsolve.self_test(invsolve.load_prior("gaussian-field"))


@pytest.mark.parametrize("shape", [(1, None, None), (3, 40, 48), (2, 32, 32), (1, 64), (1, 12, 12, 12)])
def test_reference_images_fit_the_prior(shape: tuple[int | None, ...]) -> None:
    images = reference_images(shape)
    assert images.ndim == len(shape) + 1
    assert images.abs().max() <= 1
    assert images.std() > 0.1


@pytest.mark.parametrize("kind", list(KINDS))
def test_conformance(kind: str) -> None:
    report = check_prior(invsolve.prior_from(GaussianNet(kind), **arguments(kind)))
    # Predicting the image itself is exact only to the network's rounding, and its smallest sigma is that of the schedule.
    assert report, str(report)


@pytest.mark.discrepant
@pytest.mark.parametrize("kind", ["epsilon", "ve score", "flow"])
def test_reconstruction_through_a_foreign_network(kind: str) -> None:
    """A strategy must not notice that the denoiser in its hands is a wrapped network."""
    net = GaussianNet(kind)
    prior = invsolve.prior_from(net, **arguments(kind))

    class Native(Prior):
        """The same denoiser, in closed form."""

        event_shape = (1, 64, 64)
        sigma_min, sigma_max = prior.sigma_min, prior.sigma_max

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return net.exact(x, sigma.double()).to(x.dtype)

    operator, noise = invsolve.operator("inpainting", fraction=0.5), invsolve.Gaussian(0.02)
    y = invsolve.simulate(reference_images((1, 64, 64))[:1], operator, noise, seed=0)
    strategy = invsolve.strategy("dps-fitted", steps=8)
    mean, wanted = (
        invsolve.reconstruct(y, operator, p, noise=noise, strategy=strategy, seed=0).mean for p in (prior, Native())
    )
    torch.testing.assert_close(mean, wanted, rtol=1e-3, atol=1e-3)


def test_fingerprint_knows_how_the_network_is_read() -> None:
    net = GaussianNet("epsilon")
    readings = [arguments("epsilon"), arguments("epsilon cosine"), arguments("v"), arguments("epsilon", True)]
    assert len({invsolve.prior_from(net, **reading).fingerprint() for reading in readings}) == 4
