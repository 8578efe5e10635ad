"""Projectors that hand their work to ASTRA and diffct: what these packages compute, matched; skipped where not installed."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

import invsolve
from invsolve import Geometry
from invsolve.testing import check_operator
from tests.operators.test_ct_projectors import CONE, DEEP, FAN, FLAT, images, ray_by_ray
from tests.support.types import linear_operator

#: By projector: every kind of scan that it is for.
SCANS: dict[str, dict[str, dict[str, Any]]] = {
    "astra": {
        "parallel": FLAT | {"pixel_size": 0.4, "detector_spacing": 0.5, "centre": 2.3},
        "fan": FAN | {"centre": 0.7, "source_offset": 0.3, "image_offset": (0.5, -0.3), "detector_distance": 4.0},
    },
    "diffct": {
        "parallel": FLAT | {"pixel_size": 0.4, "detector_spacing": 0.5, "centre": 2.3},
        "fan": FAN | {"centre": 0.7, "source_offset": 0.3, "image_offset": (0.5, -0.3), "detector_distance": 4.0},
        "cone": CONE | {"centre": 2.1, "row_centre": 3.4, "pixel_size": 0.8, "slice_thickness": 1.1, "roll": 7.0},
        "cone, detector on the axis": CONE | {"detector_distance": 0.0, "detector_spacing": 0.7},
        "helix": CONE | {"feed": 3.0, "row_spacing": 1.3},
        "parallel, volume": DEEP | {"tilt": 35.0, "slice_thickness": 0.7},
    },
}
ALL = [(name, kind) for name, scans in SCANS.items() for kind in scans]


def lengths(g: Geometry, x: np.ndarray) -> np.ndarray:
    """Each ray's length in each pixel, by clipping it to the pixel's sides, times the pixel's value; summed."""
    views, d = g.views(), g.dimensions
    side = np.array([g.pixel_size, g.pixel_size, g.slice_thickness])[:d]
    index = np.stack(np.meshgrid(*(np.arange(n) for n in g.image_size), indexing="ij"), -1).reshape(-1, d)
    middle = (index - (np.array(g.image_size) - 1) / 2)[:, ::-1] * side
    middle[:, 1] *= -1
    middle += np.array(g.image_offset)
    out = []
    for k in range(len(g.angles)):
        for place in views.pixels(k).reshape(-1, d):
            way = views.source[k] if g.beam == "parallel" else place - views.source[k]
            way = way / np.linalg.norm(way)
            with np.errstate(divide="ignore", invalid="ignore"):
                one, other = ((middle + sign * side / 2 - place) / way for sign in (-1, 1))
            enter, leave = np.minimum(one, other).max(1), np.maximum(one, other).min(1)
            out.append(np.clip(leave - enter, 0, None) @ x.ravel())
    return np.array(out).reshape(g.measurement_shape)


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_it_holds_what_every_operator_promises(name: str, kind: str) -> None:
    pytest.importorskip(name)
    report = check_operator(invsolve.operator("ct", geometry=Geometry(**SCANS[name][kind]), projector=name))
    assert report


def test_astra_of_parallel_beams_is_josephs_method() -> None:
    pytest.importorskip("astra")
    g = Geometry(**SCANS["astra"]["parallel"])
    x = images(g, 1)
    found = linear_operator("ct", geometry=g, projector="astra").double()(x)
    np.testing.assert_allclose(found[0], ray_by_ray(g, x[0, 0].numpy()), atol=2e-6)


@pytest.mark.parametrize("kind", SCANS["astra"])
def test_it_is_what_astra_computes(kind: str) -> None:
    astra = pytest.importorskip("astra")
    g = Geometry(**SCANS["astra"][kind])
    kernel = "linear" if g.beam == "parallel" else "line_fanflat"
    matrix = astra.OpTomo(astra.create_projector(kernel, *g.to_astra()))
    operator = linear_operator("ct", geometry=g, projector="astra")
    x, y = images(g, 1).float(), torch.rand(1, *g.measurement_shape, generator=torch.Generator().manual_seed(3))
    # Sums of some ten numbers in single precision.
    np.testing.assert_allclose(operator(x)[0], matrix.FP(x[0, 0].numpy()), atol=1e-5)
    np.testing.assert_allclose(operator.adjoint(y)[0, 0], matrix.BP(y[0].numpy()), atol=1e-5)


@pytest.mark.parametrize("kind", SCANS["diffct"])
def test_diffct_sums_the_lengths_in_pixels(kind: str) -> None:
    pytest.importorskip("diffct")
    g = Geometry(**SCANS["diffct"][kind])
    x = images(g, 1)
    found = linear_operator("ct", geometry=g, projector="diffct").double()(x)[0]
    np.testing.assert_allclose(found, lengths(g, x[0, 0].numpy()), atol=1e-10)


def test_diffct_takes_vectors() -> None:
    pytest.importorskip("diffct")
    g = Geometry(**SCANS["diffct"]["helix"])
    vectors = g.to_astra()[0]["Vectors"].copy()
    vectors[:, 1::3] *= -1
    same = {name: getattr(g, name) for name in ("beam", "image_size", "detectors", "detector_rows")}
    other = linear_operator("ct", geometry=Geometry(**same, vectors=vectors), projector="diffct").double()
    wanted = linear_operator("ct", geometry=g, projector="diffct").double()
    torch.testing.assert_close(other(images(g, 1)), wanted(images(g, 1)), atol=1e-8, rtol=0)
    uneven = vectors * np.where(np.arange(len(vectors)) == 1, 1.2, 1.0)[:, None]
    with pytest.raises(invsolve.UserError, match="one detector spacing for all views"):
        linear_operator("ct", geometry=Geometry(**same, vectors=uneven), projector="diffct")
    slanted = vectors.copy()
    slanted[:, 9:] += 0.1 * vectors[:, 6:9]
    with pytest.raises(invsolve.UserError, match="axes at right angles"):
        linear_operator("ct", geometry=Geometry(**same, vectors=slanted), projector="diffct")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("astra", CONE, "ASTRA's kernels for volumes are not each other's transposes"),
        ("astra", FAN | {"curved": True}, "ASTRA has no curved detectors"),
        ("diffct", FAN | {"curved": True}, "only flat detectors are handed to diffct"),
    ],
)
def test_what_a_package_has_no_kernel_for_is_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(invsolve.UserError, match=message):
        invsolve.operator("ct", geometry=Geometry(**given), projector=name)


@pytest.mark.parametrize("name", SCANS)
def test_a_package_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(invsolve.UserError, match=f"projector '{name}' needs the package {name} .*install it") as caught:
        invsolve.operator("ct", geometry=Geometry(**FLAT), projector=name)
    assert "\n" not in str(caught.value)
