"""The science examples, loaded as plugins: the kit, direct sums, and solutions that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import scipy.sparse
import scipy.sparse.linalg
import scipy.special
import torch

import invsolve
from invsolve import registry
from invsolve.testing import check_operator
from tests.support.types import linear_operator, offered

FOLDER = Path(__file__).parents[2] / "examples" / "operators"
NAMES = {
    "interferometry": ["visibilities", "closure-phases"],
    "scattering": ["scattering"],
    "darcy": ["darcy"],
    "ultrasound": ["plane-wave"],
}


def plugin(stem: str) -> Any:
    """An example, loaded as --plugin does it."""
    return registry.load_file(FOLDER / f"{stem}.py")


@pytest.mark.parametrize(("stem", "name"), [(stem, name) for stem, names in NAMES.items() for name in names])
def test_an_example_holds_what_operators_promise(stem: str, name: str) -> None:
    plugin(stem)
    cls: Any = registry.find("operator", name)
    report = check_operator(invsolve.operator(name, **cls.examples[0]))
    assert report, report


def test_every_example_is_run() -> None:
    assert {file.stem for file in FOLDER.glob("*.py")} == set(NAMES)


def test_visibilities_are_a_direct_sum() -> None:
    module = plugin("interferometry")
    sky = module.Sky(7, 4, 3)
    x = np.random.default_rng(0).random((7, 7))
    y = linear_operator("visibilities", image_size=7, antennas=4, hours=3)(torch.from_numpy(x)[None, None])[0]
    position = np.arange(7) - 3
    for pair, hour in np.ndindex(6, 3):
        u, v = sky.frequencies[pair, hour].numpy()
        wave = np.exp(-2j * np.pi * (u * position + v * position[:, None]))
        assert complex(y[pair, hour]) == pytest.approx((x * wave).sum() / 7, abs=1e-12)
    # Opposite corners of half a cycle per pixel are what the array sees at most.
    assert float(sky.frequencies.abs().max()) == pytest.approx(0.5)


def test_closure_phases_know_neither_place_nor_brightness_and_see_a_lopsided_source() -> None:
    plugin("interferometry")
    operator = invsolve.operator("closure-phases", image_size=16, antennas=5, hours=2)
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    x[..., 5:9, 4:8] = torch.rand(4, 4, dtype=torch.float64)
    y = operator(x)
    assert y.shape == (1, 6, 2)
    torch.testing.assert_close(operator(3 * x.roll((2, 3), (-2, -1))), y)
    torch.testing.assert_close(y.abs(), torch.ones_like(y.abs()))
    assert float((y - 1).abs().max()) > 0.05
    point = torch.zeros_like(x)
    point[..., 3, 11] = 1.0
    torch.testing.assert_close(operator(point), torch.ones_like(y))


def test_scattered_waves_are_a_direct_sum() -> None:
    plugin("scattering")
    x = np.random.default_rng(0).normal(size=(4, 4))
    operator = linear_operator("scattering", image_size=4, sources=3, receivers=5, wavelengths=2.0)
    y = operator(torch.from_numpy(x)[None, None])[0]
    k = 4 * np.pi
    for s, r in np.ndindex(3, 5):
        source, receiver = (1.6 * np.exp(2j * np.pi * t) for t in (s / 3, r / 5))
        total = 0
        for i, j in np.ndindex(4, 4):
            place = (j + 0.5) / 4 - 0.5 + 1j * (0.5 - (i + 0.5) / 4)
            waves = [0.25j * scipy.special.hankel1(0, k * abs(place - end)) for end in (source, receiver)]
            total += k**2 / 16 * x[i, j] * waves[0] * waves[1]
        assert complex(y[s, r]) == pytest.approx(total, abs=1e-12)


def test_source_and_receiver_may_change_places() -> None:
    plugin("scattering")
    operator = linear_operator("scattering", image_size=6, sources=4, receivers=4)
    y = operator(torch.rand(1, 1, 6, 6, dtype=torch.float64))
    torch.testing.assert_close(y, y.mT)


def test_darcy_pressure_is_that_of_a_sparse_solve() -> None:
    module = plugin("darcy")
    x = np.random.default_rng(0).normal(size=(5, 5))
    u = module.Darcy(5, 1)(torch.from_numpy(x)[None, None])[0]
    a, matrix = np.exp(x), scipy.sparse.lil_array((25, 25))
    for i, j in np.ndindex(5, 5):
        for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            inside = 0 <= i + di < 5 and 0 <= j + dj < 5
            flow = 2 / (1 / a[i, j] + 1 / a[i + di, j + dj]) if inside else 2 * a[i, j]
            matrix[5 * i + j, 5 * i + j] += flow
            if inside:
                matrix[5 * i + j, 5 * (i + di) + j + dj] -= flow
    wanted = scipy.sparse.linalg.spsolve(matrix.tocsc(), np.full(25, 1 / 25))
    np.testing.assert_allclose(u.numpy().ravel(), wanted, rtol=1e-12)


def test_darcy_pressure_of_even_ground_is_the_series() -> None:
    module = plugin("darcy")
    errors = []
    for n in (8, 16):
        u = module.Darcy(n, 1)(torch.full((1, 1, n, n), 0.7, dtype=torch.float64))[0].numpy()
        middle = (np.arange(n) + 0.5) / n
        p, q = np.meshgrid(np.arange(1, 60, 2), np.arange(1, 60, 2))
        series = np.array(
            [
                [
                    np.sum(16 / np.pi**4 * np.sin(p * np.pi * s) * np.sin(q * np.pi * t) / (p * q * (p**2 + q**2)))
                    for s in middle
                ]
                for t in middle
            ]
        )
        errors.append(np.abs(u * np.exp(0.7) - series).max())
    # Second order in the cells' size: a quarter of the error with half of it.
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 1e-3


@pytest.mark.parametrize(
    ("stem", "name", "sigma"),
    [("interferometry", "visibilities", 0.01), ("scattering", "scattering", 1e-3), ("darcy", "darcy", 1e-4)],
)
# A dozen steps need not fit the data.
@pytest.mark.filterwarnings("ignore::invsolve.api.discrepancy.DiscrepancyWarning")
def test_an_image_is_reconstructed_through_an_example(stem: str, name: str, sigma: float) -> None:
    plugin(stem)
    cls: Any = registry.find("operator", name)
    operator, noise = invsolve.operator(name, **cls.examples[0]), invsolve.Gaussian(sigma)
    prior = invsolve.load_prior("gaussian-field", size=cls.examples[0]["image_size"], std=0.3)
    truth = invsolve.sample(prior, 1, seed=1)
    y = invsolve.simulate(truth, operator, noise, seed=0)
    moment = invsolve.strategy("moment", steps=12)
    result = invsolve.reconstruct(y, operator, prior, noise=noise, strategy=moment, samples=1, seed=0)
    # The data are explained better than by an empty image.
    residual = [(y - operator(x)).abs().square().sum() for x in (result.mean, torch.zeros_like(truth))]
    assert float(residual[0]) < 0.1 * float(residual[1])


@pytest.mark.parametrize(
    ("stem", "name", "given"),
    [
        ("interferometry", "visibilities", {"antennas": 2}),
        ("scattering", "scattering", {"radius": 0.6}),
        ("scattering", "scattering", {"sources": 0}),
        ("darcy", "darcy", {"image_size": 100}),
        ("darcy", "darcy", {"image_size": 8, "spacing": 9}),
    ],
)
def test_wrong_parameters_are_one_line(stem: str, name: str, given: dict[str, object]) -> None:
    plugin(stem)
    with pytest.raises(invsolve.UserError) as error:
        invsolve.operator(name, **given)
    assert "\n" not in str(error.value)


def test_an_echo_comes_when_the_wave_has_gone_there_and_back() -> None:
    """One pixel: the envelope of its echo peaks after the way of the steered wave to it and the way back, by geometry."""
    plugin("ultrasound")
    setting = {"image_size": 16, "pixel": 0.2, "depth": 5.0, "elements": 8, "angles": 3, "frequency": 3.0, "rate": 8.0}
    operator = linear_operator("plane-wave", **setting)
    row, column = 11, 4
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    x[0, 0, row, column] = 1.0
    echoes = operator(x)[0].view(offered(operator).shape).numpy()
    z, place = 5.0 + 0.2 * row, 0.2 * (column - 7.5)  # mm
    elements, strengths = (np.arange(8) - 3.5) * 0.2 * 16 / 8, []
    for k, degrees in enumerate((-15, 0, 15)):
        turn = np.deg2rad(degrees)
        # The wave front passes the first element at time 0: it is on one side or the other.
        front = np.array([np.sin(turn), np.cos(turn)])
        there = front @ [place, z] - min(front[0] * elements[0], front[0] * elements[-1])
        for e in range(8):
            way = there + np.hypot(z, place - elements[e])
            envelope = abs(scipy.signal.hilbert(echoes[k, e]))
            # 24 samples a microsecond, 1.54 mm a microsecond.
            assert abs(int(envelope.argmax()) - way / 1.54 * 24) < 1
            # Samples miss the peak of an envelope of standard deviation 4 samples by half of one at most.
            strengths.append(envelope.max() * np.sqrt(np.hypot(z, place - elements[e])))
    assert np.ptp(strengths) < 0.02 * np.mean(strengths)


def test_delay_and_sum_finds_points_of_tissue() -> None:
    plugin("ultrasound")
    operator = linear_operator("plane-wave", image_size=24, elements=16, angles=5)
    x = torch.zeros(1, 1, 24, 24, dtype=torch.float64)
    points = [(4, 6), (12, 17), (20, 9)]
    for row, column in points:
        x[0, 0, row, column] = 1.0
    image = operator.adjoint(operator(x))[0, 0]
    for row, column in points:
        around = image[row - 3 : row + 4, column - 3 : column + 4]
        assert float(image[row, column]) == float(around.max()) > 0.5 * float(image.max())


def test_seismic_impedance_through_pylops_is_the_wavelet_on_its_differences() -> None:
    """Post-stack modelling: the wavelet convolved with the derivative in depth of the logarithm of impedance."""
    pylops = pytest.importorskip("pylops")
    wavelet = pylops.utils.wavelets.ricker(np.arange(5), f0=0.1)[0]
    operator = invsolve.adapt(pylops.avo.poststack.PoststackLinearModelling(wavelet, nt0=20, spatdims=7))
    assert isinstance(operator, invsolve.LinearOperator)
    x = np.random.default_rng(0).normal(size=(20, 7))
    derivative = np.zeros_like(x)
    derivative[1:-1] = (x[2:] - x[:-2]) / 2
    wanted = scipy.ndimage.convolve1d(derivative, wavelet, axis=0, mode="constant")
    got = operator(torch.from_numpy(x)[None, None]).numpy().reshape(20, 7)
    np.testing.assert_allclose(got, wanted, atol=1e-10)
