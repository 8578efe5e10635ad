"""Line integrals through diffct: exact lengths of rays in pixels, on CUDA by kernels of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.base import Projector, need, stated

_BEAMS = {("parallel", 2): "parallel", ("fan", 2): "fan", ("cone", 3): "cone", ("parallel", 3): "parallel3d"}
# diffct asks for detector axes that are unit vectors and at right angles to 1e-4; ours are held to rounding.
_STRAIGHT = 1e-6


class DiffctProjector(Projector):
    """Siddon's lengths (1985) of rays in the pixels that they cross, by diffct (Sun et al. 2026), any flat detector.

    On CUDA tensors in single precision the kernels are diffct's own; elsewhere its portable back end in torch.

    Raises:
        UserError: diffct is not installed.
    """

    name = "diffct"

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.stated = stated(geometry)
        need("diffct", "pip install 'invsolve[diffct]'")

    @classmethod
    def unsupported(cls, geometry: Geometry) -> str:
        if geometry.curved:
            return "only flat detectors are handed to diffct"
        if not geometry.vectors:
            return ""
        views = geometry.views()
        u, v = np.linalg.norm(views.u, axis=1), np.linalg.norm(views.v, axis=1)
        if np.ptp(u) > _STRAIGHT * u[0] or np.ptp(v) > _STRAIGHT * max(v[0], 1e-300):
            return "diffct has one detector spacing for all views"
        crossed = (views.u * (views.v if geometry.dimensions == 3 else views.normal)).sum(1)
        if geometry.dimensions == 2 and geometry.beam == "fan":
            return ""
        across = v if geometry.dimensions == 3 else np.linalg.norm(views.normal, axis=1)
        slanted = np.abs(crossed) > _STRAIGHT * u * across
        return "diffct's detectors have axes at right angles" if slanted.any() else ""

    def _made(self, like: Tensor) -> Any:
        """diffct's object for this precision and device."""

        def make() -> Any:
            diffct: Any = need("diffct", "pip install 'invsolve[diffct]'")
            g, views = self.geometry, self.geometry.views()
            deep = g.dimensions == 3
            # Its y grows with the row.
            down = np.array([1.0, -1.0, 1.0])[: g.dimensions]
            shift = np.asarray(g.image_offset)
            source = views.source / np.linalg.norm(views.source, axis=1, keepdims=True)
            if g.beam != "parallel":
                source = views.source - shift
            middle = views.middle + views.a.mean() * views.u + views.m.mean() * views.v - shift
            grown = 1.0 if g.beam == "parallel" else _beyond(g, source, middle, views.u, views.v)
            middle = source + grown * (middle - source) if g.beam != "parallel" else middle
            u, v = (np.linalg.norm(axis, axis=1, keepdims=True) for axis in (views.u, views.v))
            frames = [source, middle, views.u / u] + ([views.v / v] if deep else [])
            # What vectors hold are steps from pixel to pixel, elsewhere unit vectors.
            steps = (float(u[0, 0]), float(v[0, 0])) if g.vectors else (g.detector_spacing, g.row_spacing)
            spacing = tuple(grown * step for step in steps)
            native = like.is_cuda and like.dtype == torch.float32 and (g.beam, g.dimensions) != ("parallel", 3)
            return diffct.Projector(
                tuple(torch.from_numpy(np.ascontiguousarray(f * down)) for f in frames),
                g.image_size,
                (g.detectors, g.detector_rows) if deep else (g.detectors,),
                beam=_BEAMS[g.beam, g.dimensions],
                detector_spacing=spacing if deep else spacing[0],
                voxel_spacing=(g.slice_thickness, g.pixel_size, g.pixel_size) if deep else g.pixel_size,
                precision="float64" if like.dtype == torch.float64 else "fast",
                backend="numba" if native else "torch",
            )

        return self.remembered((like.device, like.dtype), make)

    def project(self, x: Tensor) -> Tensor:
        # diffct's are (views, columns, rows).
        y = self._made(x).project(x)
        return y.transpose(-1, -2) if self.geometry.dimensions == 3 else y

    def backproject(self, y: Tensor) -> Tensor:
        rays = y.transpose(-1, -2).contiguous() if self.geometry.dimensions == 3 else y
        return self._made(y).backproject(rays)


def _beyond(g: Geometry, source: np.ndarray, middle: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
    """By how much the detector is to be moved away from the source, growing, so that it stands behind the image.

    Its rays stay as they are; those of diffct end at the detector, which often is said to be on the axis.
    """
    half = np.array([g.columns * g.pixel_size, g.rows * g.pixel_size, g.slices * g.slice_thickness])[: g.dimensions] / 2
    across = np.stack([-u[:, 1], u[:, 0]], 1) if g.dimensions == 2 else np.cross(u, v)
    reach = ((middle - source) * across).sum(1)
    # Depths of the image's farthest corner, in the direction of the detector.
    depth = (-source * across).sum(1) * np.sign(reach) + (half * np.abs(across)).sum(1)
    return max(1.0, 1.001 * float((depth / np.abs(reach)).max()))
