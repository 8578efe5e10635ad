"""A linear operator given by its dense matrix, for small test problems."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator, matching


class Matrix(LinearOperator):
    """y = M x for signals x (B, 1, n), y (B, m); the proximal solve is exact, by the singular value decomposition.

    Args:
        matrix: M (m, n), real.
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix.double()
        left, self.values, self.right = torch.linalg.svd(self.matrix, full_matrices=False)
        self.left = left.T.contiguous()
        self.image_shape = (1, matrix.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ matching(self.matrix, x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ matching(self.matrix, y))[:, None]

    def prox(
        self,
        z: Tensor,
        y: Tensor,
        rho: float | Tensor,
        start: Tensor | None = None,
        tolerance: float = 1e-5,
        iterations: int = 100,
    ) -> Tensor:
        values = matching(self.values, z)
        weight = rho.flatten(1) if isinstance(rho, Tensor) and rho.ndim else rho
        step = values / (values**2 + weight) * ((y - self.forward(z)) @ matching(self.left, z).T)
        return z + (step @ matching(self.right, z))[:, None]
