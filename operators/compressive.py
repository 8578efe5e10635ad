"""Compressive sensing: some rows of an orthonormal transform, or random rows, as a single-pixel camera measures them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.fft
import scipy.linalg
import torch
from torch import Tensor

from invsolve.contracts.arguments import rows_and_columns
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.operator import matching
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.spectrum import SingularSystem

#: Most numbers of a matrix of Gaussian rows: 1 GiB in single precision.
_NUMBERS = 2**28


def walsh(n: int) -> Tensor:
    """The orthonormal Hadamard matrix of a power of two, its rows by number of sign changes; (n, n), float64."""
    matrix = scipy.linalg.hadamard(n)
    changes = (np.diff(matrix, axis=1) != 0).sum(1)
    return torch.from_numpy(matrix[np.argsort(changes)] / math.sqrt(n))


def cosines(n: int) -> Tensor:
    """The orthonormal discrete cosine transform (type II); (n, n), float64."""
    return torch.from_numpy(scipy.fft.dct(np.eye(n), axis=0, norm="ortho"))


class Compressive(MaskableOperator):
    """Compressive sensing: some Hadamard or cosine coefficients, or Gaussian rows.

    y = coefficients[chosen] of L x R', L and R orthonormal (Hadamard in order of sign changes, or cosine II), for each channel;
    or y = G x with G of independent normal numbers of variance 1 / measurements. x (B, C, rows, columns), y (B, C, measurements).
    Groups for active acquisition are the single measurements.

    Args:
        transform: what the rows are; "hadamard" needs powers of two.
        fraction: measurements per pixel, 0 < fraction <= 1.
        image_size: of x: N for N x N pixels, or [rows, columns].
        order: which coefficients: at "random", or the "low" frequencies; the mean is always among them.
        channels: of x; all are measured alike.
        seed: of what is random.

    Raises:
        UserError: a fraction out of range, a size that is no power of two, or a Gaussian matrix that is too large.
    """

    name = "compressive"
    closed_forms = "proximal solve, pseudo-inverse, singular system (not Gaussian rows)"
    group_layout = "none"
    examples = (
        {"image_size": [8, 4], "fraction": 0.4},
        {"image_size": [5, 6], "fraction": 0.5, "transform": "dct", "order": "low", "channels": 2},
        {"image_size": 5, "fraction": 0.4, "transform": "gaussian"},
    )

    def __init__(
        self,
        image_size: int | list[int],
        fraction: float = 0.25,
        transform: Literal["hadamard", "dct", "gaussian"] = "hadamard",
        order: Literal["random", "low"] = "random",
        channels: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        size = rows_and_columns(image_size, "operator 'compressive'")
        assert size is not None
        rows, columns = size
        if channels < 1:
            raise UserError(f"operator 'compressive': channels must be at least 1, got {channels}")
        if not 0 < fraction <= 1:
            raise UserError(f"operator 'compressive': fraction must be in (0, 1], got {fraction}")
        if transform == "hadamard" and (rows & (rows - 1) or columns & (columns - 1)):
            raise UserError(
                f"operator 'compressive': Hadamard patterns need powers of two, not {rows} x {columns}; use transform='dct'"
            )
        self.transform, self.image_shape = transform, (channels, rows, columns)
        count = max(1, round(fraction * rows * columns))
        generator = torch.Generator().manual_seed(seed)
        if transform == "gaussian":
            if count * rows * columns > _NUMBERS:
                raise UserError(
                    f"operator 'compressive': {count} Gaussian rows of {rows} x {columns} pixels exceed {_NUMBERS} numbers; "
                    "take a smaller fraction, or transform='dct'"
                )
            self.matrix = torch.randn(count, rows * columns, generator=generator) / math.sqrt(count)
        elif order == "low":
            i, j = torch.arange(rows) / rows, torch.arange(columns) / columns
            self.chosen = (i[:, None] ** 2 + j**2).flatten().argsort(stable=True)[:count]
        else:
            others = 1 + torch.randperm(rows * columns - 1, generator=generator)[: count - 1]
            self.chosen = torch.cat([torch.zeros(1, dtype=torch.int64), others])
        self.measurements = count

    @property
    def group_index(self) -> Tensor:  # type: ignore[override]
        """Each measurement is a group."""
        device = next(iter(self.buffers())).device
        return self.remembered(("groups", device), lambda: torch.arange(self.measurements, device=device))

    def _sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """L and R, in the precision of x."""
        assert self.image_shape is not None
        make, (rows, columns) = (walsh if self.transform == "hadamard" else cosines), self.image_shape[1:]
        return self.remembered(("sides", x.dtype, x.device), lambda: (make(rows).to(x), make(columns).to(x)))

    def coefficients(self, x: Tensor) -> Tensor:
        """All of them, L x R', shaped like x."""
        left, right = self._sides(x)
        return left @ x @ right.T

    def image(self, coefficients: Tensor) -> Tensor:
        """The image that has these coefficients."""
        left, right = self._sides(coefficients)
        return left.T @ coefficients @ right

    def _placed(self, y: Tensor) -> Tensor:
        """Measurements at their places among the coefficients, zero elsewhere."""
        assert self.image_shape is not None
        flat = y.new_zeros(*y.shape[:-1], self.image_shape[1] * self.image_shape[2])
        return flat.index_copy(-1, self.chosen, y).unflatten(-1, self.image_shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        if self.transform == "gaussian":
            return x.flatten(2) @ matching(self.matrix, x).T
        return self.coefficients(x).flatten(2).index_select(-1, self.chosen)

    def adjoint(self, y: Tensor) -> Tensor:
        if self.transform == "gaussian":
            assert self.image_shape is not None
            return (y @ matching(self.matrix, y)).unflatten(-1, self.image_shape[1:])
        return self.image(self._placed(y))

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        return None if self.transform == "gaussian" else self.adjoint(r) / (1 + rho)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        step = self.tikhonov(y - self(z), rho)
        return super().prox(z, y, rho, solver) if step is None else z + step

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        return super().pinv(y, solver) if self.transform == "gaussian" else self.adjoint(y)

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        """V the transform, whose coefficients have the singular value 1 where they are measured, else 0."""
        if self.transform == "gaussian":
            return None
        values = self._placed(torch.ones_like(like[:1, :1]))
        return SingularSystem(values, self.coefficients, self.image, self._placed)

    def norm(self, like: Tensor | None = None) -> float:
        return super().norm(like) if self.transform == "gaussian" else 1.0
