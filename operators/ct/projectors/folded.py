"""Line integrals by a folded sparse matrix, with its transpose stored beside it: the fastest, where both fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.operator import matching
from invsolve.numerics.threads import apart
from invsolve.operators.ct.folding import Folded, fold, plan
from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.base import Projector, budget, by_images, joined

#: Stored bytes from which on another projector is taken unless this one is asked for.
LARGEST = 2 * 2**30
# Multiplications that cost less than waking a thread; and those of a share of one image's rows.
_FEW = 200_000
_MANY = 20_000_000


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

    def project(self, x: Tensor) -> Tensor:
        rays = self._shared(self._to_rays, x.flatten(1))
        return rays.view(len(x), *self.geometry.measurement_shape)

    def backproject(self, y: Tensor) -> Tensor:
        images = self._shared(self._to_images, y.flatten(1))
        return images.view(len(y), *self.geometry.image_size)

    def _shared(self, work: Callable[[Tensor, int], Tensor], values: Tensor) -> Tensor:
        """Whole images by turns that fit in the caches; on a CPU several at once, or the rows of the product of one."""
        products, threads = self.get_buffer("rows_weight").numel() * len(self.symmetries), torch.get_num_threads()
        if values.device.type != "cpu" or products * len(values) < _FEW:
            return work(values, 1)
        # A share of the rows each: worth three meetings where the product of one image takes much longer than they do.
        rows = min(threads, products // _MANY)
        if len(values) == 1 and rows > 1:
            return work(values, rows)
        return by_images(lambda part: work(part, 1), values, self._group(values))

    def _group(self, x: Tensor) -> int:
        return max(1, budget(x) // (self.geometry.pixels * len(self.symmetries) * x.element_size()))

    def _to_rays(self, x: Tensor, shares: int) -> Tensor:
        """Images (B, pixels) to rays (B, rays)."""
        g = self.geometry

        def copies() -> Tensor:
            # The batch runs fastest, as the product wants it: moved once, before the copies are made.
            plane = x.T.reshape(g.rows, g.columns, len(x))
            return torch.stack([_transform(plane, s) for s in self.symmetries], 2).view(g.pixels, -1)

        (columns,) = _each([copies], shares)
        values = self._product("rows", columns, shares).view(self.slots, len(x))
        return _each([lambda: values[self.slot].T.contiguous()], shares)[0]

    def _to_images(self, y: Tensor, shares: int) -> Tensor:
        """Rays (B, rays) to images (B, pixels)."""
        g, count = self.geometry, len(self.symmetries)

        def gathered() -> Tensor:
            return y.new_zeros(self.slots, len(y)).index_add_(0, self.slot, y.T).view(-1, count * len(y))

        (values,) = _each([gathered], shares)
        copies = self._product("columns", values, shares).view(g.rows, g.columns, count, len(y))

        def summed() -> Tensor:
            plane = copies.new_zeros(g.rows, g.columns, len(y))
            for k, symmetry in enumerate(self.symmetries):
                plane += _transform_back(copies[:, :, k], symmetry)
            return plane.permute(2, 0, 1).reshape(len(y), -1)

        return _each([summed], shares)[0]

    def _product(self, name: str, dense: Tensor, shares: int = 1) -> Tensor:
        """Sparse (rows, n) times dense (n, columns), the rows in so many shares."""
        start = self.get_buffer(f"{name}_start")

        def product(first: int, last: int) -> Tensor:
            ends = start[first : last + 1]
            chosen = slice(int(ends[0]), int(ends[-1])) if shares > 1 else slice(None)
            index, weight = (self.get_buffer(f"{name}_{what}")[chosen] for what in ("index", "weight"))
            return F.embedding_bag(
                index,
                dense,
                ends - ends[0] if shares > 1 else ends,
                mode="sum",
                per_sample_weights=matching(weight, dense),
                include_last_offset=True,
            )

        rows = len(start) - 1
        cuts = [rows * k // shares for k in range(shares + 1)]
        parts = _each([partial(product, *pair) for pair in pairwise(cuts)], shares)
        return joined(parts)


def _each(work: Sequence[Callable[[], Tensor]], shares: int) -> list[Tensor]:
    return apart(work) if shares > 1 else [part() for part in work]


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
