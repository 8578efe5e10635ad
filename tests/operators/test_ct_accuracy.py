"""Every projector against closed-form line integrals of Gaussian blobs and ellipses, by image size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from invsolve import Geometry
from invsolve.datasets.phantoms import Blob, Ellipse, Ellipsoid, Shape, exact_measurement, sampled
from tests.support.types import linear_operator

BLOB = 0.16
BLOBS: list[Shape] = [Blob(1.0, BLOB, 0.2, -0.1, 0.05), Blob(0.5, 0.2, -0.2, 0.2, -0.1)]
ELLIPSES: list[Shape] = [Ellipse(1.0, 0.7, 0.5, 0.1, -0.05, 20.0), Ellipse(-0.6, 0.3, 0.2, 0.2, 0.1, -30.0)]
ELLIPSOIDS: list[Shape] = [Ellipsoid(1.0, 0.7, 0.6, 0.4, 0.1, -0.05, 0.03, 20.0), Ellipsoid(-0.6, 0.3, 0.2, 0.2, 0.2)]
SCANS: dict[str, tuple[str, dict[str, Any]]] = {
    "parallel, folded": ("folded", {"angles": 16}),
    "parallel, joseph": ("joseph", {"angles": [11.0 * k for k in range(16)]}),
    "fan, flat, folded": ("folded", {"beam": "fan", "angles": 16, "source_distance": 4.0, "detector_distance": 1.0}),
    "fan, curved, joseph": ("joseph", {"beam": "fan", "angles": 16, "source_distance": 4.0, "curved": True}),
    "cone": ("joseph-3d", {"beam": "cone", "angles": 8, "source_distance": 5.0}),
    "helix, curved": ("joseph-3d", {"beam": "cone", "angles": 8, "source_distance": 5.0, "curved": True, "feed": 0.3}),
    "parallel, volume, tilted": ("joseph-3d", {"angles": 8, "tilt": 25.0}),
}


def relative_error(name: str, size: int, shapes: list[Shape], supersample: int = 1) -> float:
    projector, given = SCANS[name]
    deep = projector == "joseph-3d"
    g = Geometry(
        image_size=[2 * size // 3, size, size] if deep else [size, size],
        pixel_size=2 / size,
        **given,
    )
    exact = exact_measurement(shapes, g)
    operator = linear_operator("ct", geometry=g, projector=projector).double()
    return float((operator(sampled(shapes, g, supersample)[None])[0] - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", SCANS)
def test_the_error_of_smooth_objects_falls_with_the_square_of_the_pixel(name: str) -> None:
    coarse, fine = (relative_error(name, size, BLOBS) for size in (18, 36))
    # Of second order, and not yet far into it: 18 pixels are 1.4 to a width.
    assert fine < 2**-1.5 * coarse
    # Linear interpolation adds at most an eighth of the second derivative, whose norm for a Gaussian is sqrt(3) / 2 of its own
    # over the width squared; a volume is interpolated along two axes.
    axes = 2 if SCANS[name][0] == "joseph-3d" else 1
    assert fine < axes * math.sqrt(3) / 16 * (2 / 36 / BLOB) ** 2


@pytest.mark.parametrize("name", [n for n in SCANS if n != "helix, curved"])
def test_the_error_of_sharp_objects_falls_too(name: str) -> None:
    shapes = ELLIPSOIDS if SCANS[name][0] == "joseph-3d" else ELLIPSES
    coarse, fine = (relative_error(name, size, shapes, 3) for size in (18, 36))
    # Next to an edge a chord grows with the root of the distance: an error of order 1/2 at least, in the mean square.
    assert fine < 2**-0.5 * coarse
    # No more than a pixel of the smallest semi-axis, 0.2.
    assert fine < 2 / 36 / 0.2


def test_fourier_is_far_more_accurate_for_smooth_objects() -> None:
    g = Geometry(image_size=48, pixel_size=2 / 48, angles=12, detector_spacing=0.03)
    exact = exact_measurement(BLOBS, g)
    operator = linear_operator("ct", geometry=g, projector="fourier").double()
    error = float((operator(sampled(BLOBS, g)[None])[0] - exact).norm() / exact.norm())
    # Width 3.8 pixels: beyond half a cycle per pixel there is exp(-72); the kernel is good for 1e-4 (Beatty 2005).
    assert error < 1e-4


def test_closed_forms_are_numerical_integrals() -> None:
    """Along rays of a cone and of a fan, by the midpoint rule; smooth and sharp shapes."""
    for g, shapes in (
        (
            Geometry(beam="cone", image_size=[3, 6, 6], angles=[20.0], source_distance=9.0, detectors=9),
            [*BLOBS, *ELLIPSOIDS],
        ),
        (Geometry(beam="fan", image_size=6, angles=[20.0], source_distance=9.0, image_offset=(0.3, 0.2)), ELLIPSES),
    ):
        exact, views, half = exact_measurement(shapes, g), g.views(), 3.0
        t = (np.arange(2000) + 0.5) / 2000 * 20
        for view in range(len(g.angles)):
            place = views.pixels(view)
            way = place - views.source[view]
            way = way / np.linalg.norm(way, axis=-1, keepdims=True)
            points = (views.source[view] + way[..., None, :] * t[:, None] - np.array(g.image_offset)) / half
            values = np.zeros(points.shape[:-1])
            for s in shapes:
                p = points - np.array([s.x, s.y, getattr(s, "z", 0.0)])[: g.dimensions]
                if isinstance(s, Blob):
                    values += s.value * np.exp(-(p**2).sum(-1) / 2 / s.width**2)
                    continue
                cos, sin = math.cos(math.radians(s.degrees)), math.sin(math.radians(s.degrees))
                u, v = (p[..., 0] * cos + p[..., 1] * sin) / s.a, (p[..., 1] * cos - p[..., 0] * sin) / s.b
                w = p[..., 2] / s.c if isinstance(s, Ellipsoid) else 0.0
                values += s.value * (u * u + v * v + w * w <= 1)
            wanted = torch.from_numpy(values.sum(-1) * 20 / 2000).reshape(exact[view].shape)
            # Each end of a chord falls somewhere in a step: two ends of at most four shapes.
            torch.testing.assert_close(exact[view], wanted, atol=8 * 20 / 2000, rtol=0)
