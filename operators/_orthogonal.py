"""The base of operators whose rows are orthogonal and equally long, AA' = g I: everything about them is one line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.contracts.operator import LinearOperator
from invsolve.numerics.krylov import CG
from invsolve.numerics.spectrum import SingularSystem


class OrthogonalRows(LinearOperator):
    """A linear operator with AA' = g I; write `forward` and `adjoint`, and `gain` where g is not 1.

    (A'A + rho)^-1 A' = A' / (g + rho), by the matrix inversion lemma; the singular values are sqrt(g), U = I, V = A' / sqrt(g).
    """

    closed_forms = "proximal solve, pseudo-inverse, singular system"

    @property
    def gain(self) -> float:
        """g."""
        return 1.0

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor:
        return self.adjoint(r) / (self.gain + rho)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        return z + self.tikhonov(y - self(z), rho)

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        return self.adjoint(y) / self.gain

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem:
        root = self.gain**0.5
        values = torch.full((1, *like.shape[1:]), root, dtype=like.dtype, device=like.device)
        return SingularSystem(values, lambda x: self(x) / root, lambda c: self.adjoint(c) / root, lambda y: y)

    def norm(self, like: Tensor | None = None) -> float:
        return self.gain**0.5
