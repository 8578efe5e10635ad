"""Where source, detector and image stand in each view of a tomographic scan: what is stated, completed and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from invsolve.errors import UserError

_BEAMS = ("parallel", "fan", "cone")


@dataclass(frozen=True)
class Views:
    """Every view in the axes of the geometry: detector pixel (r, k) lies at middle + a[k] u + b[k] normal + m[r] v.

    Attributes:
        source: (views, dimensions), where the source is; for parallel beams the direction of its rays.
        middle, u, v, normal: (views, dimensions); v is zero in 2-D.
        a, b: (detectors,).
        m: (detector_rows,).
    """

    source: np.ndarray
    middle: np.ndarray
    u: np.ndarray
    v: np.ndarray
    normal: np.ndarray
    a: np.ndarray
    b: np.ndarray
    m: np.ndarray

    def pixels(self, view: int) -> np.ndarray:
        """Where the detector pixels of a view are, (detector_rows, detectors, dimensions)."""
        columns = self.middle[view] + self.a[:, None] * self.u[view] + self.b[:, None] * self.normal[view]
        return columns[None] + self.m[:, None, None] * self.v[view]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What `Geometry` states, which says what each is; and the rays that follow from it."""

    beam: Literal["parallel", "fan", "cone"] = "parallel"
    image_size: tuple[int, ...]
    angles: tuple[float, ...] = ()
    detectors: int = 0
    detector_spacing: float = 0.0
    pixel_size: float = 1.0
    centre: float = math.nan
    source_distance: float = math.inf
    detector_distance: float = 0.0
    source_offset: float = 0.0
    curved: bool = False
    detector_rows: int = 0
    row_spacing: float = 0.0
    row_centre: float = math.nan
    slice_thickness: float = 0.0
    roll: float = 0.0
    tilt: float = 0.0
    feed: float = 0.0
    image_offset: tuple[float, ...] = ()
    unit: str = ""
    vectors: tuple[tuple[float, ...], ...] = ()

    if TYPE_CHECKING:
        # What may be given is wider than what is kept.
        def __init__(
            self,
            *,
            beam: str = ...,
            image_size: int | Sequence[int],
            angles: int | Sequence[float] | np.ndarray = ...,
            detectors: int = ...,
            detector_spacing: float = ...,
            pixel_size: float = ...,
            centre: float = ...,
            source_distance: float = ...,
            detector_distance: float = ...,
            source_offset: float = ...,
            curved: bool = ...,
            detector_rows: int = ...,
            row_spacing: float = ...,
            row_centre: float = ...,
            slice_thickness: float = ...,
            roll: float = ...,
            tilt: float = ...,
            feed: float = ...,
            image_offset: Sequence[float] = ...,
            unit: str = ...,
            vectors: Sequence[Sequence[float]] | np.ndarray = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        _complete(self)
        _check(self)

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.image_size)

    @property
    def rows(self) -> int:
        """Image rows, along y from its top."""
        return self.image_size[-2]

    @property
    def columns(self) -> int:
        """Image columns, along x."""
        return self.image_size[-1]

    @property
    def slices(self) -> int:
        """Image slices, along z; 1 in 2-D."""
        return self.image_size[0] if self.dimensions == 3 else 1

    @property
    def is_square(self) -> bool:
        return self.rows == self.columns

    @property
    def pixels(self) -> int:
        return math.prod(self.image_size)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(angles, detectors), or (angles, detector rows, detectors) in 3-D."""
        rows = (self.detector_rows,) if self.dimensions == 3 else ()
        return (len(self.angles), *rows, self.detectors)

    @property
    def width(self) -> float:
        """The longer side of the image, length units."""
        return max(self.rows, self.columns) * self.pixel_size

    @property
    def radius(self) -> float:
        """Distance of the image's farthest corner from the axis, length units."""
        sides = (self.columns * self.pixel_size / 2, self.rows * self.pixel_size / 2)
        return math.hypot(*(abs(offset) + side for offset, side in zip(self.image_offset, sides, strict=False)))

    @property
    def magnification(self) -> float:
        """By how much what is on the axis appears larger on the detector."""
        return 1 + self.detector_distance / self.source_distance

    def positions(self) -> np.ndarray:
        """Coordinate of each detector pixel along the detector, 0 where the axis projects to; length units."""
        return (np.arange(self.detectors) - self.centre) * self.detector_spacing

    def views(self) -> Views:
        """Source and detector of each view, in float64."""
        columns, rows = self.positions(), (np.arange(self.detector_rows) - self.row_centre) * self.row_spacing
        if self.vectors:
            table = np.asarray(self.vectors).reshape(len(self.vectors), -1, self.dimensions)
            middle_column, middle_row = (self.detectors - 1) / 2, (self.detector_rows - 1) / 2
            v = table[:, 3] if self.dimensions == 3 else np.zeros_like(table[:, 0])
            normal = table[:, 0] if self.beam == "parallel" else table[:, 1] - table[:, 0]
            a, m = np.arange(self.detectors) - middle_column, np.arange(self.detector_rows) - middle_row
            return Views(table[:, 0], table[:, 1], table[:, 2], v, normal, a, 0 * a, m)
        angle = np.deg2rad(np.asarray(self.angles))
        zero, one = np.zeros_like(angle), np.ones_like(angle)
        u = np.stack([np.cos(angle), np.sin(angle), zero], 1)
        forward = np.stack([-np.sin(angle), np.cos(angle), zero], 1)
        up = np.stack([zero, zero, one], 1)
        tilt, roll = math.radians(self.tilt), math.radians(self.roll)
        normal, v = math.cos(tilt) * forward + math.sin(tilt) * up, math.cos(tilt) * up - math.sin(tilt) * forward
        height = self.feed * (np.asarray(self.angles) - (max(self.angles) + min(self.angles)) / 2) / 360
        lift = height[:, None] * up
        middle = self.detector_distance * normal + lift
        source = normal if self.beam == "parallel" else self.source_offset * u - self.source_distance * normal + lift
        u, v = math.cos(roll) * u + math.sin(roll) * v, math.cos(roll) * v - math.sin(roll) * u
        a, b = columns, np.zeros_like(columns)
        if self.curved:
            reach = self.source_distance + self.detector_distance
            a, b = reach * np.sin(columns / reach), reach * (np.cos(columns / reach) - 1)
        d = self.dimensions
        return Views(source[:, :d], middle[:, :d], u[:, :d], v[:, :d], normal[:, :d], a, b, rows)

    def lines(self) -> tuple[np.ndarray, np.ndarray]:
        """In 2-D, each ray as x cos(angle) + y sin(angle) = s around the image's middle: degrees and s, (views, detectors)."""
        x, y = self.image_offset[:2]
        if self.beam == "parallel" and not self.vectors:
            degrees, s = np.broadcast_arrays(np.asarray(self.angles)[:, None], self.positions())
        else:
            views = self.views()
            place = np.stack([views.pixels(k)[0] for k in range(len(self.angles))])
            way = views.source[:, None] + 0 * place if self.beam == "parallel" else place - views.source[:, None]
            angle = np.arctan2(-way[..., 0], way[..., 1])
            degrees, s = np.rad2deg(angle), place[..., 0] * np.cos(angle) + place[..., 1] * np.sin(angle)
        angle = np.deg2rad(degrees)
        return degrees, s - x * np.cos(angle) - y * np.sin(angle)


#: The largest count of angles, pixels or detector pixels along an axis; what is more is a slip, and would fill the memory.
_COUNT = 2**20


def _complete(g: Scan) -> None:
    """Fill in the defaults, and turn lists and arrays into tuples, by which geometries are compared."""

    def put(name: str, value: Any) -> None:
        object.__setattr__(g, name, value)

    size: Any = g.image_size
    put("image_size", (int(size),) * 2 if np.ndim(size) == 0 else tuple(int(n) for n in size))
    if g.beam not in _BEAMS:
        raise UserError(f"geometry: beam must be one of {', '.join(_BEAMS)}, got {g.beam!r}")
    if g.dimensions not in (2, 3) or not 1 <= min(g.image_size) <= max(g.image_size) <= _COUNT:
        raise UserError(
            "geometry: image_size must be N, [rows, columns] or [slices, rows, columns], above 0 and at most "
            f"{_COUNT}, got {list(g.image_size)}"
        )
    table = np.asarray(g.vectors, dtype=np.float64)
    wide = 6 if g.dimensions == 2 else 12
    if table.size:
        if table.ndim != 2 or table.shape[1] != wide:
            raise UserError(f"geometry: vectors of {g.dimensions}-D images must be (views, {wide}), got {table.shape}")
        put("vectors", tuple(map(tuple, table.tolist())))
        way = table[:, :2] if g.beam == "parallel" else table[:, g.dimensions : g.dimensions + 2] - table[:, :2]
        put("angles", tuple(np.rad2deg(np.arctan2(-way[:, 0], way[:, 1])).tolist()))
        if not g.detectors:
            raise UserError("geometry: vectors say where the detector is, not how large: give detectors")
        put("detector_spacing", float(np.linalg.norm(table[0, 2 * g.dimensions : 3 * g.dimensions])))
    else:
        angles: Any = g.angles
        if np.ndim(angles) == 0:
            if not 1 <= float(angles) <= _COUNT:
                raise UserError(
                    f"geometry: angles must be a count from 1 to {_COUNT} or a list of degrees, got {angles}"
                )
            turn = 180 if g.beam == "parallel" else 360
            put("angles", tuple(turn * k / int(angles) for k in range(int(angles))))
        else:
            if np.ndim(angles) != 1:
                raise UserError(f"geometry: angles must be one list of degrees, got {np.ndim(angles)} axes of them")
            put("angles", tuple(np.asarray(angles, dtype=np.float64).tolist()))
    if not isinstance(g.unit, str):
        raise UserError(f"geometry: unit must be the name of a length, such as 'mm', got {g.unit!r}")
    put("slice_thickness", g.slice_thickness or g.pixel_size)
    put("image_offset", tuple(float(v) for v in g.image_offset) or (0.0,) * g.dimensions)
    _check_source(g)
    put("detector_spacing", g.detector_spacing or g.pixel_size * g.magnification)
    put("row_spacing", g.row_spacing or g.detector_spacing)
    for name in ("pixel_size", "detector_spacing", "row_spacing", "slice_thickness"):
        if not 0 < getattr(g, name) < math.inf:
            raise UserError(f"geometry: {name} must be > 0, got {getattr(g, name)}")
    if not g.vectors:
        put("detectors", g.detectors or max(1, _whole(2 * _shadow(g) / g.detector_spacing)))
        if not g.detector_rows and g.dimensions == 3:
            # As high as what is nearest to the source appears.
            grown = 1.0 if g.beam == "parallel" else g.magnification / (1 - g.radius / g.source_distance)
            put("detector_rows", _whole(g.slices * g.slice_thickness * grown / g.row_spacing))
    put("detector_rows", g.detector_rows or 1)
    put("centre", (g.detectors - 1) / 2 if math.isnan(g.centre) else float(g.centre))
    put("row_centre", (g.detector_rows - 1) / 2 if math.isnan(g.row_centre) else float(g.row_centre))


def _whole(count: float) -> int:
    """Rounded up, but for what arithmetic added."""
    return math.ceil(count - 1e-9)


def _shadow(g: Scan) -> float:
    """Half the width, along the detector, of the circle around the image."""
    if g.beam == "parallel":
        return g.radius
    half = math.asin(g.radius / g.source_distance)
    return g.magnification * g.source_distance * (half if g.curved else math.tan(half))


def _check_source(g: Scan) -> None:
    """Refuse a beam that is not for such images, or whose source or detector is nowhere or in the image."""
    if g.beam == "fan" and g.dimensions == 3:
        raise UserError(
            "geometry: a fan beam sees one slice; give beam='cone' for volumes, or image_size=[rows, columns]"
        )
    if g.beam == "cone" and g.dimensions == 2:
        raise UserError("geometry: a cone beam sees volumes; give image_size=[slices, rows, columns], or beam='fan'")
    if len(g.image_offset) != g.dimensions:
        raise UserError(f"geometry: image_offset must have {g.dimensions} numbers, got {len(g.image_offset)}")
    if g.beam == "parallel":
        if g.curved or g.source_distance != math.inf:
            raise UserError("geometry: a parallel beam has no source_distance and no curved detector; give beam='fan'")
        return
    if g.vectors:
        return
    if not g.source_distance < math.inf:
        raise UserError(f"geometry: a {g.beam} beam needs source_distance, from the source to the axis")
    if g.source_distance + g.detector_distance <= 0:
        raise UserError("geometry: the detector is not behind the source; detector_distance is from the axis to it")
    if g.source_distance <= g.radius:
        raise UserError(
            f"geometry: the source, {g.source_distance:g} from the axis, is inside the circle around the image, of "
            f"radius {g.radius:g}; make image_size or pixel_size smaller, or check the unit of source_distance"
        )


def _check(g: Scan) -> None:
    if not g.angles or not all(map(math.isfinite, g.angles)):
        raise UserError("geometry: angles must be a count >= 1 or a list of finite degrees")
    if not (1 <= g.detectors <= _COUNT and 1 <= g.detector_rows <= _COUNT):
        raise UserError(
            f"geometry: detectors and detector_rows must be >= 1 and at most {_COUNT}, got {g.detectors} and {g.detector_rows}"
        )
    flat = {"detector_rows": g.detector_rows - 1, "roll": g.roll, "tilt": g.tilt, "feed": g.feed}
    for name, value in flat.items() if g.dimensions == 2 else ():
        if value:
            raise UserError(f"geometry: {name} is for volumes; give image_size=[slices, rows, columns]")
    numbers = [g.centre, g.row_centre, g.detector_distance, g.source_offset, g.roll, g.tilt, g.feed, *g.image_offset]
    if not all(map(math.isfinite, [*numbers, *(value for row in g.vectors for value in row)])):
        raise UserError("geometry: positions, distances and vectors must be finite numbers")
    if g.vectors:
        placed = {"source_distance": g.source_distance != math.inf, "centre": g.centre != (g.detectors - 1) / 2}
        names = ("detector_distance", "source_offset", "curved", "roll", "tilt", "feed")
        placed |= {name: bool(getattr(g, name)) for name in names}
        for name, stated in placed.items():
            if stated:
                raise UserError(f"geometry: vectors place source and detector, so leave out {name}")
        _check_vectors(g)
    elif g.curved and np.abs(g.positions()).max() >= math.pi / 2 * (g.source_distance + g.detector_distance):
        raise UserError("geometry: the arc of the detector goes a quarter turn or more to one side; check its unit")


def _check_vectors(g: Scan) -> None:
    """Refuse vectors by which no ray can be drawn, or by which the image is not between source and detector."""
    views, middle = g.views(), np.asarray(g.image_offset)
    for name, vector in (("source to detector", views.normal), ("detector step", views.u)):
        if not (np.linalg.norm(vector, axis=1) > 0).all():
            raise UserError(f"geometry: vectors of view {int(np.linalg.norm(vector, axis=1).argmin())} have no {name}")
    if g.beam == "parallel":
        return
    half = np.array([g.columns * g.pixel_size, g.rows * g.pixel_size, g.slices * g.slice_thickness])[: g.dimensions] / 2
    inside = (np.abs(views.source - middle) <= half).all(1)
    behind = ((middle - views.source) * views.normal).sum(1) <= 0
    for name, wrong in (("inside the image", inside), ("between image and detector", behind)):
        if wrong.any():
            raise UserError(f"geometry: the source of view {int(wrong.argmax())} is {name}; check the unit of vectors")
