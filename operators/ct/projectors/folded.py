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
from invsolve.numerics.sparse import sparse_product
from invsolve.numerics.threads import apart
from invsolve.operators.ct.folding import Folded, fold, plan
from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.base import CACHE_BYTES, Projector, by_images, joined

#: Stored bytes from which on another projector is taken unless this one is asked for.
LARGEST = 2 * 2**30
# Multiplications that cost less than waking a thread; and those of a share of one image's rows.
_FEW = 200_000
_MANY = 20_000_000
# Columns of a product, all copies of some images. More gain nothing.
_WIDE = 64
# Bytes of pixels over which all rays are summed before the next: what a core's own cache holds.
_STRIP_BYTES = 2 * 2**20


class FoldedProjector(Projector):
    """Joseph's weights of every 2-D geometry as a sparse matrix, one row for all rays that are one another's mirror images.

    Towards the rays the matrix is stored in strips of some rows of pixels each, one below the other, in which pixels are counted
    anew: the copies of several images are made strip by strip, and stay in the cache while all rays pass.
    """

    name = "folded"

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        folded = self._weights(geometry)
        self.symmetries = folded.symmetries
        self.distinct, count = folded.matrix.shape[0], len(self.symmetries)
        self.slots = self.distinct * count
        self.slot = torch.from_numpy(folded.row * count + folded.copy)
        # Images at once; from the rays fewer, where their copies, which no strip bounds, would be so large that the allocator
        # returns them to the system each time.
        self.at_once = max(1, _WIDE // count)
        self.back_at_once = max(1, min(self.at_once, (3 * CACHE_BYTES // 2 - 1) // (4 * count * geometry.pixels)))
        high = max(1, _STRIP_BYTES // (4 * count * self.at_once * geometry.columns)) * geometry.columns
        self.strips = [slice(p, min(p + high, geometry.pixels)) for p in range(0, geometry.pixels, high)]
        columns = folded.matrix.tocsc()
        for name, parts in (("rows", [columns[:, strip].tocsr() for strip in self.strips]), ("columns", [columns.T])):
            counts = np.concatenate([[0], *(np.diff(part.indptr) for part in parts)])
            # int32: sparse products with int64 indices run several times slower.
            index, weight = (np.concatenate([getattr(p, what) for p in parts]) for what in ("indices", "data"))
            self.register_buffer(f"{name}_start", torch.from_numpy(counts.cumsum().astype(np.int32)))
            self.register_buffer(f"{name}_index", torch.from_numpy(index.astype(np.int32)))
            self.register_buffer(f"{name}_weight", torch.from_numpy(weight.astype(np.float32)))
        # From which pixel each copy of a pixel comes, (pixels, copies), and at which of those places it is found again.
        pixel = torch.arange(geometry.pixels).view(geometry.rows, geometry.columns, 1)
        source = torch.stack([_transform(pixel, s) for s in self.symmetries], 2).view(-1, count)
        places = torch.arange(source.numel()).view(-1, count)
        self.source = source.int()
        self.found = torch.empty_like(source).scatter_(0, source, places).int()

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
        rays = self._shared(self._to_rays, x.flatten(1), self.at_once)
        return rays.view(len(x), *self.geometry.measurement_shape)

    def backproject(self, y: Tensor) -> Tensor:
        images = self._shared(self._to_images, y.flatten(1), self.back_at_once)
        return images.view(len(y), *self.geometry.image_size)

    def _shared(self, work: Callable[[Tensor, int], Tensor], values: Tensor, at_once: int) -> Tensor:
        """Some whole images at a time; on a CPU several such turns at once, or the rows of the product of one image."""
        products, threads = self.get_buffer("rows_weight").numel() * len(self.symmetries), torch.get_num_threads()
        if values.device.type != "cpu" or products * len(values) < _FEW:
            return work(values, 1)
        # A share of the rows each: worth three meetings where the product of one image takes much longer than they do.
        rows = min(threads, products // _MANY)
        if len(values) == 1 and rows > 1:
            return work(values, rows)
        return by_images(lambda part: work(part, 1), values, at_once)

    def _to_rays(self, x: Tensor, shares: int) -> Tensor:
        """Images (B, pixels) to rays (B, rays)."""
        # The batch runs fastest, as the product wants it: moved once, before the copies are made.
        plane = x.T.contiguous()
        if x.device.type != "cpu":
            values = self._all_strips(self._copies(plane))
        elif len(x) > 1 and len(self.symmetries) > 1:
            values = self._product("rows", lambda strip: F.embedding(self.source[strip], plane).flatten(1), 1)
        else:
            (columns,) = _each([lambda: self._copies(plane)], shares)
            values = self._product("rows", lambda strip: columns[strip], shares)
        values = values.view(self.slots, len(x))
        return _each([lambda: values.index_select(0, self.slot).T.contiguous()], shares)[0]

    def _copies(self, plane: Tensor) -> Tensor:
        """All copies (pixels, copies x B) of images (pixels, B)."""
        plane = plane.view(self.geometry.rows, self.geometry.columns, -1)
        return torch.stack([_transform(plane, s) for s in self.symmetries], 2).view(self.geometry.pixels, -1)

    def _to_images(self, y: Tensor, shares: int) -> Tensor:
        """Rays (B, rays) to images (B, pixels)."""
        g, count = self.geometry, len(self.symmetries)

        def gathered() -> Tensor:
            return y.new_zeros(self.slots, len(y)).index_add_(0, self.slot, y.T).view(-1, count * len(y))

        (values,) = _each([gathered], shares)
        copies = self._product("columns", lambda _: values, shares)

        def summed() -> Tensor:
            if len(y) > 1:
                return F.embedding_bag(self.found, copies.view(-1, len(y)), mode="sum").T.contiguous()
            plane = copies.new_zeros(g.rows, g.columns, 1)
            for k, symmetry in enumerate(self.symmetries):
                plane += _transform_back(copies.view(g.rows, g.columns, count, 1)[:, :, k], symmetry)
            return plane.view(1, -1)

        return _each([summed], shares)[0]

    def _product(self, name: str, dense: Callable[[slice], Tensor], shares: int) -> Tensor:
        """Sparse (rows, n) times dense (n, columns), a strip of n after the other, the rows in so many shares."""
        start, index, weight = (self.get_buffer(f"{name}_{what}") for what in ("start", "index", "weight"))
        strips = self.strips if name == "rows" else [slice(0, self.distinct)]
        rows = (len(start) - 1) // len(strips)
        # Where the entries of each strip begin: asked of the tensor once, not in each call.
        bounds = self.remembered(name, lambda: start[::rows].tolist())

        def product(first: int, last: int) -> Tensor:
            total: Tensor | None = None
            for k, strip in enumerate(strips):
                values = dense(strip)
                ends, chosen = start[k * rows + first : k * rows + last + 1], slice(*bounds[k : k + 2])
                if shares > 1:
                    chosen = slice(int(ends[0]), int(ends[-1]))
                part = sparse_product(ends - ends[0], index[chosen], matching(weight[chosen], values), values)
                total = part if total is None else total.add_(part)
            assert total is not None
            return total

        cuts = [rows * k // shares for k in range(shares + 1)]
        return joined(_each([partial(product, *pair) for pair in pairwise(cuts)], shares))

    def _all_strips(self, columns: Tensor) -> Tensor:
        """The product towards the rays at once, for a device that has no caches to fit."""
        start, index, weight = (self.get_buffer(f"rows_{what}") for what in ("start", "index", "weight"))

        def whole() -> Tensor:
            counts = start[:: self.distinct].long().diff()
            first = torch.tensor([strip.start for strip in self.strips], dtype=torch.int32, device=index.device)
            return index + first.repeat_interleave(counts, output_size=len(index))

        index = self.remembered("indices", whole) if len(self.strips) > 1 else index
        parts = sparse_product(start, index, matching(weight, columns), columns)
        return parts.view(len(self.strips), self.distinct, -1).sum(0)


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
