"""Phantoms made of ellipses, ellipsoids and blobs: their pictures, and their line integrals in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from invsolve.errors import UserError
from invsolve.operators.ct.geometry import Geometry


@dataclass(frozen=True)
class Ellipse:
    """One ellipse, in coordinates where the image spans [-1, 1]; x to the right, y up.

    Args:
        value: what it adds inside.
        a, b: semi-axes.
        x, y: centre.
        degrees: angle from the x axis to semi-axis `a`, anticlockwise.
    """

    value: float
    a: float
    b: float
    x: float = 0.0
    y: float = 0.0
    degrees: float = 0.0


@dataclass(frozen=True)
class Ellipsoid:
    """One ellipsoid, in coordinates where the longest side of the image spans [-1, 1]; x to the right, y up, z with the slices.

    Args:
        value: what it adds inside.
        a, b, c: semi-axes.
        x, y, z: centre.
        degrees: angle from the x axis to semi-axis `a`, anticlockwise around z.
    """

    value: float
    a: float
    b: float
    c: float
    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    degrees: float = 0.0


@dataclass(frozen=True)
class Blob:
    """A round Gaussian in the plane or in space, in the coordinates of `Ellipsoid`.

    Args:
        value: at its centre.
        width: standard deviation.
        x, y, z: centre; z does not count in the plane.
    """

    value: float
    width: float
    x: float = 0.0
    y: float = 0.0
    z: float = 0.0


Shape = Ellipse | Ellipsoid | Blob


def shepp_logan() -> list[Ellipse]:
    """The Shepp-Logan head with Toft's contrasts (1996), values in [0, 1]."""
    return [
        Ellipse(1.0, 0.69, 0.92),
        Ellipse(-0.8, 0.6624, 0.874, 0.0, -0.0184),
        Ellipse(-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
        Ellipse(-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
        Ellipse(0.1, 0.21, 0.25, 0.0, 0.35),
        Ellipse(0.1, 0.046, 0.046, 0.0, 0.1),
        Ellipse(0.1, 0.046, 0.046, 0.0, -0.1),
        Ellipse(0.1, 0.046, 0.023, -0.08, -0.605),
        Ellipse(0.1, 0.023, 0.023, 0.0, -0.606),
        Ellipse(0.1, 0.023, 0.046, 0.06, -0.605),
    ]


def thorax() -> list[Ellipse]:
    """A made-up slice of a chest: body, lungs with nodules and vessels, heart, aorta, spine, ribs; in [0, 1]."""
    tissue, lung, bone = 0.5, -0.4, 0.4
    body = [Ellipse(tissue, 0.92, 0.68), Ellipse(-0.06, 0.88, 0.64), Ellipse(0.06, 0.82, 0.585)]
    lungs = [Ellipse(lung, 0.26, 0.4, -0.45, 0.02, -8.0), Ellipse(lung, 0.24, 0.4, 0.48, 0.02, 8.0)]
    middle = [
        Ellipse(0.08, 0.16, 0.22, 0.03, 0.16, 25.0),
        Ellipse(0.1, 0.055, 0.055, 0.08, -0.16),
        Ellipse(bone, 0.11, 0.075, 0.0, -0.31),
        Ellipse(bone, 0.075, 0.05, 0.0, -0.44),
        Ellipse(-bone, 0.045, 0.03, 0.0, -0.44),
        Ellipse(bone, 0.02, 0.045, 0.0, -0.54),
        Ellipse(bone, 0.09, 0.025, 0.0, 0.53),
    ]
    nodules = [
        Ellipse(0.35, 0.035, 0.03, -0.55, 0.2),
        Ellipse(0.3, 0.02, 0.02, -0.38, -0.12),
        Ellipse(0.35, 0.028, 0.04, 0.56, -0.14, 30.0),
        Ellipse(0.25, 0.012, 0.06, -0.36, 0.1, 35.0),
        Ellipse(0.25, 0.012, 0.07, 0.44, 0.12, -40.0),
    ]
    ribs = []
    for degrees in (20, 50, 130, 160, 200, 230, 310, 340):
        angle = np.deg2rad(degrees)
        x, y = 0.8 * np.cos(angle), 0.56 * np.sin(angle)
        along = np.rad2deg(np.arctan2(0.56 * np.cos(angle), -0.8 * np.sin(angle)))
        ribs.append(Ellipse(bone, 0.075, 0.022, float(x), float(y), float(along)))
    return [*body, *lungs, *middle, *nodules, *ribs]


def render(ellipses: Sequence[Ellipse], size: int, supersample: int = 4) -> Tensor:
    """Draw the picture, each pixel the mean of supersample^2 points; (1, size, size), float32.

    Raises:
        UserError: size or supersample below 1.
    """
    if size < 1 or supersample < 1:
        raise UserError(f"phantom: size and supersample must be at least 1, got {size} and {supersample}")
    points = size * supersample
    x = (2 * np.arange(points) + 1) / points - 1
    y = -x[:, None]
    image = np.zeros((points, points))
    for e in ellipses:
        cos, sin = np.cos(np.deg2rad(e.degrees)), np.sin(np.deg2rad(e.degrees))
        u = ((x - e.x) * cos + (y - e.y) * sin) / e.a
        v = ((y - e.y) * cos - (x - e.x) * sin) / e.b
        image += e.value * (u * u + v * v <= 1)
    pixels = image.reshape(size, supersample, size, supersample).mean((1, 3))
    return torch.from_numpy(pixels.astype(np.float32))[None]


def sinogram(
    ellipses: Sequence[Ellipse],
    angles_degrees: Sequence[float] | np.ndarray,
    detectors: int,
    image_size: int,
    detector_spacing: float | None = None,
    centre: float | None = None,
    pixel_size: float = 1.0,
    bin_average: bool = False,
) -> Tensor:
    """Line integrals in closed form, in the geometry of operator "ct": (angles, detectors), values times length.

    Args:
        ellipses: the phantom.
        angles_degrees: rays are x cos(angle) + y sin(angle) = s.
        detectors: detector pixels an angle.
        image_size, pixel_size: the image is image_size * pixel_size wide; the phantom's [-1, 1] spans it.
        detector_spacing: default pixel_size.
        centre: detector index of the rotation axis; default (detectors - 1) / 2.
        bin_average: average over each detector pixel instead of taking the ray through its middle.
    """
    half = image_size * pixel_size / 2
    spacing = pixel_size if detector_spacing is None else detector_spacing
    middle = (detectors - 1) / 2 if centre is None else centre
    theta = np.deg2rad(np.asarray(angles_degrees, dtype=np.float64))[:, None]
    s = (np.arange(detectors) - middle) * spacing
    total = np.zeros((len(theta), detectors))
    for e in ellipses:
        a, b, turned = e.a * half, e.b * half, theta - np.deg2rad(e.degrees)
        r2 = (a * np.cos(turned)) ** 2 + (b * np.sin(turned)) ** 2
        t = s - half * (e.x * np.cos(theta) + e.y * np.sin(theta))
        if bin_average:
            upper, lower = (_primitive(t + shift, r2) for shift in (spacing / 2, -spacing / 2))
            total += e.value * a * b * (upper - lower) / spacing
        else:
            total += 2 * e.value * a * b * np.sqrt(np.clip(r2 - t * t, 0, None)) / r2
    return torch.from_numpy(total.astype(np.float32))


def _primitive(t: np.ndarray, r2: np.ndarray) -> np.ndarray:
    """Antiderivative in t of 2 sqrt(r^2 - t^2) / r^2, constant outside [-r, r]."""
    r = np.sqrt(r2)
    t = np.clip(t, -r, r)
    return t * np.sqrt(np.clip(r2 - t * t, 0, None)) / r2 + np.arcsin(t / r)


def exact_measurement(shapes: Sequence[Shape], geometry: Geometry) -> Tensor:
    """Line integrals in closed form along the rays through the middles of a geometry's detector pixels, float64.

    Args:
        shapes: the phantom, whose [-1, 1] spans the longest side of the image around its middle.
        geometry: of operator "ct".

    Returns:
        (*geometry.measurement_shape,), values times length.
    """
    views, half = geometry.views(), _half_side(geometry)
    total = np.zeros((len(geometry.angles), geometry.detector_rows, geometry.detectors))
    for view in range(len(total)):
        place = views.pixels(view)
        way = (
            np.broadcast_to(views.source[view], place.shape)
            if geometry.beam == "parallel"
            else place - views.source[view]
        )
        way = way / np.linalg.norm(way, axis=-1, keepdims=True)
        place = (place - np.asarray(geometry.image_offset)) / half
        total[view] = half * sum(_along(shape, place, way) for shape in shapes)
    return torch.from_numpy(total).view(geometry.measurement_shape)


def sampled(shapes: Sequence[Shape], geometry: Geometry, supersample: int = 1) -> Tensor:
    """Draw the phantom on a geometry's image, each pixel the mean of supersample^dimensions points; (1, *image_size), float64."""
    sides = [geometry.slice_thickness, geometry.pixel_size, geometry.pixel_size][-geometry.dimensions :]
    axes = []
    for count, side in zip(geometry.image_size, sides, strict=True):
        points = count * supersample
        axes.append((np.arange(points) - (points - 1) / 2) * side / supersample / _half_side(geometry))
    grid = list(np.meshgrid(*axes, indexing="ij"))
    grid[-2] = -grid[-2]
    place = np.stack(grid[::-1], -1)
    image = np.zeros(place.shape[:-1])
    for shape in shapes:
        if isinstance(shape, Blob):
            distance = ((place - _centre(shape, place.shape[-1])) ** 2).sum(-1)
            image += shape.value * np.exp(-distance / (2 * shape.width**2))
        else:
            image += shape.value * ((_round(shape, place, True) ** 2).sum(-1) <= 1)
    cut = [n for count in geometry.image_size for n in (count, supersample)]
    return torch.from_numpy(image.reshape(cut).mean(tuple(range(1, len(cut), 2))))[None]


def _half_side(geometry: Geometry) -> float:
    return max(geometry.width, geometry.slices * geometry.slice_thickness if geometry.dimensions == 3 else 0.0) / 2


def _centre(shape: Shape, dimensions: int) -> np.ndarray:
    return np.array([shape.x, shape.y, getattr(shape, "z", 0.0)])[:dimensions]


def _round(shape: Ellipse | Ellipsoid, vectors: np.ndarray, place: bool) -> np.ndarray:
    """Vectors in the axes in which an ellipse or ellipsoid is the unit sphere; places also relative to its centre."""
    if place:
        vectors = vectors - _centre(shape, vectors.shape[-1])
    cos, sin = np.cos(np.deg2rad(shape.degrees)), np.sin(np.deg2rad(shape.degrees))
    turned = [vectors[..., 0] * cos + vectors[..., 1] * sin, vectors[..., 1] * cos - vectors[..., 0] * sin]
    axes = [shape.a, shape.b]
    if isinstance(shape, Ellipsoid):
        turned, axes = [*turned, vectors[..., 2]], [*axes, shape.c]
    return np.stack(turned, -1) / np.array(axes)


def _along(shape: Shape, place: np.ndarray, way: np.ndarray) -> np.ndarray:
    """The integral of a shape along lines through `place` in the direction of unit vectors `way`."""
    if isinstance(shape, Blob):
        from_centre = place - _centre(shape, place.shape[-1])
        squared = (from_centre**2).sum(-1) - (from_centre * way).sum(-1) ** 2
        return shape.value * shape.width * np.sqrt(2 * np.pi) * np.exp(-squared / (2 * shape.width**2))
    start, step = _round(shape, place, True), _round(shape, way, False)
    # |start + t step| = 1 at two t, whose distance is the chord.
    a, b, c = (step**2).sum(-1), (start * step).sum(-1), (start**2).sum(-1) - 1
    return shape.value * 2 * np.sqrt(np.clip(b * b - a * c, 0, None)) / a
