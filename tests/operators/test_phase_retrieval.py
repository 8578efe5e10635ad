"""Fourier magnitudes and ptychography against direct sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import invsolve


def direct(wave: Any, rows: int, columns: int) -> Any:
    """The orthonormal transform of a wave, zero-padded to rows x columns, zero frequency in the middle, as a sum."""
    sides = []
    for n, size in zip((rows, columns), wave.shape, strict=True):
        frequency = (np.arange(n) - n // 2) / n
        sides.append(np.exp(-2j * np.pi * np.outer(frequency, np.arange(size))) / np.sqrt(n))
    return sides[0] @ wave @ sides[1].T


@pytest.mark.parametrize(("measures", "power"), [("magnitude", 1), ("intensity", 2)])
def test_fourier_magnitudes_are_a_direct_sum(measures: str, power: int) -> None:
    x = np.random.default_rng(0).random((5, 4))
    y = invsolve.operator("phase-retrieval", oversampling=1.5, measures=measures)(torch.from_numpy(x)[None, None])
    np.testing.assert_allclose(y[0, 0], np.abs(direct(x, 8, 6)) ** power, atol=1e-13)


@pytest.mark.parametrize("oversampling", [1.0, 1.1, 1.5, 2.0, 2.3])
@pytest.mark.parametrize("size", [(10, 7), (9, 1)])
def test_the_image_size_is_told_by_the_measurement(oversampling: float, size: tuple[int, int]) -> None:
    operator = invsolve.operator("phase-retrieval", oversampling=oversampling)
    assert operator.image_shape_for(operator.measurement_shape((1, *size))) == (1, *size)


def test_coded_masks_lie_over_the_image() -> None:
    rng = np.random.default_rng(0)
    x, masks = rng.random((5, 4)), np.exp(2j * np.pi * rng.random((3, 5, 4)))
    operator = invsolve.operator("phase-retrieval", masks=masks).double()
    operator.masks = torch.from_numpy(masks)
    y = operator(torch.from_numpy(x)[None, None])[0]
    np.testing.assert_allclose(y, [np.abs(direct(mask * x, 10, 8)) for mask in masks], atol=1e-13)


def test_magnitudes_know_neither_place_nor_turn() -> None:
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 2:5, 1:6] = torch.rand(3, 5, dtype=torch.float64)
    operator = invsolve.operator("phase-retrieval")
    torch.testing.assert_close(operator(x.roll((2, 1), (-2, -1))), operator(x))
    torch.testing.assert_close(operator(x.flip(-2, -1)), operator(x))


@pytest.mark.parametrize(("measures", "power"), [("magnitude", 1), ("intensity", 2)])
def test_ptychography_is_a_direct_sum_over_each_part(measures: str, power: int) -> None:
    rng = np.random.default_rng(0)
    x, probe = rng.normal(size=(7, 6, 2)).view(complex)[..., 0], rng.normal(size=(4, 3, 2)).view(complex)[..., 0]
    positions = [[0, 0], [3, 3], [1, 2]]
    operator = invsolve.operator(
        "ptychography", image_size=[7, 6], probe=probe, positions=positions, measures=measures
    ).double()
    operator.probe = torch.from_numpy(probe)
    y = operator(torch.from_numpy(x)[None, None])[0]
    for pattern, (i, j) in zip(y, positions, strict=True):
        np.testing.assert_allclose(pattern, np.abs(direct(probe * x[i : i + 4, j : j + 3], 4, 3)) ** power, atol=1e-13)


def test_the_energy_of_the_patterns_is_the_light_on_the_object() -> None:
    operator = invsolve.operator("ptychography", image_size=12, probe_size=6, step=3, measures="intensity")
    x = torch.randn(1, 1, 12, 12, dtype=torch.complex64)
    y = operator(x)
    assert y.shape == (1, 9, 6, 6)
    light = torch.zeros(12, 12)
    for i in (0, 3, 6):
        for j in (0, 3, 6):
            light[i : i + 6, j : j + 6] += operator.probe.abs() ** 2
    torch.testing.assert_close(y.sum(), (light * x[0, 0].abs() ** 2).sum())


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("phase-retrieval", {"oversampling": 0.5}, "from 1 to"),
        ("phase-retrieval", {"masks": [[1.0]]}, r"one is mask\[None\]"),
        ("ptychography", {"image_size": 8}, "probe_size must be from 1 to 8"),
        ("ptychography", {"image_size": 8, "probe_size": 4, "step": 0}, "at least 1 pixel"),
        ("ptychography", {"image_size": 8, "probe": [1.0]}, "within 8 x 8 pixels"),
        ("ptychography", {"image_size": 8, "probe_size": 4, "positions": [[0, 0], [5, 0]]}, "position 1.* 0 to 4"),
        ("ptychography", {"image_size": 8, "probe_size": 4, "positions": [[0.5, 0]]}, "round them"),
        ("ptychography", {"image_size": 8, "probe_size": 4, "positions": [0, 1]}, r"\(positions, 2\)"),
    ],
)
def test_wrong_parameters_are_one_line(name: str, given: dict[str, object], line: str) -> None:
    with pytest.raises(invsolve.UserError, match=line) as error:
        invsolve.operator(name, **given)
    assert "\n" not in str(error.value)


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(invsolve.UserError, match="takes complex images"):
        invsolve.operator("ptychography", image_size=8, probe_size=4)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(invsolve.UserError, match=r"\(items, 1, rows, columns\)"):
        invsolve.operator("phase-retrieval")(torch.zeros(1, 3, 8, 8))
