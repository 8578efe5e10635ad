"""Sparse products against SciPy's, by every kernel, with no warning, and without MKL."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from invsolve.numerics import sparse


@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize("columns", [1, 2, 8, 9, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_scipys_product(columns: int, dtype: torch.dtype, mkl: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_MANY", 0)
    if not mkl:
        monkeypatch.setattr(sparse, "_mkl", lambda: False)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(23, 40)) * (rng.random((23, 40)) < 0.2)
    # A row, and a column, of nothing.
    values[4], values[:, 7] = 0, 0
    matrix = scipy.sparse.csr_array(values)
    start, index = (torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices))
    dense = torch.from_numpy(rng.normal(size=(40, columns))).to(dtype)
    for inference in (False, True):
        with torch.inference_mode(inference):
            found = sparse.sparse_product(start, index, torch.from_numpy(matrix.data).to(dtype), dense)
        wanted = matrix @ dense.double().numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-13 if dtype == torch.float64 else 1e-5)


def test_a_matrix_of_nothing() -> None:
    start, index = torch.zeros(4, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    assert torch.equal(sparse.sparse_product(start, index, torch.zeros(0), torch.ones(5, 2)), torch.zeros(3, 2))
