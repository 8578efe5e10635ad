"""A linear operator given by its dense matrix, for small test problems."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator, matching
from invsolve.numerics.krylov import CG


class Matrix(LinearOperator):
    """y = M x for signals x (B, 1, n), y (B, m); the proximal solve is exact, by the singular value decomposition.

    Args:
        matrix: M (m, n), real.
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix.double()
        self.image_shape = (1, matrix.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ matching(self.matrix, x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ matching(self.matrix, y))[:, None]

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        left, values, right = (matching(factor, z) for factor in self.factors())
        weight = rho.flatten(1) if isinstance(rho, Tensor) and rho.ndim else rho
        step = values / (values**2 + weight) * ((y - self.forward(z)) @ left.T)
        return z + (step @ right)[:, None]

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """U' (rank, m), the singular values (rank,) and V' (rank, n), float64."""

        def decomposed() -> tuple[Tensor, Tensor, Tensor]:
            left, values, right = torch.linalg.svd(self.matrix.double(), full_matrices=False)
            return left.T.contiguous(), values, right

        return self.remembered("factors", decomposed)
