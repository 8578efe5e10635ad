"""invsolve's own scan and image files: what is written comes back, and what is wrong gets one line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.contracts.noise import Gaussian, Poisson
from invsolve.datasets.hdf5 import read_images, write_images, write_scan
from invsolve.datasets.layouts.own import OwnLayout
from invsolve.errors import UserError


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def scans() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    ct = invsolve.operator("ct", image_size=16, angles=[0, 30, 60.5, 140], centre=11.3)
    image = torch.rand(3, 1, 16, 16, generator=generator)
    yield "ct", ct, ct(image), image, Gaussian(0.02)
    mask = torch.rand(16, 16, generator=generator) > 0.5
    paint = invsolve.operator("inpainting", mask=mask)
    yield "inpainting", paint, paint(image), image, Poisson(1000.0)
    maps = torch.randn(2, 16, 16, dtype=torch.complex64, generator=generator)
    mri = invsolve.operator("mri", mask=mask.float(), coil_maps=maps)
    yield "mri", mri, mri(image.to(torch.complex64)), image, None


@pytest.mark.parametrize("case", list(scans()), ids=lambda case: case[0])
def test_round_trip(tmp_path: Path, case: tuple[Any, ...]) -> None:
    name, operator, y, image, noise = case
    path = tmp_path / "scan.h5"
    write_scan(path, y, operator, noise, truth=image, unit="1/cm", extra_attrs={"patient": "none"})
    with h5py.File(path) as file:
        assert OwnLayout.recognises(file)
        assert file.attrs["patient"] == "none"
        assert file["truth"].attrs["axes"] == "item channel row column"
    scan = OwnLayout().open(path, invsolve.make)
    assert scan.operator.name == name
    assert scan.noise == noise
    assert scan.unit == "1/cm"
    assert scan.source == str(path)
    assert torch.equal(scan.y[0:3], y)
    assert torch.equal(scan.truth[1:3], image[1:3])
    x = image.to(torch.complex64) if operator.complex_image else image
    assert torch.equal(scan.operator(x), operator(x))
    given = scan.operator.parameters_given
    assert given.keys() == operator.parameters_given.keys()
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]


def test_per_item_sigma(tmp_path: Path) -> None:
    operator = invsolve.operator("inpainting", fraction=0.5, image_size=8)
    sigma = torch.tensor([0.1, 0.2]).reshape(2, 1, 1, 1)
    write_scan(tmp_path / "a.h5", torch.zeros(2, 1, 8, 8), operator, Gaussian(sigma))
    assert torch.equal(OwnLayout().open(tmp_path / "a.h5", invsolve.make).noise.sigma, sigma)


def test_an_operator_made_directly_is_refused_with_the_remedy(tmp_path: Path) -> None:
    class Mine(invsolve.LinearOperator):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    with pytest.raises(UserError, match=r"Mine was made directly.*invsolve\.operator") as caught:
        write_scan(tmp_path / "a.h5", torch.zeros(1, 1, 4, 4), Mine(), None)
    one_line(caught)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    operator = invsolve.operator("inpainting", fraction=0.5, image_size=8)
    path = tmp_path / "a.h5"
    write_scan(path, torch.ones(1, 1, 8, 8), operator, None)

    class Breaks:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, rows: slice) -> torch.Tensor:
            if rows.start == 2:
                raise RuntimeError("lost")
            return torch.zeros(1, 1, 8, 8)

    with pytest.raises(RuntimeError, match="lost"):
        write_scan(path, Breaks(), operator, None)
    assert torch.equal(OwnLayout().open(path, invsolve.make).y[:], torch.ones(1, 1, 8, 8))
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.h5"
    operator = invsolve.operator("inpainting", fraction=0.5, image_size=8)
    write_scan(path, torch.ones(2, 1, 8, 8), operator, Gaussian(0.1), truth=torch.ones(2, 1, 8, 8))
    return path


def _rename(file: h5py.File, old: str, new: str) -> None:
    file.move(old, new)


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda f: f["operator"].attrs.__setitem__("name", "inpaintng"), "Did you mean 'inpainting'"),
        (lambda f: f["operator"].attrs.__setitem__("fracton", 0.5), "no parameter 'fracton'"),
        (lambda f: f["operator"].attrs.__delitem__("name"), "no group 'operator' with an attribute 'name'"),
        (lambda f: _rename(f, "y", "Y"), "no dataset 'y'"),
        (lambda f: f["noise"].attrs.__setitem__("name", "gausian"), "Did you mean 'gaussian'"),
        (lambda f: f["noise"].attrs.__setitem__("sigma", -1.0), "sigma must be >= 0"),
        (lambda f: f["noise"].attrs.__setitem__("sigma", "loud"), "group 'noise'"),
        (lambda f: f["noise"].attrs.__delitem__("sigma"), "needs sigma=: float"),
        (
            lambda f: (f.__delitem__("truth"), f.__setitem__("truth", np.ones((3, 1, 8, 8)))),
            "dataset 'truth' (3, 1, 8, 8)",
        ),
        (lambda f: (f.__delitem__("y"), f.__setitem__("y", np.ones(4))), "expected (items, *measurement)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(scan: Path, harm: Callable[[h5py.File], object], expected: str) -> None:
    with h5py.File(scan, "a") as file:
        harm(file)
    with pytest.raises(UserError) as caught:
        OwnLayout().open(scan, invsolve.make)
    text = one_line(caught)
    assert text.startswith(str(scan))
    assert expected in text


def test_noise_may_be_missing(scan: Path) -> None:
    with h5py.File(scan, "a") as file:
        del file["noise"]
    assert OwnLayout().open(scan, invsolve.make).noise is None


def test_images(scan: Path, tmp_path: Path) -> None:
    assert read_images(scan, "truth").shape == (2, 1, 8, 8)
    with pytest.raises(UserError, match="no dataset 'x'; it has"):
        read_images(scan)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    assert read_images(path)[0:1].dtype == torch.float32


def test_images_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    images = torch.rand(3, 2, 5, 4)
    write_images(path, images, unit="HU")
    assert torch.equal(read_images(path)[:], images)
    with h5py.File(path) as file:
        assert file["x"].attrs["axes"] == "item channel row column"
        assert file.attrs["unit"] == "HU"
    with pytest.raises(UserError, match="give --overwrite"):
        write_images(path, images)
    write_images(path, images[:1].numpy(), overwrite=True)
    assert read_images(path).shape == (1, 2, 5, 4)
    with pytest.raises(UserError, match=r"expected \(items, channels"):
        write_images(tmp_path / "flat.h5", images[0])


def test_the_layout_is_registered() -> None:
    from invsolve import registry

    assert registry.find("layout", "invsolve") is OwnLayout
