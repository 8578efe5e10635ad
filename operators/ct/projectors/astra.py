"""The weights of ASTRA's own kernels as a sparse matrix, for comparisons; ASTRA is GPL and no part of invsolve."""

from __future__ import annotations

from typing import Any

import numpy as np

from invsolve.operators.ct.folding import SYMMETRIES, Folded
from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.base import need
from invsolve.operators.ct.projectors.folded import FoldedProjector


class AstraProjector(FoldedProjector):
    """The matrix of ASTRA's CPU kernels (van Aarle et al. 2016): `linear` of parallel beams, `line_fanflat` of fans.

    ASTRA hands out the weights once; products are those of `folded`, so that batches, double precision and CUDA tensors
    work alike, and the adjoint is the transpose of the same weights. Of volumes ASTRA has CUDA kernels alone, whose
    back-projection is not the transpose of its projection.

    Raises:
        UserError: astra-toolbox is not installed.
    """

    name = "astra"

    @classmethod
    def unsupported(cls, geometry: Geometry) -> str:
        if geometry.dimensions == 3:
            return "ASTRA's kernels for volumes are not each other's transposes"
        return "ASTRA has no curved detectors" if geometry.curved else ""

    def _weights(self, geometry: Geometry) -> Folded:
        astra: Any = need("astra", "pip install astra-toolbox")
        kernel = "linear" if geometry.beam == "parallel" else "line_fanflat"
        projector = astra.create_projector(kernel, *geometry.to_astra())
        stored = astra.projector.matrix(projector)
        try:
            matrix = astra.matrix.get(stored).tocsr()
        finally:
            astra.matrix.delete(stored)
            astra.projector.delete(projector)
        rays = len(geometry.angles) * geometry.detectors
        return Folded(matrix, np.arange(rays), np.zeros(rays, dtype=np.int64), SYMMETRIES[:1])
