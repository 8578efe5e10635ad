"""Inpainting: some pixels are measured, the others are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.contracts.maskable import MaskableOperator, numbered
from invsolve.contracts.operator import matching
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.spectrum import SingularSystem


class Inpainting(MaskableOperator):
    """Some pixels: a mask, a random fraction, all but a box.

    y = mask * x, zero where nothing is measured; y has the shape of x, (B, C, rows, columns).

    Give exactly one of mask, fraction and box. With fraction and box the size may be left open; it is then that of the
    first image seen.

    Args:
        mask: (rows, columns), non-zero where measured; an array or the path of a .npy file.
        fraction: part of the pixels that is measured, 0 < fraction <= 1, drawn at random.
        box: hidden rectangle as [top, left, height, width] in pixels.
        image_size: rows and columns of the image, for fraction and box.
        channels: channels of the image; all share the mask.
        seed: of the random pixels.

    Raises:
        UserError: not exactly one of the three, or out of range.
    """

    name = "inpainting"
    closed_forms = "proximal solve, pseudo-inverse"

    examples = (
        {"fraction": 0.5, "image_size": 12},
        {"box": [2, 3, 4, 5], "image_size": 11},
    )

    def __init__(
        self,
        mask: Tensor | None = None,
        fraction: float | None = None,
        box: list[int] | None = None,
        image_size: int | None = None,
        channels: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (mask, fraction, box)) != 1:
            raise UserError("operator 'inpainting' needs exactly one of mask=, fraction=, box=")
        if fraction is not None and not 0 < fraction <= 1:
            raise UserError(f"operator 'inpainting': fraction must be in (0, 1], got {fraction}")
        if box is not None and (len(box) != 4 or min(box) < 0):
            raise UserError(f"operator 'inpainting': box must be [top, left, height, width] in pixels, got {box}")
        self.fraction, self.box, self.seed = fraction, box, seed
        if mask is not None:
            if mask.ndim != 2:
                raise UserError(f"operator 'inpainting': mask must be (rows, columns), got shape {tuple(mask.shape)}")
            self._fix(mask != 0, channels)
        elif image_size is not None:
            self._fix(self._draw((image_size, image_size)), channels)

    def _draw(self, size: Sequence[int]) -> Tensor:
        if self.fraction is not None:
            count = max(1, round(self.fraction * size[0] * size[1]))
            order = torch.randperm(size[0] * size[1], generator=torch.Generator().manual_seed(self.seed))
            mask = torch.zeros(size[0] * size[1], dtype=torch.bool)
            mask[order[:count]] = True
            return mask.view(*size)
        assert self.box is not None
        top, left, height, width = self.box
        if top + height > size[0] or left + width > size[1]:
            raise UserError(f"operator 'inpainting': box {self.box} does not fit in an image of {size[0]} x {size[1]}")
        mask = torch.ones(*size, dtype=torch.bool)
        mask[top : top + height, left : left + width] = False
        return mask

    def _fix(self, mask: Tensor, channels: int) -> None:
        self.mask = mask
        self.image_shape = (channels, *mask.shape)

    @property
    def group_index(self) -> Tensor:  # type: ignore[override]
        """Each measured pixel is a group."""
        if self.image_shape is None:
            raise UserError("operator 'inpainting' has no groups before it has seen an image; give image_size=")
        return self.remembered("groups", lambda: numbered(self.mask)[None])

    def forward(self, x: Tensor) -> Tensor:
        if self.image_shape is None:
            self._fix(self._draw(x.shape[-2:]), x.shape[1])
            self.to(x.device)
        return x * matching(self.mask, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        mask = matching(self.mask, z)
        return (mask * y + rho * z) / (mask + rho)

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor:
        mask = matching(self.mask, r)
        return r * (mask / (mask + rho))

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        return self.adjoint(y)

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        return self.adjoint(y)

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem:
        """The pixels themselves; a singular value is 1 where measured, else 0."""
        mask = matching(self.mask, like)
        return SingularSystem(mask.view(1, 1, *mask.shape), lambda x: x, lambda c: c, lambda y: mask * y)

    def measured(self) -> Tensor | None:
        return self.mask != 0 if self.image_shape is not None else None

    def norm(self, like: Tensor | None = None) -> float:
        return 1.0
