"""Metrics against their definitions, and coverage against draws whose truth is known."""

import math

import pytest
import torch

from invsolve.api import metrics


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
    assert coverage["coverage_50"] == pytest.approx(0.5, abs=0.01)
    assert coverage["coverage_90"] == pytest.approx(0.9, abs=0.01)
    narrow = metrics.coverage(kept.mean(0), 0.3 * kept.std(0), truth, samples)
    assert narrow["coverage_90"] < 0.75


def test_one_sample_has_no_coverage() -> None:
    assert metrics.coverage(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 1) == {}
