"""Sparse matrix times dense matrix, by whichever of torch's kernels is fastest for so many columns."""

from __future__ import annotations

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

#: Columns up to which MKL is ahead of `embedding_bag`, which spends as long on one column as on 16; and entries from which on.
_FEW = 8
_MANY = 50_000


def sparse_product(start: Tensor, index: Tensor, weight: Tensor, dense: Tensor) -> Tensor:
    """A sparse matrix (rows, n) in compressed rows times dense (n, columns).

    Not for autograd, which keeps and transposes what it should not. Rounding depends on the number of columns.

    Args:
        start: (rows + 1,) int32, where each row's entries begin, and the last one's end.
        index: (entries,) int32, their columns; int64 is several times slower.
        weight: (entries,), their values, in the precision of `dense`.
        dense: (n, columns).
    """
    columns = dense.shape[1]
    suits = columns <= _FEW and len(index) >= _MANY and dense.dtype in (torch.float32, torch.float64)
    if suits and dense.device.type == "cpu" and _mkl():
        shape = (len(start) - 1, len(dense))
        matrix = torch.sparse_csr_tensor(start, index, weight, shape, check_invariants=False)
        # Of one column a product with a vector takes half as long as with a matrix.
        return matrix @ dense if columns > 1 else (matrix @ dense[:, 0])[:, None]
    return F.embedding_bag(index, dense, start, mode="sum", per_sample_weights=weight, include_last_offset=True)


@functools.cache
def _mkl() -> bool:
    """Whether torch here multiplies compressed rows with int32 indices; some builds and systems do not."""
    if not torch.backends.mkl.is_available():
        return False
    with warnings.catch_warnings():
        # That compressed rows are in beta, once in a process.
        warnings.simplefilter("ignore")
        start, index = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
        try:
            matrix = torch.sparse_csr_tensor(start, index, torch.ones(1), (1, 1), check_invariants=False)
            return bool((matrix @ torch.ones(1) == 1).all()) and bool((matrix @ torch.ones(1, 2) == 1).all())
        except RuntimeError:
            return False
