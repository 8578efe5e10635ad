"""Noise that differs from entry to entry of a measurement: y and its operator over it, so that every solver sees white noise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from invsolve.contracts.maskable import MaskableOperator, MaskableView
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.wrapped import Wrapped, WrappedLinear
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG, spectral_norm
from invsolve.numerics.linalg import rows
from invsolve.numerics.spectrum import SingularSystem

T = TypeVar("T")


def white(sigma: float | Tensor, y: Tensor, measured: Tensor | None) -> tuple[float | Tensor, Tensor | None]:
    """The level of white noise that stands for sigma, and what y is to be multiplied with to have it.

    Args:
        sigma: standard deviation of the noise, broadcasts against y.
        y: (B, *measurement).
        measured: boolean, broadcasts against y: which entries carry data; None for all.

    Returns:
        The level, a number or (B, 1, ...), whose precision is the mean of those of the entries measured; and the weights
        level / sigma, which broadcast against y, None where sigma is the same all over a row.

    Raises:
        UserError: some entries measured without noise among others with.
    """
    if not isinstance(sigma, Tensor):
        return sigma, None
    sigma = sigma.to(y.device, y.real.dtype)
    sigma = sigma.view(*[1] * (y.ndim - sigma.ndim), *sigma.shape)
    if sigma[0].numel() == 1:
        return float(sigma) if sigma.numel() == 1 else sigma, None
    used = torch.ones((), dtype=torch.bool, device=y.device) if measured is None else measured.bool().to(y.device)
    used = used.expand(sigma.shape[0], *torch.broadcast_shapes(used.shape[-(y.ndim - 1) :], sigma.shape[1:]))
    exact = ((sigma == 0) & used).flatten(1)
    free = exact.any(1)
    if bool((free & ~(exact | ~used.flatten(1)).all(1)).any()):
        raise UserError(
            "noise gaussian: sigma is 0 for some measured entries and not for others; give each its noise, or 0 to all"
        )
    precision = torch.where(used & (sigma > 0), 1 / sigma.square(), 0.0).flatten(1).sum(1)
    level = (used.flatten(1).sum(1) / precision).sqrt()
    level = rows(torch.where(free | (precision == 0), 0.0, level), sigma)
    weight = torch.where((sigma > 0) & (level > 0), level / sigma, 1.0)
    return float(level) if level.numel() == 1 else level, weight


def weighted(operator: Operator, weight: Tensor, shared: bool) -> Operator:
    """W A, W = diag(weight).

    Args:
        operator: A.
        weight: positive, (1, ...) or (B, ...), broadcasts against y.
        shared: the weights are the same for every batch, so what is computed once for them is kept with the operator.
    """
    if not isinstance(operator, LinearOperator):
        return Weighted(operator, weight, shared)
    return (MaskableWeighted if isinstance(operator, MaskableOperator) else LinearWeighted)(operator, weight, shared)


class Weighted(Wrapped, Operator):
    """W A, see `weighted`."""

    def __init__(self, inner: Operator, weight: Tensor, shared: bool = False) -> None:
        super().__init__(inner)
        self.weight, self.shared = weight, shared

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.inner(x)

    def rows(self, index: Tensor) -> Operator:
        """The operator of these rows, each of which may come several times."""
        return self if len(self.weight) == 1 else weighted(self.inner, self.weight[index], self.shared)

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        if not self.shared:
            return super().remembered(key, make)
        # A view is made for each batch; the operator inside stays.
        values = self.weight.detach().cpu().contiguous()
        mark = hashlib.sha256(values.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        kept: T = self.inner.remembered(("weighted", tuple(values.shape), mark, key), make)
        return kept


class LinearWeighted(Weighted, WrappedLinear, LinearOperator):
    """`Weighted` of a linear operator. Its closed forms are for white noise: solves are by iteration or a dense matrix."""

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.weight * y)

    def normal(self, x: Tensor) -> Tensor:
        return self.inner.adjoint(self.weight**2 * self.inner(x))

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        return LinearOperator.prox(self, z, y, rho, solver)

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        return None

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        return LinearOperator.pinv(self, y, solver)

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        return None

    def svd_on_real_images(self, like: Tensor) -> SingularSystem | None:
        return None

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        """That of A where it is a formula for data as measured, such as filtered back-projection; else the weighted solve."""
        if self.inner.baseline_floor is not None:
            return LinearOperator.baseline(self, y, sigma, solver)
        spread = (torch.as_tensor(sigma).to(self.weight) / self.weight).square().flatten(1).mean(1).sqrt()
        return self.inner.baseline(y / self.weight, rows(spread, y))

    def norm(self, like: Tensor | None = None) -> float:
        shape = self.image_shape or (self.image_shape_for(like.shape[1:]) if like is not None else None)

        def largest() -> float:
            # Every row by itself, from one start: the largest does not depend on the batch.
            blank = self.blank(len(self.weight), shape, self.weight.dtype)
            start = torch.randn(blank[:1].shape, generator=torch.Generator().manual_seed(0)).to(blank)
            with torch.no_grad():
                return spectral_norm(self.normal, start.expand_as(blank).contiguous())

        return self.remembered(("norm", None if shape is None else tuple(shape)), largest)


class MaskableWeighted(LinearWeighted, MaskableView, MaskableOperator):
    """`Weighted` of a maskable operator: the measurement's groups are the same."""
