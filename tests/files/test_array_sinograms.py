"""Sinograms in TIFF and .npy: angles by range, flat fields from files and from columns that see air; truth in closed form."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tifffile

import invsolve
from invsolve.datasets.layouts.array import Array
from invsolve.datasets.phantoms import Ellipse, sinogram
from invsolve.errors import UserError
from invsolve.operators.ct.geometry import Geometry

#: A disc of attenuation 0.02 and radius 12 on a detector of 40 pixels, over a whole turn.
DEGREES = np.arange(72) * 5.0
DISC = [Ellipse(0.02, 0.6, 0.6, 0.1, 0.05)]
LINES = sinogram(DISC, DEGREES, 40, 40, 1.0, 19.5).double().numpy()


def counts(rows: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projections (angles, rows, columns), flats and darks, without noise."""
    beam = 5000 + 1500 * np.sin(np.arange(40) / 3) + 200 * np.arange(rows)[:, None]
    return 100 + beam * np.exp(-LINES)[:, None], np.tile(100 + beam, (3, 1, 1)), np.full((2, rows, 40), 100.0)


def test_a_whole_turn_by_range(tmp_path: Path) -> None:
    path = tmp_path / "sino.tif"
    tifffile.imwrite(path, LINES.astype(np.float32))
    scan = Array(axes="angle,column", angles="0:360", values="integrals").open(path, invsolve.make)
    assert np.allclose(cast(Geometry, scan.operator.geometry).angles, DEGREES)
    assert abs(scan.operator.geometry.centre - 19.5) < 0.2
    image = invsolve.reconstruct(scan, strategy="linear", noise=invsolve.Gaussian(0.01)).mean[0, 0].numpy()
    inside = np.hypot(np.arange(40) - 21.5, (np.arange(40) - 18.5)[:, None]) < 8
    assert image[inside].mean() == pytest.approx(0.02, rel=0.02)
    # Read as half a turn, the disc is smeared along a circle.
    wrong = Array(axes="angle,column", angles=72, values="integrals", centre=19.5).open(path, invsolve.make)
    smeared = invsolve.reconstruct(wrong, strategy="linear", noise=invsolve.Gaussian(0.01)).mean[0, 0].numpy()
    assert np.abs(smeared - image).max() > 0.005
    for text in ("0-360", "0:", "5:5"):
        with pytest.raises(UserError, match=r"sino\.tif: angles='"):
            Array(axes="angle,column", angles=text, values="integrals").open(path, invsolve.make)


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i2", "f8"])
def test_angles_of_any_byte_order(dtype: str, tmp_path: Path) -> None:
    angles = np.arange(0, 180, 20).astype(dtype)
    given = invsolve.operator("ct", image_size=16, angles=angles)
    assert given.geometry.angles == tuple(range(0, 180, 20))
    np.save(tmp_path / "angles.npy", angles)
    np.save(tmp_path / "sino.npy", np.ones((9, 16), dtype))
    options: dict[str, Any] = {"axes": "angle,column", "values": "integrals", "centre": 7.5}
    scan = Array(angles=str(tmp_path / "angles.npy"), **options).open(tmp_path / "sino.npy", invsolve.make)
    assert scan.operator.geometry.angles == given.geometry.angles


@pytest.mark.parametrize("rows", [1, 2])
def test_flats_and_darks_from_files(rows: int, tmp_path: Path) -> None:
    projections, flats, darks = counts(rows)
    tifffile.imwrite(tmp_path / "sino.tif", projections.astype(np.float32), photometric="minisblack", metadata=None)
    np.save(tmp_path / "flat.npy", flats)
    tifffile.imwrite(tmp_path / "dark.tif", darks.astype(np.uint16), photometric="minisblack", metadata=None)
    options: dict[str, Any] = {
        "flat": str(tmp_path / "flat.npy"),
        "dark": str(tmp_path / "dark.tif"),
        "values": "counts",
    }
    scan = Array(axes="angle,row,column", angles="0:360", centre=19.5, **options).open(
        tmp_path / "sino.tif", invsolve.make
    )
    assert scan.y[0:rows].shape == (rows, 72, 40)
    assert np.allclose(scan.y[0:rows].numpy(), LINES, atol=2e-5)
    assert "flat field: median of 3 frames of flat.npy" in scan.notes
    assert "dark field: median of 2 frames of dark.tif" in scan.notes


def test_a_beam_that_decays_is_seen_in_the_columns_of_air(tmp_path: Path) -> None:
    decay = np.linspace(1, 0.7, 72)[:, None] * np.linspace(1, 1.2, 40)
    np.save(tmp_path / "sino.npy", 5000 * decay * np.exp(-LINES))
    assert np.abs(LINES[:, [0, 1, 2, -3, -2, -1]]).max() == 0
    options: dict[str, Any] = {"values": "counts", "air": 3, "centre": 19.5}
    scan = Array(axes="angle,column", angles="0:360", **options).open(tmp_path / "sino.npy", invsolve.make)
    assert np.allclose(scan.y[0:1].numpy()[0], LINES, atol=1e-5)
    assert any("outer 3 columns" in n for n in scan.notes)


def test_a_dead_pixel_of_the_flat_field_is_filled(tmp_path: Path) -> None:
    flat = np.full(40, 1000.0)
    flat[7] = 0
    np.save(tmp_path / "flat.npy", flat)
    np.save(tmp_path / "sino.npy", 1000 * np.exp(-LINES))
    options: dict[str, Any] = {"flat": str(tmp_path / "flat.npy"), "values": "counts", "centre": 19.5}
    scan = Array(axes="angle,column", angles="0:360", **options).open(tmp_path / "sino.npy", invsolve.make)
    assert np.allclose(scan.y[0:1].numpy()[0], LINES, atol=1e-5)
    assert any("1 detector pixels without beam" in n for n in scan.notes)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"values": "counts"}, "values=counts needs the beam without the object: flat=FILE"),
        ({"values": "integrals", "air": 2}, "flat=, dark= and air= are for counts and transmissions"),
        ({"values": "counts", "air": 20}, "air=20 must leave some of the 40 detector columns"),
        ({"values": "counts", "flat": "nowhere.npy"}, "flat=nowhere.npy: no such file"),
        ({"values": "counts", "flat": "short.npy"}, "holds (3, 39), expected finite frames (..., 40)"),
        ({"values": "counts", "flat": "blind.npy"}, "the flat field is not brighter than the dark field"),
    ],
)
def test_what_sinograms_refuse(options: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("sino.npy", LINES)
    np.save("short.npy", np.ones((3, 39)))
    np.save("blind.npy", np.zeros(40))
    with pytest.raises(UserError) as caught:
        Array(axes="angle,column", angles="0:360", centre=19.5, **options).open(Path("sino.npy"), invsolve.make)
    assert str(caught.value).startswith("sino.npy: ")
    assert expected in str(caught.value)
