"""The estimated scale: air is where the prior has air, from each layout of complex data down to the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import invsolve
from invsolve import registry
from invsolve.api.planning import plan
from invsolve.api.reconstruction import Memory
from invsolve.datasets.hdf5 import write_scan
from invsolve.datasets.mri.kspace import KSpaceLayout
from invsolve.engine import Options
from invsolve.errors import UserError
from invsolve.files.opening import open_measurement
from invsolve.report.frames import Frame
from tests.files.test_bart import measured
from tests.support.mri_files import PHASE, READOUT, centred_fft, ismrmrd_lines, scene, write_fastmri, write_lines

#: Physical value of air in the units of each bundled prior, and the value that is farthest from it.
AIR = {"ct-128": (-1000.0, 1200.0), "mr-128": (0.0, 1.0), "mr-complex-128": (0.0, 1.0), "natural": (0.0, 1.0)}


def _array(folder: Path) -> Path:
    np.save(folder / "scan.npy", scene()[1])
    return folder / "scan.npy"


def _own(folder: Path) -> Path:
    image = torch.from_numpy(scene()[0][:1, None]).to(torch.complex64)
    operator = invsolve.operator("mri", mask=torch.ones(READOUT, PHASE))
    write_scan(folder / "scan.h5", operator(image), operator, invsolve.Gaussian(0.003), unit="a.u.")
    return folder / "scan.h5"


#: Layouts that give complex images, options, and a file of `scene` each.
COMPLEX: dict[str, tuple[dict[str, object], Callable[[Path], Path]]] = {
    "fastmri": ({"crop": False, "slices": [0, 1]}, lambda folder: write_fastmri(folder / "scan.h5")),
    "ismrmrd": ({"crop": False, "slices": [0, 1]}, lambda folder: write_lines(folder / "scan.h5", ismrmrd_lines())),
    "bart": ({"slices": [0, 1]}, lambda folder: measured(folder / "scan")[0]),
    "array": ({"axes": "slice,coil,row,column", "items": [0, 1]}, _array),
    "invsolve": ({}, _own),
}


@pytest.fixture(scope="module", params=COMPLEX)
def scan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> invsolve.Measurement:
    options, write = COMPLEX[request.param]
    return open_measurement(write(tmp_path_factory.mktemp("scans")), request.param, options)


def test_these_are_the_layouts_of_k_space() -> None:
    assert {name for name, cls in registry.available("layout").items() if issubclass(cls, KSpaceLayout)} <= set(COMPLEX)


def _network(prior: invsolve.Prior, value: float) -> float:
    """The network's number for a value in the prior's unit."""
    low, high = prior.data_range or (-1.0, 1.0)
    return (2 * value - low - high) / (high - low)


def test_every_bundled_prior_is_in_the_table() -> None:
    weights = Path(invsolve.__file__).parents[1] / "plugins" / "priors" / "weights"
    assert sorted(path.stem for path in weights.glob("*.safetensors")) == sorted(AIR)


@pytest.fixture(scope="module")
def priors() -> dict[str, invsolve.Prior]:
    return {name: invsolve.load_prior(name) for name in AIR}


@pytest.mark.parametrize("name", AIR)
def test_air_is_where_the_prior_has_air(
    scan: invsolve.Measurement, name: str, priors: dict[str, invsolve.Prior]
) -> None:
    prior = priors[name]
    scale = plan(scan, prior, "linear", Options(scale="auto"), {}).scale
    air, farthest = AIR[name]
    network = float(torch.as_tensor(scale.to_network(torch.zeros(1, 1, 1, 1))))
    assert network == pytest.approx(_network(prior, air), abs=1e-5)
    # The body is 1 in the middle and 1.5 in its lesion; coils that are combined keep their root sum of squares, 1.2 to 2.1.
    top = float(torch.as_tensor(scale.to_physical(torch.full((1, 1, 1, 1), _network(prior, farthest)))))
    assert 1.0 < top < 3.5


def test_air_is_dark_in_the_picture(scan: invsolve.Measurement, priors: dict[str, invsolve.Prior]) -> None:
    run = plan(scan, priors["mr-complex-128"], "diffpir", Options(scale="auto", samples=1), {"steps": 5})
    sink = Memory(1)
    run.execute(sink)
    mean, std, samples = (sink.stack(part)[0] for part in ("mean", "std", "samples"))
    picture = Frame(0, 0, mean, std, samples, None, None).pictures([])["mean"]
    body = scene()[0][0]
    air, inside = picture[body < 1e-3], picture[body > 0.9]
    assert np.median(air) < 0.05 * np.median(inside)


def test_a_prior_of_both_signs_keeps_zero_on_real_images() -> None:
    class Signed(invsolve.Prior):
        event_shape, data_range, unit = (1, None, None), (-2.0, 1.0), "mT"

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x / (1 + sigma**2)

    image = torch.linspace(-3.0, 1.0, 64).reshape(1, 1, 8, 8)
    operator = invsolve.operator("inpainting", mask=torch.ones(8, 8))
    scan = invsolve.Measurement(image, operator, invsolve.Gaussian(0.1), unit="nT")
    scale = plan(scan, Signed(), "linear", Options(), {}).scale
    # Zero at network 1/3, as in -2 .. 1; the largest modulus (of which 0.5 % are left out) at network -1.
    low, high = scale.range
    assert low / high == pytest.approx(-2.0)
    assert low == pytest.approx(float(np.quantile(image.numpy(), 0.005)), rel=1e-5)


def test_an_image_below_air_has_no_scale() -> None:
    operator = invsolve.operator("inpainting", mask=torch.ones(8, 8))
    scan = invsolve.Measurement(
        -1 - torch.linspace(0, 1, 64).reshape(1, 1, 8, 8), operator, invsolve.Gaussian(0.1), unit="mm"
    )
    with pytest.raises(UserError, match=r"cannot be estimated: the linear reconstruction is negative; give scale="):
        plan(scan, "mr-128", "linear", Options(), {})


def test_total_variation_of_complex_images_starts_about_zero() -> None:
    kspace = torch.from_numpy(centred_fft(scene()[0][:1, None])).to(torch.complex64)
    operator = invsolve.operator("mri", mask=torch.ones(READOUT, PHASE))
    scan = invsolve.Measurement(kspace, operator, invsolve.Gaussian(0.003), unit="a.u.")
    low, high = plan(scan, None, "tv", Options(), {}).scale.range
    assert low == pytest.approx(-high)
