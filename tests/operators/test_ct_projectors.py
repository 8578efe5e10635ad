"""Projectors of every geometry: against Joseph's method written out ray by ray, matched, within their memory."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import invsolve
from invsolve import Geometry
from invsolve.contracts.operator import LinearOperator
from invsolve.numerics.linalg import inner, norm
from invsolve.operators.ct.projectors import folded, joseph, joseph3d
from tests.support.types import linear_operator, offered

DEGREES = [3.0, 47.0, 122.5, 200.0, 301.0]
FLAT: dict[str, Any] = {"image_size": [7, 9], "angles": DEGREES, "detectors": 8}
DEEP: dict[str, Any] = {"image_size": [4, 6, 5], "angles": DEGREES, "detectors": 7, "detector_rows": 6}
FAN: dict[str, Any] = FLAT | {"beam": "fan", "source_distance": 16.0}
CONE: dict[str, Any] = DEEP | {"beam": "cone", "source_distance": 14.0, "detector_distance": 6.0}
SCANS: dict[str, dict[str, Any]] = {
    "parallel": FLAT | {"pixel_size": 0.4, "detector_spacing": 0.5, "centre": 2.3},
    "fan, flat, truncated": FAN | {"detectors": 4, "detector_distance": 5.0},
    "fan, flat, half acquisition": FAN | {"centre": 0.7, "source_offset": 0.3, "image_offset": (0.5, -0.3)},
    "fan, curved, limited angle": FAN | {"curved": True, "angles": [10.0, 20.0, 33.0]},
    "parallel, volume, tilted": DEEP | {"tilt": 35.0, "slice_thickness": 0.7},
    "cone": CONE | {"centre": 2.1, "row_centre": 3.4, "pixel_size": 0.8, "slice_thickness": 1.1},
    "cone, wide": CONE | {"source_distance": 5.0, "detectors": 9, "detector_rows": 30, "row_spacing": 3.0},
    "cone, tilted": CONE | {"tilt": 20.0, "roll": 7.0, "image_offset": (0.2, 0.4, -0.6)},
    "helix, curved": CONE | {"feed": 3.0, "curved": True},
}


def scan(name: str) -> Geometry:
    return Geometry(**SCANS[name])


def ray_by_ray(g: Geometry, x: np.ndarray) -> np.ndarray:
    """Joseph's sums of one image, one ray, slice and corner after the other."""
    views = g.views()
    voxel = np.array([g.slice_thickness, -g.pixel_size, g.pixel_size])[-g.dimensions :]
    middle = (np.array(g.image_size) - 1) / 2
    out = []
    for k in range(len(g.angles)):
        for place in views.pixels(k).reshape(-1, g.dimensions):
            way = views.source[k] if g.beam == "parallel" else place - views.source[k]
            start = (place - np.array(g.image_offset))[::-1] / voxel + middle
            step = way[::-1] / voxel
            axis = int(np.argmax(np.abs(way[::-1])))
            total = 0.0
            for n in range(g.image_size[axis]):
                point = start + step * (n - start[axis]) / step[axis]
                low = np.floor(point).astype(int)
                low[axis] = n
                for corner in itertools.product((0, 1), repeat=g.dimensions):
                    at = low + np.array(corner)
                    if corner[axis] or (at < 0).any() or (at >= g.image_size).any():
                        continue
                    shares = np.delete(np.where(corner, point - low, 1 - point + low), axis)
                    total += x[tuple(at)] * np.prod(shares)
            out.append(total * np.linalg.norm(way) / abs(step[axis]))
    return np.array(out).reshape(g.measurement_shape)


def images(g: Geometry, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, *g.image_size, dtype=torch.float64, generator=generator)


def projectors(name: str) -> list[str]:
    # Fourier's is no Joseph's: its own test says what it is.
    return ["folded", "joseph"] if scan(name).dimensions == 2 else ["joseph-3d"]


BOTH = [(name, projector) for name in SCANS for projector in projectors(name)]


@pytest.mark.parametrize(("name", "projector"), BOTH)
def test_it_is_josephs_method_ray_by_ray(name: str, projector: str) -> None:
    g = scan(name)
    operator = linear_operator("ct", geometry=g, projector=projector).double()
    x = images(g)
    wanted = np.stack([ray_by_ray(g, image[0].numpy()) for image in x])
    # The matrix is kept in single precision, with angles and positions to 1e-8.
    np.testing.assert_allclose(operator(x), wanted, atol=2e-6 if projector == "folded" else 1e-11)
    assert np.abs(wanted).max() > 1
    single = linear_operator("ct", geometry=g, projector=projector)(x.float())
    np.testing.assert_allclose(single, wanted, atol=2e-5)


@pytest.mark.parametrize(("name", "projector"), [*BOTH, ("parallel", "fourier")])
def test_it_is_matched(name: str, projector: str) -> None:
    g = scan(name)
    operator = linear_operator("ct", geometry=g, projector=projector)
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        operator = operator.to(dtype)
        x = images(g, 3).to(dtype)
        y = operator(x)
        v = torch.randn(y.shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
        error = (inner(y, v) - inner(x, operator.adjoint(v))).abs() / (norm(y) * norm(v))
        assert float(error.max()) < bound


@pytest.mark.parametrize(
    "more",
    [
        {"detectors": 13, "centre": 5.2},
        {"detectors": 60, "image_offset": (1.5, -0.7)},
        {"detectors": 5, "detector_spacing": 2.6},
        {"pixel_size": 0.5, "detector_spacing": 0.3},
    ],
)
def test_fourier_is_the_sum_over_frequencies(more: dict[str, Any]) -> None:
    """Against the integral over frequency of the image's transform, each exponential written out."""
    g = Geometry(**FLAT | {"image_size": [7, 10]} | more)
    operator = linear_operator("ct", geometry=g, projector="fourier").double()
    x = images(g)
    rows, columns = np.meshgrid((6 / 2 - np.arange(7)), np.arange(10) - 9 / 2, indexing="ij")
    angle = np.deg2rad(DEGREES)
    along = columns * np.cos(angle)[:, None, None] + rows * np.sin(angle)[:, None, None]
    _, s = g.lines()
    period = offered(operator).projector.period * g.detector_spacing / g.pixel_size
    frequency = np.arange(-np.floor(period / 2), np.floor(period / 2) + 1) / period
    share = np.where(np.abs(frequency) == 0.5, 0.5, 1.0)
    spectrum = np.einsum("brc,vrcf->bvf", x[:, 0].numpy(), np.exp(-2j * np.pi * along[..., None] * frequency))
    waves = np.exp(2j * np.pi * s[..., None] / g.pixel_size * frequency)
    wanted = np.einsum("bvf,vkf->bvk", spectrum * share, waves).real * g.pixel_size / period
    # The kernel of width 6 at an oversampling of 1.5 is good for 1e-4 (Beatty 2005, figure 3); it is kept in single precision.
    assert np.linalg.norm(operator(x).numpy() - wanted) < 1e-4 * np.linalg.norm(wanted)


def test_vectors_of_a_scan_measure_the_same() -> None:
    for name in ("fan, flat, half acquisition", "cone, tilted"):
        g = scan(name)
        vectors = g.to_astra()[0]["Vectors"].copy()
        if g.dimensions == 3:
            vectors[:, 1::3] *= -1
        kept = {name: getattr(g, name) for name in ("beam", "image_size", "detectors", "image_offset", "detector_rows")}
        other = linear_operator("ct", geometry=Geometry(**kept, vectors=vectors)).double()
        wanted = linear_operator("ct", geometry=g).double()(images(g))
        torch.testing.assert_close(other(images(g)), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "projector"), [("fan, flat, truncated", "joseph"), ("cone", "joseph-3d")])
def test_what_fits_in_memory_changes_nothing(name: str, projector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = scan(name)
    operator = linear_operator("ct", geometry=g, projector=projector).double()
    y = operator(images(g))
    back = operator.adjoint(y)
    for module in (joseph, joseph3d):
        monkeypatch.setattr(module, "budget", lambda x: 1)
    torch.testing.assert_close(operator(images(g)), y, atol=1e-12, rtol=0)
    torch.testing.assert_close(operator.adjoint(y), back, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "projector"), [("fan, flat, truncated", "joseph"), ("cone", "joseph-3d")])
def test_backward_stores_nothing_and_is_the_adjoint(name: str, projector: str) -> None:
    g = scan(name)
    operator = linear_operator("ct", geometry=g, projector=projector).double()
    x = images(g).requires_grad_()
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = operator(x)
    assert not [t for t in kept if t.numel() >= g.pixels]
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(gradient, operator.adjoint(torch.ones_like(y)))


def test_volumes_keep_less_than_one_view() -> None:
    g = Geometry(beam="cone", image_size=[32, 32, 32], angles=40, source_distance=90.0)
    operator = linear_operator("ct", geometry=g)
    arrays = [v for v in vars(offered(operator).projector).values() if isinstance(v, np.ndarray)]
    kept = sum(a.nbytes for a in arrays) + sum(b.nbytes for b in operator.buffers())
    assert kept < 4 * g.detectors * g.detector_rows


def test_a_matrix_that_is_too_large_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invsolve.operators.ct.projectors.folded.LARGEST", 1000)
    assert offered(invsolve.operator("ct", image_size=16, angles=8)).projector.name == "joseph"
    monkeypatch.undo()
    assert offered(invsolve.operator("ct", image_size=16, angles=8)).projector.name == "folded"


def test_views_a_quarter_turn_apart_share_rows_wherever_the_axis_is() -> None:
    g = Geometry(image_size=8, angles=[10.0, 33.0, 100.0, 123.0], detectors=13, centre=4.3)
    operator = linear_operator("ct", geometry=g, projector="folded").double()
    projector = offered(operator).projector
    assert len(projector.symmetries) == 2
    assert len(projector.rows_start) - 1 == 2 * g.detectors
    x = images(g)
    # As above: single precision, angles and positions to 1e-8.
    np.testing.assert_allclose(operator(x), np.stack([ray_by_ray(g, i[0].numpy()) for i in x]), atol=2e-6)


@pytest.mark.parametrize(
    "more", [{"image_size": 9, "angles": 8}, {"image_size": [9, 6], "angles": [0.0, 21.0, 90.0, 159.0]}, {}]
)
@pytest.mark.parametrize("height", [1, 4])
def test_strips_of_pixels_add_up(more: dict[str, Any], height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With eight copies of an image, two and one; several images and one; on one thread, and rows in shares of two."""
    g = Geometry(**FLAT | more)
    monkeypatch.setattr(folded, "_STRIP_BYTES", height * g.columns * 4 * folded._WIDE)
    monkeypatch.setattr(folded, "_MANY", 1)
    monkeypatch.setattr(folded, "_FEW", 0)
    operator = linear_operator("ct", geometry=g, projector="folded").double()
    projector = offered(operator).projector
    assert len(projector.strips) == -(-g.rows // height)
    x = images(g, 3)
    wanted = np.stack([ray_by_ray(g, image[0].numpy()) for image in x])
    for some in (x, x[:1]):
        y = operator(some)
        # As above: single precision, angles and positions to 1e-8.
        np.testing.assert_allclose(y, wanted[: len(some)], atol=2e-6)
        back = operator.adjoint(y)
        torch.testing.assert_close(inner(back, some), inner(y, y), rtol=1e-13, atol=0)
    # As on a device without such caches.
    flat = x.flatten(1)
    whole = projector._all_strips(projector._copies(flat.T.contiguous())).view(projector.slots, -1)[projector.slot].T
    np.testing.assert_allclose(whole.reshape(wanted.shape), wanted, atol=2e-6)


def test_two_geometries_without_weights_have_two_records() -> None:
    one, other = (linear_operator("ct", geometry=Geometry(**DEEP | {"tilt": t})) for t in (0.0, 1.0))
    assert not torch.equal(one.state_dict()["projector.stated"], other.state_dict()["projector.stated"])


@pytest.mark.parametrize(
    ("name", "projector", "message"),
    [
        ("cone", "folded", "'folded' is not for this geometry: it stores a matrix"),
        ("cone", "joseph", "it is for 2-D images; 'joseph-3d'"),
        ("parallel", "joseph-3d", "it is for volumes; 'joseph'"),
        ("fan, flat, truncated", "fourier", "it is for parallel beams in 2-D, stated by angles"),
    ],
)
def test_a_projector_says_what_it_is_not_for(name: str, projector: str, message: str) -> None:
    with pytest.raises(invsolve.UserError, match=message):
        invsolve.operator("ct", geometry=scan(name), projector=projector)


def test_a_volume_is_reconstructed_from_its_projections() -> None:
    g = Geometry(beam="cone", image_size=[4, 5, 5], angles=24, source_distance=14.0)
    operator = linear_operator("ct", geometry=g).double()
    assert isinstance(operator, LinearOperator)
    x = images(g, 1)
    found = operator.pinv(operator(x), invsolve.CG(1e-8, 400))
    assert float((found - x).norm() / x.norm()) < 1e-3
