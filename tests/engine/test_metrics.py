"""Metrics against their definitions, and coverage against draws whose truth is known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from invsolve.api import metrics
from tests.support import bounds


def test_psnr_and_nrmse_by_hand() -> None:
    truth = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    image = truth + 0.5
    assert metrics.psnr(image, truth, 3.0) == pytest.approx(10 * math.log10(9 / 0.25))
    assert metrics.nrmse(image, truth) == pytest.approx(1.0 / math.sqrt(14))
    assert metrics.psnr(truth, truth, 3.0) == math.inf


def test_ssim_is_one_for_equal_images_and_less_for_others() -> None:
    truth = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0))
    assert metrics.ssim(truth, truth, 1.0) == pytest.approx(1.0)
    assert metrics.ssim(truth + 0.3 * torch.randn(1, 24, 24), truth, 1.0) < 0.9


def test_ssim_of_a_volume_is_that_of_its_slices() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(1, 5, 16, 18, generator=generator)
    image = truth.clone()
    # Errors that cancel along the depth would not be seen in its average.
    image[:, 0], image[:, 1] = truth[:, 0] + 0.4, truth[:, 1] - 0.4
    slices = [metrics.ssim(image[:, z], truth[:, z], 1.0) for z in range(5)]
    assert metrics.ssim(image, truth, 1.0) == pytest.approx(sum(slices) / 5)
    assert metrics.ssim(image, truth, 1.0) < 0.95


def test_scores_of_signals_and_of_images_smaller_than_the_window() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, small = torch.rand(1, 64, generator=generator), torch.rand(1, 8, 8, generator=generator)
    assert metrics.score(signal, signal, 1.0)["ssim"] == pytest.approx(1.0)
    assert set(metrics.score(small, small + 0.1, 1.0)) == {"psnr", "nrmse"}


def test_two_channels_are_real_and_imaginary() -> None:
    image = torch.zeros(2, 4, 4)
    image[0], image[1] = 3.0, 4.0
    assert float(metrics.magnitude(image).mean()) == 5.0


@pytest.mark.parametrize("samples", [2, 4, 32])
def test_coverage_is_nominal_for_an_honest_sampler(samples: int) -> None:
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(samples + 1, 1, 200, 200, generator=g)
    truth, kept = draws[0], draws[1:]
    coverage = metrics.coverage(kept.mean(0), kept.std(0), truth, samples)
    assert coverage["coverage_50"] == pytest.approx(0.5, abs=bounds.share_error(truth.numel(), 0.5))
    assert coverage["coverage_90"] == pytest.approx(0.9, abs=bounds.share_error(truth.numel(), 0.9))
    narrow = metrics.coverage(kept.mean(0), 0.3 * kept.std(0), truth, samples)
    # A central interval of 0.3 times the width.
    share = 2 * stats.t.cdf(0.3 * stats.t.ppf(0.95, samples - 1), samples - 1) - 1
    assert narrow["coverage_90"] == pytest.approx(share, abs=bounds.share_error(truth.numel(), share))


def test_complex_images_are_compared_as_complex_numbers() -> None:
    rng = np.random.default_rng(0)
    truth, image = (rng.normal(size=(1, 20, 24)) + 1j * rng.normal(size=(1, 20, 24)) for _ in range(2))
    parts = [torch.from_numpy(np.concatenate([v.real, v.imag])) for v in (image, truth)]
    scores = metrics.score(parts[0], parts[1], metrics.range_of(parts[1]))
    error, largest = np.abs(image - truth), np.abs(truth).max()
    assert metrics.range_of(parts[1]) == pytest.approx(largest)
    assert scores["psnr"] == pytest.approx(10 * np.log10(largest**2 / (error**2).mean()))
    assert scores["nrmse"] == pytest.approx(np.linalg.norm(error) / np.linalg.norm(truth))
    # One phase for all pixels is an error of the image, none of its modulus, which is what its structure is told by.
    turned = torch.from_numpy(np.concatenate([(truth * 1j).real, (truth * 1j).imag]))
    score = metrics.score(turned, parts[1], largest)
    assert score["ssim"] == pytest.approx(1.0)
    assert score["nrmse"] == pytest.approx(2**0.5)
    # Against a modulus the modulus; a real image is a complex one without an imaginary part.
    assert metrics.score(turned, torch.from_numpy(np.abs(truth)), largest)["nrmse"] == pytest.approx(0.0, abs=1e-12)
    real = metrics.score(parts[0][:1], parts[1], largest)
    assert real["nrmse"] == pytest.approx(np.linalg.norm(image.real - truth) / np.linalg.norm(truth))


def test_intervals_of_complex_images_are_those_of_their_parts() -> None:
    mean, std = torch.zeros(2, 1, 4), torch.ones(2, 1, 4)
    truth = torch.tensor([[[0.0, 0.0, 9.0, 9.0]], [[0.0, 9.0, 0.0, 9.0]]])
    assert metrics.coverage(mean, std, truth, 8)["coverage_90"] == 0.5
    # A real image states nothing of the imaginary part, a modulus has no interval.
    assert metrics.coverage(mean[:1], std[:1], truth, 8)["coverage_90"] == 0.5
    assert metrics.coverage(mean, std, truth[:1], 8) == {}


def test_one_sample_has_no_coverage() -> None:
    assert metrics.coverage(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 1) == {}
