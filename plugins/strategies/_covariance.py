"""The covariance of x0 given x_sigma: a diagonal in some basis, corrected by pairs of vectors seen on the way (Rissanen 2025)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.numerics.linalg import inner, rows
from invsolve.numerics.modes import Modes

#: Modes without any variance would have an infinite precision: the least that they are given, over the largest.
_LEAST = 1e-8


@dataclass(frozen=True)
class Hunch:
    """C(sigma) = (Q + 1 / sigma^2)^-1, Q = diag(1 / variance) + P K P' the precision of the images, each row for itself.

    Their update in time, C(sigma')^-1 = C(sigma)^-1 + 1 / sigma'^2 - 1 / sigma^2, leaves all of it as it is in this form, and
    their update in space, a step of BFGS on C, appends two vectors to P and a block to K.

    Attributes:
        modes: the diagonal and its basis.
        vectors: P, (B, 2 k, C, *spatial), in the basis, float64: the differences that they are made of are small.
        blocks: K, (B, 2 k, 2 k), float64.
    """

    modes: Modes
    vectors: Tensor
    blocks: Tensor

    @classmethod
    def of(cls, modes: Modes, like: Tensor) -> Hunch:
        """The diagonal alone, for images (B, C, *spatial) like these."""
        none = like.new_zeros(len(like), 0, 0, dtype=torch.float64)
        return cls(modes, like.new_zeros(len(like), 0, *like.shape[1:], dtype=torch.float64), none)

    @property
    def corrections(self) -> int:
        return self.blocks.shape[1] // 2

    def diagonal(self, sigma: float) -> Tensor:
        """C(sigma) without the vectors, in the basis."""
        variance = self.modes.variance.clamp_min(_LEAST * self.modes.variance.max())
        return variance * sigma**2 / (variance + sigma**2)

    def covariance(self, sigma: float) -> Callable[[Tensor], Tensor]:
        """Products of images (B, C, *spatial) with C(sigma)."""
        modes, diagonal = self.modes, self.diagonal(sigma)
        if not self.vectors.shape[1]:
            return lambda x: modes.from_basis(diagonal * modes.to_basis(x.double())).to(x)
        # Woodbury: D - D P (1 + K G)^-1 K P' D, G = P' D P, without an inverse of K.
        raised = (diagonal * self.vectors).flatten(2)
        gram = raised @ self.vectors.flatten(2).mT
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        core = torch.linalg.solve_ex(eye + self.blocks @ gram, self.blocks).result

        def product(x: Tensor) -> Tensor:
            inside = modes.to_basis(x.double())
            seen = core @ (raised @ inside.flatten(1)[..., None])
            return modes.from_basis(diagonal * inside - (raised.mT @ seen)[..., 0].view_as(inside)).to(x)

        return product

    def precision(self, x: Tensor, sigma: float) -> Tensor:
        """C(sigma)^-1 x, both (B, C, *spatial), float64, in the basis."""
        flat = self.vectors.flatten(2)
        low = flat.mT @ (self.blocks @ (flat @ x.flatten(1)[..., None]))
        return x / self.diagonal(sigma) + low[..., 0].view_as(x)

    def after(self, estimate: Tensor, x: Tensor, sigma: float, lower: float) -> Tensor:
        """D at x and the noise level `lower`, of the Gaussian that C and D = `estimate` at `sigma` belong to."""
        away = self.precision(self.modes.to_basis(estimate.double() - x), sigma)
        return x + self.covariance(lower)(self.modes.from_basis(away))

    def corrected(self, move: Tensor, change: Tensor, sigma: float) -> Hunch:
        """C(sigma) corrected so that C move = change, by BFGS; rows where these point apart stay as they are."""
        d, e = self.modes.to_basis(move.double()), self.modes.to_basis(change.double())
        along = inner(d, e)
        agree = along > 1e-6 * (inner(d, d) * inner(e, e)).sqrt()
        size = rows(torch.where(agree, along, 1.0).rsqrt() * agree, d)
        d, e = size * d, size * e
        # C_new^-1 = C^-1 - d q' - q d' + (1 + e'q) d d' for e'd = 1, q = C^-1 e.
        q = self.precision(e, sigma)
        block = self.blocks.new_zeros(len(d), 2, 2)
        block[:, 0, 0] = torch.where(agree, 1 + inner(e, q), 0.0)
        block[:, 0, 1] = block[:, 1, 0] = -agree.to(block)
        known = self.blocks.shape[1]
        blocks = self.blocks.new_zeros(len(d), known + 2, known + 2)
        blocks[:, :known, :known], blocks[:, known:, known:] = self.blocks, block
        return Hunch(self.modes, torch.cat([self.vectors, d[:, None], q[:, None]], 1), blocks)
