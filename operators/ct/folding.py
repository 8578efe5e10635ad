"""Rays that the symmetries of the image map onto one another, and Joseph's line weights of one of each, as a sparse matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from invsolve.operators.ct.geometry import Geometry

# Angles and positions of rays are compared as integers: 1e-8 degrees and 1e-8 pixels.
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
#: What to fold by: all eight, subgroups that serve a rotation centre off the detector's middle, the half turn alone, a quarter
#: turn one way (views 90 degrees apart share rows wherever the axis is), and none. Which pays depends on which rays exist.
SUBGROUPS = (
    [0, 1, 2, 3, 4, 5, 6, 7],
    [0, 1, 2, 3],
    [0, 1, 4, 5],
    [0, 1, 6, 7],
    [0, 1],
    [0, 2],
    [0, 4],
    [0, 6],
    [0, 7],
    [0],
)
#: Those that also leave a rectangle as it is: without transposes.
OF_RECTANGLES = ([0, 1, 4, 5], [0, 1], [0, 4], [0])
# A stored weight and its index, in the matrix and in its transpose.
_ENTRY = 2 * (4 + 4)


@dataclass(frozen=True)
class Plan:
    """Which rays share a row of the matrix.

    Attributes:
        members: of SYMMETRIES.
        distinct: (rows, 2), the representatives: angle and position, as integers.
        row, copy: (rays,): ray r of the image is row `row[r]` applied to its copy `copy[r]`.
    """

    members: list[int]
    distinct: np.ndarray
    row: np.ndarray
    copy: np.ndarray

    def bytes(self, geometry: Geometry) -> int:
        """What the matrix and its transpose take, at most."""
        return 2 * max(geometry.image_size) * len(self.distinct) * _ENTRY


@dataclass(frozen=True)
class Folded:
    """Rays that the image's symmetries map onto one another share one matrix row.

    Attributes:
        matrix: (distinct rays, rows * columns), line weights of the representatives, in length units.
        row, copy: as in `Plan`.
        symmetries: the copies, entries of SYMMETRIES.
    """

    matrix: sparse.csr_matrix
    row: np.ndarray
    copy: np.ndarray
    symmetries: list[tuple[bool, int, int]]


def plan(geometry: Geometry) -> Plan:
    """Choose the subgroup that moves the fewest bytes in a product, for the rays of any 2-D geometry."""
    degrees, s = geometry.lines()
    angle = np.round(degrees % 360 * 1e8).astype(np.int64).ravel()
    position = np.round(s / geometry.pixel_size * 1e8).astype(np.int64).ravel()
    best: tuple[int, Plan] | None = None
    for members in SUBGROUPS if geometry.is_square else OF_RECTANGLES:
        keys = np.stack([np.stack(_line(angle, position, SYMMETRIES[g]), -1) for g in members])
        chosen = np.lexsort((keys[..., 1], np.abs(keys[..., 1]), keys[..., 0]), axis=0)[0]
        canonical = np.take_along_axis(keys, chosen[None, :, None], 0)[0]
        distinct, row = np.unique(canonical, axis=0, return_inverse=True)
        # Bytes a stored weight moves: its index and value, and one number of each copy.
        cost = len(distinct) * (2 + len(members))
        if best is None or cost < best[0]:
            best = (cost, Plan(members, distinct, row.ravel(), chosen))
    assert best is not None
    return best[1]


def fold(geometry: Geometry) -> Folded:
    """The plan, and the matrix of its representatives."""
    chosen = plan(geometry)
    degrees, position = chosen.distinct[:, 0] * 1e-8, chosen.distinct[:, 1] * 1e-8
    matrix = joseph((geometry.rows, geometry.columns), degrees, position) * geometry.pixel_size
    return Folded(matrix.tocsr(), chosen.row, chosen.copy, [SYMMETRIES[g] for g in chosen.members])


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
