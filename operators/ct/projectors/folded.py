"""Line integrals by a folded sparse matrix, with its transpose stored beside it: the fastest, where both fit in memory."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.operator import matching
from invsolve.operators.ct.folding import Folded, fold, plan
from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.base import Projector, budget

#: Stored bytes from which on another projector is taken unless this one is asked for.
LARGEST = 2 * 2**30


class FoldedProjector(Projector):
    """Joseph's weights of every 2-D geometry as a sparse matrix, one row for all rays that are one another's mirror images."""

    name = "folded"

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        folded = self._weights(geometry)
        self.symmetries = folded.symmetries
        self.slots = folded.matrix.shape[0] * len(self.symmetries)
        self.slot = torch.from_numpy(folded.row * len(self.symmetries) + folded.copy)
        transposed = folded.matrix.T.tocsr()
        # int32: sparse products with int64 indices run several times slower.
        for name, matrix in (("rows", folded.matrix), ("columns", transposed)):
            self.register_buffer(f"{name}_start", torch.from_numpy(matrix.indptr.astype(np.int32)))
            self.register_buffer(f"{name}_index", torch.from_numpy(matrix.indices.astype(np.int32)))
            self.register_buffer(f"{name}_weight", torch.from_numpy(matrix.data.astype(np.float32)))

    def _weights(self, geometry: Geometry) -> Folded:
        return fold(geometry)

    @classmethod
    def unsupported(cls, geometry: Geometry) -> str:
        return "" if geometry.dimensions == 2 else "it stores a matrix, which of a volume would be too large"

    @classmethod
    def is_small(cls, geometry: Geometry) -> bool:
        """Whether what it stores is no more than `LARGEST`."""
        return plan(geometry).bytes(geometry) <= LARGEST

    def _product(self, name: str, dense: Tensor) -> Tensor:
        """Sparse (rows, n) times dense (n, columns)."""
        index, start = self._buffers[f"{name}_index"], self._buffers[f"{name}_start"]
        weight = matching(self._buffers[f"{name}_weight"], dense)  # type: ignore[arg-type]
        return F.embedding_bag(index, dense, start, mode="sum", per_sample_weights=weight, include_last_offset=True)  # type: ignore[arg-type]

    def _group(self, x: Tensor) -> int:
        per_image = self.geometry.pixels * len(self.symmetries) * x.element_size()
        return max(1, budget(x) // per_image) if x.device.type == "cpu" else len(x)

    def project(self, x: Tensor) -> Tensor:
        g = self.geometry
        out = []
        for images in x.split(self._group(x)):
            # The batch runs fastest, as the product wants it: moved once, before the copies are made.
            plane = images.permute(1, 2, 0).contiguous()
            columns = torch.stack([_transform(plane, g) for g in self.symmetries], 2).view(g.pixels, -1)
            values = self._product("rows", columns).view(self.slots, len(images))
            out.append(values[self.slot].T)
        return torch.cat(out).view(len(x), *g.measurement_shape)

    def backproject(self, y: Tensor) -> Tensor:
        g = self.geometry
        out = []
        for rays in y.reshape(len(y), -1).split(self._group(y)):
            values = rays.new_zeros(self.slots, len(rays)).index_add_(0, self.slot, rays.T)
            copies = self._product("columns", values.view(-1, len(self.symmetries) * len(rays)))
            copies = copies.view(g.rows, g.columns, len(self.symmetries), len(rays))
            plane = copies.new_zeros(g.rows, g.columns, len(rays))
            for k, symmetry in enumerate(self.symmetries):
                plane += _transform_back(copies[:, :, k], symmetry)
            out.append(plane.permute(2, 0, 1))
        return torch.cat(out)


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
