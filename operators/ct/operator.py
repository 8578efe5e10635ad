"""Parallel-beam computed tomography in 2-D: line integrals by a folded sparse matrix, with its exact transpose."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.arguments import as_array, by_parts, rows_and_columns
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.operator import matching
from invsolve.errors import UserError
from invsolve.numerics.autograd import linear_map
from invsolve.operators.ct.edges import angle_weights, backproject, cut_off, extended, overlap, ray_weights
from invsolve.operators.ct.geometry import ParallelBeam, fold, ramp_filter

# Bytes of image copies that are multiplied at once on a CPU: beyond the caches it gets several times slower.
_CACHE_BYTES = 32 * 2**20


class CT(MaskableOperator):
    """Parallel-beam line integrals, any angles, detector and rotation centre; matched adjoint.

    y = line integrals of x along parallel rays; x (B, 1, rows, columns), y (B, angles, detectors).

    Rays are x cos(angle) + y sin(angle) = s with x to the right, y up, the image centred on the rotation axis. Line
    weights are Joseph's (1982). y is in units of x times a length. Groups for active acquisition are the angles.

    Args:
        image_size: N for N x N pixels, or [rows, columns].
        angles: a count, equally spaced on [0, 180) degrees, or a list in degrees.
        detectors: detector pixels an angle; default covers the image's diagonal.
        detector_spacing: in the unit of pixel_size; default pixel_size.
        centre: detector index (0-based, may be fractional) onto which the rotation axis projects; default the middle,
            (detectors - 1) / 2.
        pixel_size: side of an image pixel, in a length unit of your choice.

    Raises:
        UserError: a size, count or spacing that is not positive, or fewer than one angle.
    """

    name = "ct"
    closed_forms = "filtered back-projection"
    advice = "--set angles=60"

    examples = (
        {"image_size": 12, "angles": 8},
        {"image_size": 11, "angles": [0.0, 17.0, 45.0, 90.0, 133.3], "detectors": 14, "centre": 5.8, "pixel_size": 0.5},
        {"image_size": 10, "angles": 6, "detector_spacing": 1.5, "detectors": 9},
        {"image_size": [8, 13], "angles": [0.0, 21.0, 45.0, 90.0, 135.0, 159.0], "centre": 7.3},
    )

    def __init__(
        self,
        image_size: int | list[int],
        angles: int | Tensor = 180,
        detectors: int | None = None,
        detector_spacing: float | None = None,
        centre: float | None = None,
        pixel_size: float = 1.0,
    ) -> None:
        super().__init__()
        size = rows_and_columns(image_size, "operator 'ct'")
        assert size is not None
        if isinstance(angles, int | np.integer):
            degrees = [180 * k / int(angles) for k in range(int(angles))]
        else:
            listed = as_array(angles, "operator 'ct': angles")
            if listed.ndim > 1:
                raise UserError(
                    f"operator 'ct': angles must be a count or a list of degrees, got shape {tuple(listed.shape)}"
                )
            degrees = listed.double().flatten().tolist()
        spacing = pixel_size if detector_spacing is None else detector_spacing
        for name, value in (("pixel_size", pixel_size), ("detector_spacing", spacing)):
            if not value > 0:
                raise UserError(f"operator 'ct': {name} must be > 0, got {value}")
        if not degrees or not all(math.isfinite(d) for d in degrees):
            raise UserError("operator 'ct': angles must be a count >= 1 or a list of finite degrees")
        bins = math.ceil(math.hypot(*size) * pixel_size / spacing) if detectors is None else detectors
        if bins < 1:
            raise UserError(f"operator 'ct': detectors must be >= 1, got {bins}")
        middle = (bins - 1) / 2 if centre is None else centre
        self.geometry = ParallelBeam(*size, tuple(degrees), bins, spacing, pixel_size, middle)
        self.image_shape = (1, *size)
        self.group_index = torch.arange(len(degrees))[:, None]
        self._store(self.geometry)

    def _store(self, geometry: ParallelBeam) -> None:
        folded = fold(geometry)
        self.symmetries = folded.symmetries
        self.slots = folded.matrix.shape[0] * len(self.symmetries)
        self.slot = torch.from_numpy(folded.row * len(self.symmetries) + folded.copy)
        transposed = folded.matrix.T.tocsr()
        # int32: sparse products with int64 indices run several times slower.
        for name, matrix in (("rows", folded.matrix), ("columns", transposed)):
            self.register_buffer(f"{name}_start", torch.from_numpy(matrix.indptr.astype(np.int32)))
            self.register_buffer(f"{name}_index", torch.from_numpy(matrix.indices.astype(np.int32)))
            self.register_buffer(f"{name}_weight", torch.from_numpy(matrix.data.astype(np.float32)))

    def _product(self, name: str, dense: Tensor) -> Tensor:
        """Sparse (rows, n) times dense (n, columns)."""
        index, start = self._buffers[f"{name}_index"], self._buffers[f"{name}_start"]
        weight = matching(self._buffers[f"{name}_weight"], dense)  # type: ignore[arg-type]
        return F.embedding_bag(index, dense, start, mode="sum", per_sample_weights=weight, include_last_offset=True)  # type: ignore[arg-type]

    def _group(self, x: Tensor) -> int:
        per_image = self.geometry.pixels * len(self.symmetries) * x.element_size()
        return max(1, _CACHE_BYTES // per_image) if x.device.type == "cpu" else len(x)

    def _project(self, x: Tensor) -> Tensor:
        g = self.geometry
        out = []
        for images in x.detach().view(len(x), g.rows, g.columns).split(self._group(x)):
            # The batch runs fastest, as the product wants it: moved once, before the copies are made.
            plane = images.permute(1, 2, 0).contiguous()
            columns = torch.stack([_transform(plane, g) for g in self.symmetries], 2).view(g.pixels, -1)
            values = self._product("rows", columns).view(self.slots, len(images))
            out.append(values[self.slot].T)
        return torch.cat(out).view(len(x), len(g.angles), g.detectors)

    def _backproject(self, y: Tensor) -> Tensor:
        g = self.geometry
        out = []
        for rays in y.detach().reshape(len(y), -1).split(self._group(y)):
            values = rays.new_zeros(self.slots, len(rays)).index_add_(0, self.slot, rays.T)
            copies = self._product("columns", values.view(-1, len(self.symmetries) * len(rays)))
            copies = copies.view(g.rows, g.columns, len(self.symmetries), len(rays))
            plane = copies.new_zeros(g.rows, g.columns, len(rays))
            for k, symmetry in enumerate(self.symmetries):
                plane += _transform_back(copies[:, :, k], symmetry)
            out.append(plane.permute(2, 0, 1))
        return torch.cat(out).reshape(len(y), 1, g.rows, g.columns)

    def forward(self, x: Tensor) -> Tensor:
        return by_parts(lambda part: linear_map(part, self._project, self._backproject), x)

    def adjoint(self, y: Tensor) -> Tensor:
        return by_parts(lambda part: linear_map(part, self._backproject, self._project), y)

    def fbp(self, y: Tensor, window: Literal["ramp", "hann"] = "hann", extend: bool = True) -> Tensor:
        """Filtered back-projection (Kak & Slaney, chapter 3); y (B, angles, detectors) -> (B, 1, rows, columns).

        On a full turn with the axis off the detector's middle (half acquisition) rays that are measured once count as much
        as those measured twice. Projections that the detector cuts off go on beyond it, see `extended`.

        Args:
            y: line integrals.
            window: of the ramp filter.
            extend: whether projections that are cut off go on.
        """
        g = self.geometry
        rays = ray_weights(g)
        if rays is not None:
            y = y * torch.from_numpy(rays).to(y)
        # What lies between the short side of the detector and the picture's edge is seen from the other side only.
        side = math.ceil(g.width / g.detector_spacing)
        wide = side if rays is not None and g.width > 2 * overlap(g) else 0
        pad = max(2 * g.detectors if extend and bool(cut_off(y).any()) else 0, wide)
        response = torch.from_numpy(ramp_filter(g.detectors + 2 * pad, g.detector_spacing, window)).to(y)
        points = 2 * (len(response) - 1)
        long = extended(y, g, pad) if pad else y
        weights = torch.from_numpy(angle_weights(g)).to(y)[:, None]
        filtered = torch.fft.irfft(torch.fft.rfft(long, points) * response, points) * weights
        if wide:
            return backproject(filtered[..., : g.detectors + 2 * pad], g, -pad)
        # The transpose sums pixel_size^2 / detector_spacing of a constant over each angle's detector.
        return self.adjoint(filtered[..., pad : pad + g.detectors]) * (g.detector_spacing / g.pixel_size**2)

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Filtered back-projection with a Hann window."""
        return self.fbp(y)


def _transform(images: Tensor, symmetry: tuple[bool, int, int]) -> Tensor:
    """The copy f_g of images (rows, columns, b); y points up, so rows run against it."""
    transpose, a, b = symmetry
    if not transpose:
        return images.flip([axis for axis, sign in ((1, a), (0, b)) if sign < 0])
    return images.flip([axis for axis, sign in ((1, a), (0, b)) if sign > 0]).transpose(0, 1)


def _transform_back(copies: Tensor, symmetry: tuple[bool, int, int]) -> Tensor:
    """Inverse, which is the adjoint, of `_transform`."""
    transpose, a, b = symmetry
    if not transpose:
        return _transform(copies, symmetry)
    return copies.transpose(0, 1).flip([axis for axis, sign in ((1, a), (0, b)) if sign > 0])
