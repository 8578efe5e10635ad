"""Layouts "array" and "lodopab": files that say nothing about themselves, with what the user says."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets.layouts.array import Array
from invsolve.datasets.layouts.lodopab import MU_MAX, LoDoPaB
from invsolve.datasets.phantoms import Ellipse, sinogram
from invsolve.errors import UserError
from tests.support.mri_files import scene
from tests.support.types import offered

ITEMS, ROWS, COLUMNS = 3, 8, 6
DEGREES = np.arange(30) * 6.0


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60000, (ITEMS, ROWS, COLUMNS)).astype(np.uint16)


def store(kind: str, folder: Path, values: np.ndarray) -> Path:
    """The same array in each kind of file."""
    path = folder / {"npy": "a.npy", "hdf5": "a.h5", "tiff": "a.tif", "folder": "stack"}[kind]
    if kind == "npy":
        np.save(path, values)
    elif kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["deep/volume"] = values
    elif kind == "tiff":
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(path, values, photometric="minisblack")
    else:
        path.mkdir()
        # Names that sort wrongly as text.
        for k, page in enumerate(values):
            pytest.importorskip("tifffile").imwrite(path / f"slice_{8 + k}.tif", page, photometric="minisblack")
    return path


@pytest.mark.parametrize("kind", ["npy", "hdf5", "tiff", "folder"])
def test_images_from_every_kind_of_file(kind: str, tmp_path: Path, images: np.ndarray) -> None:
    path = store(kind, tmp_path, images)
    assert Array.opens(path) == (kind != "hdf5")
    stack = Array(axes="z,y,x", unit="counts").images(path)
    assert stack.unit == "counts"
    assert len(stack.x) == ITEMS
    assert np.array_equal(stack.x[0:3].numpy(), images[:, None].astype(np.float32))
    assert np.array_equal(stack.x[1:2].numpy()[0, 0], images[1])
    turned = Array(axes="row,item,column").images(path)
    assert np.array_equal(turned.x[2:3].numpy()[0, 0], images[:, 2])
    assert len(Array(axes="z,y,x", items=[1, 3]).images(path).x) == 2


def test_axes_of_an_hdf5_dataset_are_read_from_its_attribute(tmp_path: Path, images: np.ndarray) -> None:
    path = store("hdf5", tmp_path, images.transpose(1, 2, 0))
    with h5py.File(path, "a") as file:
        file["deep/volume"].attrs["axes"] = "row:col:slice"
    assert np.array_equal(Array().images(path).x[1:2].numpy()[0, 0], images[1])


@pytest.mark.parametrize("kind", ["npy", "tiff", "folder"])
@pytest.mark.parametrize("values", ["integrals", "transmissions"])
def test_sinograms(kind: str, values: str, tmp_path: Path) -> None:
    lines = np.stack(
        [sinogram([Ellipse(0.6, 0.5, 0.3 + 0.1 * r, 0.1, 0.05)], DEGREES, 40, 40, 1.0, 18.6).numpy() for r in range(2)]
    )
    lines = (0.05 * lines).astype(np.float32)
    stored = (np.exp(-lines) if values == "transmissions" else lines).transpose(1, 0, 2)
    path = store(kind, tmp_path, np.ascontiguousarray(stored))
    options: dict[str, Any] = {"axes": "theta,y,x", "angles": 30, "values": values}
    scan = Array(**options).open(path, invsolve.make)
    assert torch.allclose(scan.y[0:2], torch.from_numpy(lines), atol=1e-5)
    assert abs(scan.operator.geometry.centre - 18.6) < 0.3
    assert np.allclose(offered(scan.operator).geometry.angles, DEGREES)
    assert scan.noise is None
    assert scan.unit == "1/pixel"
    angles = torch.from_numpy(DEGREES + 3)
    given = Array(**{**options, "angles": angles}, thin=3, centre=18.6, pixel_size=0.5, length_unit="mm").open(
        path, invsolve.make
    )
    assert np.allclose(offered(given.operator).geometry.angles, DEGREES[::3] + 3)
    assert torch.equal(given.y[1:2], scan.y[1:2][:, ::3])
    assert (given.unit, given.operator.geometry.pixel_size) == ("1/mm", 0.5)


def test_kspace(tmp_path: Path) -> None:
    _, kspace = scene()
    kspace = kspace[..., 2:38]
    mask = np.random.default_rng(0).random((64, 36)) < 0.4
    mask[22:42, 8:28] = True
    np.save(tmp_path / "k.npy", kspace * mask)
    scan = Array(axes="slice,coil,row,column").open(tmp_path / "k.npy", invsolve.make)
    assert np.array_equal(scan.operator.mask.numpy(), mask)
    assert np.allclose(scan.y[1:2].numpy()[0], kspace[1] * mask, atol=1e-6)
    assert not torch.equal(offered(scan.operator_for(0)).coil_maps, offered(scan.operator_for(1)).coil_maps)
    one = Array(axes="coil,row,column").open(_saved(tmp_path / "one.npy", kspace[0][:, :, ::2]), invsolve.make)
    assert one.y[0:1].shape == (1, 4, 64, 18)
    columns = kspace[0] * (np.arange(36) % 2 == 0)
    columns[:, :, 10:26] = kspace[0][:, :, 10:26]
    by_columns = Array(axes="coil,row,column").open(_saved(tmp_path / "columns.npy", columns), invsolve.make)
    assert int(by_columns.operator.mask[0].sum()) == 26


def _saved(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((3, 8, 6), {}, "(3, 8, 6) has no names for its axes; give axes="),
        ((3, 8, 6), {"axes": "z,y"}, "names 2 axes, but the array is (3, 8, 6)"),
        ((3, 8, 6), {"axes": "z,y,w"}, "'w' is no axis"),
        ((3, 8, 6), {"axes": "y,row,x"}, "names one axis twice"),
        ((3, 8, 6), {"axes": "z,n,x"}, "name no row"),
        ((3, 8, 6), {"axes": "z,y,x"}, "are images, not a measurement"),
        ((3, 8, 6), {"axes": "y,theta,x"}, "say what the sinograms hold"),
        ((3, 8, 6), {"axes": "y,theta,x", "values": "integrals"}, "angles=8 spaces them equally"),
        ((3, 8, 6), {"axes": "y,theta,x", "values": "integrals", "angles": 5}, "5 angles are given for 8 projections"),
        ((3, 8, 6), {"axes": "z,y,x", "items": [2, 9]}, "items=[2, 9] must be [start, stop) within the 3 items"),
        ((3, 8, 6), {"axes": "coil,y,x"}, "expected complex numbers for k-space"),
        ((0, 8, 6), {"axes": "z,y,x"}, "(0, 8, 6) is empty"),
    ],
)
def test_what_arrays_refuse(tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], expected: str) -> None:
    path = _saved(tmp_path / "a.npy", np.ones(shape, np.float32))
    with pytest.raises(UserError) as caught:
        Array(**options).open(path, invsolve.make)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_damaged_and_mixed_files(tmp_path: Path, images: np.ndarray) -> None:
    npy = store("npy", tmp_path, images)
    npy.write_bytes(npy.read_bytes()[:200])
    with pytest.raises(UserError, match=r"a\.npy: cannot be read as \.npy"):
        Array(axes="z,y,x").images(npy)
    np.save(npy, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy: cannot be read as \.npy .*Python objects"):
        Array(axes="x").images(npy)
    tiff = store("tiff", tmp_path, images)
    tiff.write_bytes(tiff.read_bytes()[:60])
    with pytest.raises(UserError, match=r"a\.tif: .*(cannot be read|no pixels)"):
        Array(axes="z,y,x").images(tiff).x[0:1]
    folder = store("folder", tmp_path, images)
    pytest.importorskip("tifffile").imwrite(folder / "slice_99.tif", np.zeros((4, 4), np.uint16))
    with pytest.raises(UserError, match=r"slice_99\.tif: has pages \(4, 4\)"):
        Array(axes="z,y,x").images(folder)
    path = tmp_path / "two.h5"
    with h5py.File(path, "w") as file:
        file["a"], file["b"] = images, images
    with pytest.raises(UserError, match="say which dataset"):
        Array(axes="z,y,x").images(path)


def line_through(image: np.ndarray, phi: float, s: float) -> float:
    """The integral over a line of their geometry, from its definition: x along rows, y along columns, x cos + y sin = s."""
    size, step = 0.26 / 362, 0.26 / 362 / 4
    t = np.arange(-0.19, 0.19, step)
    x, y = s * np.cos(phi) - t * np.sin(phi), s * np.sin(phi) + t * np.cos(phi)
    row, column = np.round(x / size + 180.5).astype(int), np.round(y / size + 180.5).astype(int)
    inside = (row >= 0) & (row < 362) & (column >= 0) & (column < 362)
    return float(image[row[inside], column[inside]].sum() * step)


def test_lodopab_geometry_truth_and_noise(tmp_path: Path) -> None:
    image = np.zeros((362, 362), np.float32)
    image[60:110, 200:300] = 0.4
    image[250:330, 90:120] = 0.7
    rng = np.random.default_rng(0)
    values = np.zeros((2, 1000, 513), np.float32)
    middles = (np.arange(1000) + 0.5) * np.pi / 1000
    positions = (np.arange(513) - 256) * 0.26 * 2**0.5 / 513
    picked = range(0, 1000, 250)
    for k in picked:
        values[0, k] = [line_through(image, middles[k], s) for s in positions]
    path = tmp_path / "observation_test_003.hdf5"
    values[1] = -np.log(np.maximum(rng.poisson(np.full((1000, 513), 4096 * np.exp(-1.5))), 0.1) / 4096) / MU_MAX
    with h5py.File(path, "w") as file, h5py.File(tmp_path / "ground_truth_test_003.hdf5", "w") as truth:
        file["data"], truth["data"] = values, np.stack([image, image])
    scan = LoDoPaB(thin=250).open(path, invsolve.make)
    assert torch.equal(scan.truth[0:1][0, 0], torch.from_numpy(image))
    predicted = scan.operator(scan.truth[0:1])
    assert predicted.shape == scan.y[0:1].shape == (1, 4, 513)
    error = (predicted - scan.y[0:1]).norm() / scan.y[0:1].norm()
    # Mirrored or turned geometries are an order of magnitude off.
    assert float(error) < 0.06
    one = LoDoPaB(thin=250, items=[1, 2]).open(path, invsolve.make)
    assert one.noise.sigma == pytest.approx(float(one.y[0:1].std()), rel=0.05)
    assert LoDoPaB().images(tmp_path / "ground_truth_test_003.hdf5").x[0:1].shape == (1, 1, 362, 362)
    with pytest.raises(UserError, match=r"ground_truth_test_003\.hdf5: .*it is a ground truth"):
        LoDoPaB().open(tmp_path / "ground_truth_test_003.hdf5", invsolve.make)
    with h5py.File(path) as file:
        assert not LoDoPaB.recognises(file)
