"""Parallel-beam geometry, its fold by the symmetries of the square, and Joseph's line weights as a sparse matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

# Angles and detector positions are compared as integers: 1e-8 degrees and 1e-8 pixels.
_TURN = 360 * 10**8
_HALF = 180 * 10**8
_QUARTER = 90 * 10**8

#: The square's symmetries as (transpose, a, b). Plain: f_g(x, y) = f(a x, b y). Transposed: f_g(x, y) = f(a y, b x).
SYMMETRIES = [
    (False, 1, 1),
    (False, -1, -1),
    (True, 1, 1),
    (True, -1, -1),
    (False, -1, 1),
    (False, 1, -1),
    (True, 1, -1),
    (True, -1, 1),
]
#: Subgroups to fold by: all eight, those that serve a rotation centre off the detector's middle, the half turn alone, and
#: none. Which pays depends on which rays exist.
SUBGROUPS = ([0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [0, 1, 4, 5], [0, 1], [0, 2], [0, 4], [0])
#: Those that also leave a rectangle as it is: without transposes.
OF_RECTANGLES = ([0, 1, 4, 5], [0, 1], [0, 4], [0])


@dataclass(frozen=True)
class ParallelBeam:
    """Rays x cos(angle) + y sin(angle) = s, with x to the right, y up, and the image centred on the rotation axis.

    Attributes:
        rows, columns: of the image.
        angles: degrees.
        detectors: detector pixels an angle.
        detector_spacing, pixel_size: in one length unit.
        centre: detector index (0-based, may be fractional) onto which the rotation axis projects.
    """

    rows: int
    columns: int
    angles: tuple[float, ...]
    detectors: int
    detector_spacing: float
    pixel_size: float
    centre: float

    @property
    def is_square(self) -> bool:
        return self.rows == self.columns

    @property
    def pixels(self) -> int:
        return self.rows * self.columns

    @property
    def width(self) -> float:
        """The longer side of the image, length units."""
        return max(self.rows, self.columns) * self.pixel_size

    def positions(self) -> np.ndarray:
        """Detector coordinate s of each detector pixel, length units."""
        return (np.arange(self.detectors) - self.centre) * self.detector_spacing

    def angle_weights(self) -> np.ndarray:
        """Part of the half circle, in radians, that each angle stands for (half the gap to both neighbours)."""
        angles = np.asarray(self.angles) % 180
        order = np.argsort(angles, kind="stable")
        ordered = angles[order]
        gaps = np.diff(np.concatenate([ordered, ordered[:1] + 180]))
        weights = np.empty(len(angles))
        weights[order] = (gaps + np.roll(gaps, 1)) / 2
        return np.deg2rad(weights)


@dataclass(frozen=True)
class Folded:
    """Rays that the image's symmetries map onto one another share one matrix row.

    Attributes:
        matrix: (distinct rays, rows * columns), line weights of the representatives, in length units.
        row, copy: (angles * detectors,): ray r of the image is row `row[r]` applied to its copy `copy[r]`.
        symmetries: the copies, entries of SYMMETRIES.
    """

    matrix: sparse.csr_matrix
    row: np.ndarray
    copy: np.ndarray
    symmetries: list[tuple[bool, int, int]]


def fold(geometry: ParallelBeam) -> Folded:
    """Choose the subgroup that moves the fewest bytes in a product, and build its matrix."""
    angle = np.round(np.asarray(geometry.angles) % 360 * 1e8).astype(np.int64)
    position = np.round(geometry.positions() / geometry.pixel_size * 1e8).astype(np.int64)
    angle, position = (a.ravel() for a in np.broadcast_arrays(angle[:, None], position[None]))
    best: tuple[int, list[int], np.ndarray, np.ndarray, np.ndarray] | None = None
    for members in SUBGROUPS if geometry.is_square else OF_RECTANGLES:
        keys = np.stack([np.stack(_line(angle, position, SYMMETRIES[g]), -1) for g in members])
        chosen = np.lexsort((keys[..., 1], np.abs(keys[..., 1]), keys[..., 0]), axis=0)[0]
        canonical = np.take_along_axis(keys, chosen[None, :, None], 0)[0]
        distinct, row = np.unique(canonical, axis=0, return_inverse=True)
        # Bytes a stored weight moves: its index and value, and one number of each copy.
        cost = len(distinct) * (2 + len(members))
        if best is None or cost < best[0]:
            best = (cost, members, distinct, row.ravel(), chosen)
    assert best is not None
    _, members, distinct, row, chosen = best
    matrix = (
        joseph((geometry.rows, geometry.columns), distinct[:, 0] * 1e-8, distinct[:, 1] * 1e-8) * geometry.pixel_size
    )
    return Folded(matrix.tocsr(), row, chosen, [SYMMETRIES[g] for g in members])


def _line(angle: np.ndarray, position: np.ndarray, symmetry: tuple[bool, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The line, as (angle in [0, 180), position), on which the transformed image has the same integral."""
    transpose, a, b = symmetry
    if not transpose:
        turned = {(1, 1): angle, (-1, 1): _HALF - angle, (1, -1): -angle, (-1, -1): angle + _HALF}[a, b]
    else:
        turned = {
            (1, 1): _QUARTER - angle,
            (-1, 1): angle - _QUARTER,
            (1, -1): angle + _QUARTER,
            (-1, -1): 3 * _QUARTER - angle,
        }[a, b]
    turned = turned % _TURN
    return turned % _HALF, np.where(turned >= _HALF, -position, position)


def joseph(size: tuple[int, int], degrees: np.ndarray, position: np.ndarray) -> sparse.csr_matrix:
    """Joseph's method (1982): along the axis the ray runs closer to, linear interpolation across it; pixel units.

    Args:
        size: rows and columns.
        degrees, position: one line each, (rays,).

    Returns:
        (rays, rows * columns), row-major pixels.
    """
    rows, columns = size
    middle_row, middle_column = (rows - 1) / 2, (columns - 1) / 2
    parts = []
    for start in range(0, len(degrees), 4096):
        theta = np.deg2rad(degrees[start : start + 4096])
        s = position[start : start + 4096]
        steep = np.abs(np.cos(theta)) >= np.abs(np.sin(theta))
        for chosen, along, across in ((steep, rows, columns), (~steep, columns, rows)):
            ray = np.flatnonzero(chosen)
            cos, sin, at = np.cos(theta[ray])[:, None], np.sin(theta[ray])[:, None], s[ray][:, None]
            step = np.arange(along)
            # In which column a steep ray crosses each row (y = middle - row), in which row a flat one each column.
            if chosen is steep:
                crossing = (at - (middle_row - step) * sin) / cos + middle_column
            else:
                crossing = middle_row - (at - (step - middle_column) * cos) / sin
            low = np.floor(crossing).astype(np.int64)
            upper = crossing - low
            length = np.broadcast_to(1 / np.maximum(np.abs(cos), np.abs(sin)), low.shape)
            of = np.broadcast_to(ray[:, None] + start, low.shape)
            for tap, weight in ((low, 1 - upper), (low + 1, upper)):
                pixel = step * columns + tap if chosen is steep else tap * columns + step
                kept = (tap >= 0) & (tap < across) & (weight > 1e-7)
                parts.append((of[kept], pixel[kept], length[kept] * weight[kept]))
    ray, pixels, weights = (np.concatenate(p) for p in zip(*parts, strict=True))
    return sparse.csr_matrix((weights, (ray, pixels)), shape=(len(degrees), rows * columns))


def ramp_filter(detectors: int, spacing: float, window: str) -> np.ndarray:
    """Frequency response (rfft of 2^k >= 2 * detectors points) of the ramp filter (Kak & Slaney, eq. 3.29).

    Args:
        detectors: detector pixels.
        spacing: detector spacing, length units.
        window: "ramp" for none, or "hann".
    """
    points = 2 ** math.ceil(math.log2(2 * detectors))
    n = np.fft.fftfreq(points, 1 / points).astype(np.int64)
    kernel = np.zeros(points)
    kernel[0] = 1 / (4 * spacing**2)
    odd = n % 2 == 1
    kernel[odd] = -1 / (np.pi * n[odd] * spacing) ** 2
    response = np.fft.rfft(kernel).real * spacing
    if window == "hann":
        response = response * (0.5 + 0.5 * np.cos(np.pi * np.arange(len(response)) / (len(response) - 1)))
    return response
