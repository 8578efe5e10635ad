"""Layout "nxtomo": found by class and definition; frames told apart by image_key; links; what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets.layouts.dxchange import DXchange
from invsolve.datasets.layouts.nxtomo import NXtomo
from invsolve.datasets.phantoms import Ellipse, sinogram
from invsolve.datasets.tomography.rings import suppress_rings
from invsolve.errors import UserError
from tests.support.ct_files import CENTRE, DETECTOR, KEYS, write_dxchange, write_nxtomo


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_nxtomo(tmp_path / "scan.nxs")


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return write_dxchange(tmp_path / "twin.h5")


@pytest.mark.parametrize("options", [{}, {"thin": 4, "bin": 2}, {"rows": [1, 2], "rings": 5}])
def test_the_same_as_dxchange(path: Path, twin: Path, options: dict) -> None:
    with h5py.File(path) as file:
        assert NXtomo.recognises(file)
        assert not DXchange.recognises(file)
    scan, other = (
        NXtomo(centre=CENTRE, **options).open(path, invsolve.make),
        DXchange(centre=CENTRE, **options).open(twin, invsolve.make),
    )
    assert torch.equal(scan.y[0:2], other.y[0:2])
    assert scan.noise == other.noise
    assert scan.operator.geometry == other.operator.geometry
    assert "1 of 49 frames are neither" in " ".join(scan.notes)


def test_data_behind_an_external_link(path: Path, tmp_path: Path) -> None:
    wanted = NXtomo(centre=CENTRE).open(path, invsolve.make)
    with h5py.File(tmp_path / "frames.h5", "w") as raw, h5py.File(path, "a") as file:
        raw["raw/images"] = file[f"{DETECTOR}/data"][:]
        del file[f"{DETECTOR}/data"]
        file[f"{DETECTOR}/data"] = h5py.ExternalLink("frames.h5", "/raw/images")
    scan = NXtomo(centre=CENTRE).open(path, invsolve.make)
    assert torch.equal(scan.y[0:2], wanted.y[0:2])
    with h5py.File(tmp_path / "frames.h5", "a") as raw:
        raw["raw/images"][0, 0, 0] += 1
    assert NXtomo(centre=CENTRE).open(path, invsolve.make).fingerprint != scan.fingerprint
    (tmp_path / "frames.h5").unlink()
    assert "is a link into 'frames.h5'" in refuse(path)


def test_the_files_own_centre_and_pixel_size(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file[f"{DETECTOR}/x_pixel_size"] = 6.5
        file[f"{DETECTOR}/x_pixel_size"].attrs["units"] = "um"
        file[f"{DETECTOR}/x_rotation_axis_pixel_position"] = -1.0
    scan = NXtomo(bin=2).open(path, invsolve.make)
    assert scan.unit == "1/mm"
    assert scan.operator.geometry.pixel_size == pytest.approx(0.013)
    # The middle of 40 pixels is 19.5.
    assert "the file says 18.5" in " ".join(scan.notes)
    assert abs((scan.operator.geometry.centre + 0.5) * 2 - 0.5 - CENTRE) < 0.5
    assert not [line for line in scan.missing if "centre" in line or "pixel" in line]
    assert NXtomo(centre=CENTRE).open(path, invsolve.make).missing == []
    with h5py.File(path, "a") as file:
        angles = file["scan 1/tooth/rotation_angle"]
        angles[:] = angles[:] / 3
    assert NXtomo().open(path, invsolve.make).operator.geometry.centre == 18.5  # too few angles to search it


def test_several_entries(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.copy("scan 1", "scan 2")
        file["scan 2/beamline/camera/data"][:] += 1
    assert "(/scan 1, /scan 2); choose one with entry=NAME" in refuse(path)
    assert "no NXtomo entry 'scan 3'" in refuse(path, entry="scan 3")
    assert len(NXtomo(centre=CENTRE, entry="scan 2").open(path, invsolve.make).y) == 2


def refuse(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        NXtomo(centre=CENTRE, **options).open(path, invsolve.make)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


def _key(value: int) -> Callable[[h5py.File], object]:
    return lambda f: f[f"{DETECTOR}/image_key"].__setitem__(value == KEYS, 3)


def _cut(name: str) -> Callable[[h5py.File], object]:
    def harm(file: h5py.File) -> None:
        values = file[name][:-1]
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = values
        file[name].attrs.update(attributes)

    return harm


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda f: f.__delitem__("scan 1/tooth"), "angles are never invented"),
        (lambda f: f.__delitem__(f"{DETECTOR}/image_key"), "must hold one NXdetector with an image_key, it has none"),
        (lambda f: f.__delitem__(f"{DETECTOR}/data"), "has no dataset '/scan 1/beamline/camera/data'"),
        (_key(0), "marks no frame as a projection"),
        (_key(1), "has no flats (image_key 1)"),
        (_key(2), "has no darks (image_key 2)"),
        (lambda f: f[f"{DETECTOR}/image_key"].__setitem__(3, 0.5), "no whole numbers"),
        (_cut(f"{DETECTOR}/image_key"), "has 48 entries for 49 frames"),
        (_cut("scan 1/tooth/rotation_angle"), "has 48 angles, but /scan 1/beamline/camera/data has 49 frames, 36"),
        (lambda f: f["scan 1/tooth/rotation_angle"].attrs.__setitem__("units", "gon"), "units='gon'"),
        (lambda f: f.__delitem__("scan 1/definition"), "no group with NX_class NXentry and definition NXtomo"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(path: Path, harm: Callable[[h5py.File], object], expected: str) -> None:
    with h5py.File(path, "a") as file:
        harm(file)
    assert expected in refuse(path)


def test_rings_go_and_the_object_stays() -> None:
    body = [Ellipse(0.6, 0.5, 0.4, 0.1, 0.05), Ellipse(0.3, 0.1, 0.1, -0.2, 0.1)]
    clean = sinogram(body, np.arange(180.0), 256, 256, 1.0, 127.5).numpy() * 0.02
    gain = np.zeros(256)
    gain[[53, 109, 186]] = [0.05, -0.08, 0.06]
    mended = suppress_rings(clean + gain, 9)
    rest = np.abs((mended - clean).mean(0))[[53, 109, 186]]
    assert (rest < 0.35 * np.abs(gain[[53, 109, 186]])).all()
    assert np.linalg.norm(mended - clean) < 0.6 * np.linalg.norm(gain) * 180**0.5
    assert np.linalg.norm(suppress_rings(clean, 9) - clean) < 0.005 * np.linalg.norm(clean)
    with pytest.raises(UserError, match="rings must be 0 or an odd width"):
        DXchange(rings=4)
